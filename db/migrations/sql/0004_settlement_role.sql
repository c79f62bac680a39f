-- The role that credits purchases: workers have it, processes that people reach do not. It sees what settle_app sees, in
-- the same scopes; the rights that settle_app loses to it are taken by the contracting revision (0005_contract.sql).

ALTER POLICY own_user ON users TO settle_app, settle_settlement;
ALTER POLICY own_accounts ON billing_accounts TO settle_app, settle_settlement;
ALTER POLICY own_keys ON virtual_keys TO settle_app, settle_settlement;
ALTER POLICY own_ledger ON credit_ledger TO settle_app, settle_settlement;
ALTER POLICY own_attempts ON payment_attempts TO settle_app, settle_settlement;
ALTER POLICY own_events ON payment_events TO settle_app, settle_settlement;
ALTER POLICY own_transfers ON settled_transfers TO settle_app, settle_settlement;

-- Workers of the revision before still do all of it as settle_app; the contracting revision ends that.
CREATE TRIGGER payment_attempts_guard_by_role BEFORE UPDATE ON payment_attempts
    FOR EACH ROW WHEN (current_user <> 'settle_app') EXECUTE FUNCTION guard_attempt_by_role();

-- The tokens and treasuries that are known, and who noted them: a worker, of its settings; this revision, of what was
-- followed or paid before; an intent. Addresses are in lower case.
-- Payments may go there and nowhere else: processes that people reach write intents, and one that named its writer's own
-- token and address would be paid with nothing. Before any worker has noted one, on a system that is new, what intents
-- name counts.
-- What a worker or this revision noted is no payer either, under later settings as well: neither a treasury nor a token is
-- a payer's wallet. A destination that only an intent names is not enough for that: otherwise its writer could exclude any
-- payer by naming their wallet as a treasury.
CREATE TABLE payment_destinations (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    token text NOT NULL CHECK (token ~ '^0x[0-9a-f]{40}$'),
    to_address text NOT NULL CHECK (to_address ~ '^0x[0-9a-f]{40}$'),
    noted_by text NOT NULL CHECK (noted_by IN ('worker', 'upgrade', 'intent')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, token, to_address, noted_by)
);
INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)
SELECT chain_id, lower(token), lower(to_address), 'upgrade' FROM chain_cursors
 UNION
SELECT chain_id, lower(token), lower(to_address),
       CASE WHEN status IN ('CREDITED', 'REVERSED') THEN 'upgrade' ELSE 'intent' END
  FROM payment_attempts;

ALTER TABLE payment_destinations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON payment_destinations TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE TRIGGER payment_attempts_first_destination AFTER INSERT ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION note_first_destination();
