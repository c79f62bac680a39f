-- Sweeps: transactions that collect what deposit addresses hold, and the transfers to a treasury that they caused.

ALTER TABLE general_entries
    DROP CONSTRAINT general_entries_reason_check,
    ADD CONSTRAINT general_entries_reason_check CHECK (reason IN ('absorbed_cost', 'sweep')) NOT VALID;

-- A plan whose transactions are signed. Its id is derived from the plan: sent twice, it is one sweep.
CREATE TABLE sweeps (
    id uuid PRIMARY KEY,
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    plan jsonb NOT NULL,
    status text NOT NULL DEFAULT 'sent' CHECK (status IN ('sent', 'done', 'failed')),
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT sweeps_ended_whole CHECK ((status = 'sent') = (ended_at IS NULL))
);

-- Stored before it is sent, and never forgotten: whichever of those with one nonce is mined, it is known.
CREATE TABLE sweep_transactions (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    sweep_id uuid NOT NULL REFERENCES sweeps (id),
    sender text NOT NULL CHECK (sender ~ '^0x[0-9a-fA-F]{40}$'),
    nonce bigint NOT NULL CHECK (nonce >= 0),
    raw bytea NOT NULL CHECK (octet_length(raw) <= 131072),
    -- Empty while its nonce is unused, or used in a block with too few confirmations.
    outcome text CHECK (outcome IN ('succeeded', 'reverted', 'replaced')),
    block_number bigint,
    spent_wei numeric(78, 0) CHECK (spent_wei >= 0),
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, tx_hash)
);
CREATE INDEX sweep_transactions_by_sweep ON sweep_transactions (sweep_id, nonce);

-- A transfer from a deposit address to a treasury, of whosever transaction: anyone may flush a forwarder.
CREATE TABLE swept_transfers (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    log_index bigint NOT NULL CHECK (log_index >= 0),
    address_id uuid NOT NULL REFERENCES deposit_addresses (id),
    method_id text NOT NULL REFERENCES payment_methods (id),
    treasury text NOT NULL,
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw > 0),
    credits bigint NOT NULL CHECK (credits >= 0),
    block_number bigint NOT NULL,
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    entry_id uuid REFERENCES general_entries (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, tx_hash, log_index),
    CONSTRAINT swept_transfers_booked CHECK ((credits > 0) = (entry_id IS NOT NULL))
);
CREATE INDEX swept_transfers_by_address ON swept_transfers (address_id);
CREATE INDEX swept_transfers_by_entry ON swept_transfers (entry_id) WHERE entry_id IS NOT NULL;
CREATE TRIGGER swept_transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON swept_transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The last block in which transfers of a token to a treasury were read for it.
CREATE TABLE sweep_cursors (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    token text NOT NULL,
    treasury text NOT NULL,
    block_number bigint NOT NULL,
    PRIMARY KEY (chain_id, token, treasury)
);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['sweeps', 'sweep_transactions', 'swept_transfers', 'sweep_cursors'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
END $$;
