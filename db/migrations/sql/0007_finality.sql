-- Finality in bulk: the transfers that are to become final, and how far the chain is.

-- A row is there from the credit until the outcome is in transfer_finality, so that payments of years ago, which are all
-- final, are not visited to find those of the last minutes.
CREATE TABLE transfers_awaiting_finality (
    attempt_id uuid PRIMARY KEY,
    chain_id bigint NOT NULL,
    -- Of the credit: a reorganisation may have moved the transfer since.
    block_number bigint NOT NULL
);
CREATE INDEX transfers_awaiting_finality_by_block
    ON transfers_awaiting_finality (chain_id, block_number, attempt_id);

CREATE TRIGGER settled_transfers_await_finality AFTER INSERT ON settled_transfers
    FOR EACH ROW EXECUTE FUNCTION await_finality_of_transfer();
CREATE TRIGGER transfer_finality_ends_wait AFTER INSERT ON transfer_finality
    REFERENCING NEW TABLE AS ended FOR EACH STATEMENT EXECUTE FUNCTION end_wait_for_finality();

-- The last block of a chain that has reached a level, as last read while a transfer awaited it.
CREATE TABLE finality_progress (
    chain_id bigint NOT NULL,
    level text NOT NULL CHECK (level IN ('confirmations', 'safe', 'finalized')),
    block_number bigint NOT NULL CHECK (block_number >= 0),
    moved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, level)
);

ALTER TABLE transfers_awaiting_finality ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON transfers_awaiting_finality TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY own_transfers ON transfers_awaiting_finality FOR SELECT TO settle_app
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));

ALTER TABLE finality_progress ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON finality_progress TO CURRENT_USER USING (true) WITH CHECK (true);
-- Of the chain, not of a tenant.
CREATE POLICY all_read ON finality_progress FOR SELECT TO settle_app USING (true);
