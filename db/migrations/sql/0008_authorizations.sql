-- Payment by signature (EIP-3009): who has signed what for which attempt, and the transactions that the relay sends.

-- Whose nonce pays the attempt is written once, with the payer: until then it has neither.
ALTER TABLE payment_attempts
    ADD CONSTRAINT payment_attempts_authorization_nonce CHECK (authorization_nonce ~ '^0x[0-9a-f]{64}$') NOT VALID,
    ADD CONSTRAINT payment_attempts_authorization_has_payer CHECK (
        CASE kind WHEN 'authorization'
             THEN (authorization_nonce IS NULL) = (from_address = '0x0000000000000000000000000000000000000000')
                  AND (authorization_nonce IS NOT NULL OR status IN ('CREATED_INTENT', 'FAILED'))
             ELSE authorization_nonce IS NULL END
    ) NOT VALID;

CREATE TABLE payment_authorizations (
    attempt_id uuid PRIMARY KEY REFERENCES payment_attempts (id),
    -- Derived from the attempt's id: what is signed with it pays this attempt and no other.
    own_nonce text NOT NULL UNIQUE CHECK (own_nonce ~ '^0x[0-9a-f]{64}$'),
    -- What was claimed; payer and nonce are the attempt's.
    valid_after bigint CHECK (valid_after >= 0),
    valid_before bigint CHECK (valid_before > 0),
    signature bytea CHECK (octet_length(signature) <= 8192),
    is_contract boolean,
    -- The newest block at the claim: the authorization was unused then, so that its event is in a later one.
    from_block bigint CHECK (from_block >= 0),
    claimed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payment_authorizations_claimed_whole CHECK (
        num_nulls(valid_after, valid_before, signature, is_contract, from_block, claimed_at) IN (0, 6))
);
CREATE INDEX payment_authorizations_claimed ON payment_authorizations (claimed_at) WHERE claimed_at IS NOT NULL;

-- The relay's accounts. The row's lock serializes the use of nonces.
CREATE TABLE relayers (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    address text NOT NULL CHECK (address ~ '^0x[0-9a-f]{40}$'),
    next_nonce bigint NOT NULL CHECK (next_nonce >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, address)
);

-- A nonce of such an account, and what it is for. `outcome` is empty until one of its transactions is confirmed.
CREATE TABLE relay_nonces (
    chain_id bigint NOT NULL,
    relayer text NOT NULL,
    nonce bigint NOT NULL CHECK (nonce >= 0),
    attempt_id uuid NOT NULL REFERENCES payment_attempts (id),
    outcome text CHECK (outcome IN ('succeeded', 'reverted', 'lost')),
    mined_tx_hash text CHECK (mined_tx_hash ~ '^0x[0-9a-f]{64}$'),
    spent_wei numeric(78, 0) CHECK (spent_wei >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    PRIMARY KEY (chain_id, relayer, nonce),
    FOREIGN KEY (chain_id, relayer) REFERENCES relayers (chain_id, address),
    CONSTRAINT relay_nonces_ended_whole CHECK ((outcome IS NULL) = (ended_at IS NULL))
);
CREATE INDEX relay_nonces_by_attempt ON relay_nonces (attempt_id);
CREATE INDEX relay_nonces_by_time ON relay_nonces (created_at);
-- One at a time for an attempt, whichever account sends it.
CREATE UNIQUE INDEX relay_nonces_one_open_per_attempt ON relay_nonces (attempt_id) WHERE outcome IS NULL;

-- What was signed for a nonce: stored before it is sent, sent again as the same bytes, and never forgotten.
CREATE TABLE relay_transactions (
    chain_id bigint NOT NULL,
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    relayer text NOT NULL,
    nonce bigint NOT NULL,
    raw bytea NOT NULL CHECK (octet_length(raw) <= 65536),
    gas bigint NOT NULL CHECK (gas > 0),
    max_fee_wei numeric(78, 0) NOT NULL CHECK (max_fee_wei > 0),
    priority_fee_wei numeric(78, 0) NOT NULL CHECK (priority_fee_wei >= 0),
    stored_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    PRIMARY KEY (chain_id, tx_hash),
    FOREIGN KEY (chain_id, relayer, nonce) REFERENCES relay_nonces (chain_id, relayer, nonce)
);
CREATE INDEX relay_transactions_by_nonce ON relay_transactions (chain_id, relayer, nonce, stored_at);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['payment_authorizations', 'relayers', 'relay_nonces', 'relay_transactions'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
END $$;

CREATE POLICY own_authorizations ON payment_authorizations FOR ALL TO settle_app
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id))
    WITH CHECK (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id AND a.kind = 'authorization'));
