-- Payments of charges by signature: what a payer has signed to a charge's address. The relay broadcasts it, and what
-- arrives is a deposit like any other.

CREATE TABLE charge_authorizations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    charge_id uuid NOT NULL REFERENCES charges (id),
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    token text NOT NULL CHECK (token ~ '^0x[0-9a-fA-F]{40}$'),
    payer text NOT NULL CHECK (payer ~ '^0x[0-9a-fA-F]{40}$'),
    to_address text NOT NULL CHECK (to_address ~ '^0x[0-9a-fA-F]{40}$'),
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw > 0),
    valid_after bigint NOT NULL CHECK (valid_after >= 0),
    valid_before bigint NOT NULL CHECK (valid_before > 0),
    nonce text NOT NULL CHECK (nonce ~ '^0x[0-9a-f]{64}$'),
    signature bytea NOT NULL CHECK (octet_length(signature) <= 8192),
    is_contract boolean NOT NULL,
    -- The newest block at the claim: the authorization was unused then, so that its event is in a later one.
    from_block bigint NOT NULL CHECK (from_block >= 0),
    claimed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Empty until it is known for good: executed, by any sender, or proved to be executed never.
    outcome text CHECK (outcome IN ('executed', 'expired')),
    executed_by text CHECK (executed_by ~ '^0x[0-9a-f]{64}$'),
    ended_at timestamptz,
    CONSTRAINT charge_authorizations_ended_whole CHECK ((outcome IS NULL) = (ended_at IS NULL)),
    CONSTRAINT charge_authorizations_executed_by_one CHECK ((outcome = 'executed') IS TRUE = (executed_by IS NOT NULL))
);
CREATE UNIQUE INDEX charge_authorizations_once
    ON charge_authorizations (chain_id, lower(token), lower(payer), nonce);
CREATE INDEX charge_authorizations_by_charge ON charge_authorizations (charge_id, claimed_at);
CREATE INDEX charge_authorizations_open ON charge_authorizations (chain_id, valid_before) WHERE outcome IS NULL;

-- A nonce of the relayer is for one of the two. The column's name stays: processes of the version before read it.
ALTER TABLE relay_nonces
    ALTER COLUMN attempt_id DROP NOT NULL,
    ADD COLUMN charge_authorization_id uuid REFERENCES charge_authorizations (id),
    ADD CONSTRAINT relay_nonces_for_one CHECK (num_nonnulls(attempt_id, charge_authorization_id) = 1) NOT VALID;
CREATE INDEX relay_nonces_by_charge_authorization ON relay_nonces (charge_authorization_id)
    WHERE charge_authorization_id IS NOT NULL;
CREATE UNIQUE INDEX relay_nonces_one_open_per_charge_authorization ON relay_nonces (charge_authorization_id)
    WHERE outcome IS NULL AND charge_authorization_id IS NOT NULL;

-- When the account's relay last completed a pass, and what it held then.
ALTER TABLE relayers
    ADD COLUMN seen_at timestamptz,
    ADD COLUMN balance_wei numeric(78, 0) CHECK (balance_wei >= 0);

ALTER TABLE charge_authorizations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON charge_authorizations TO CURRENT_USER USING (true) WITH CHECK (true);
