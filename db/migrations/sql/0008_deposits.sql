-- Deposits: what can be paid with, addresses of accounts and of charges, and the transfers that have come to them.

-- An attempt is bound to its sender (wallet), to its recipient (deposit), or to a signed nonce (authorization).
ALTER TABLE payment_attempts
    -- Of a deposit: what it is worth, and exactly what was sent. Of 18 decimals, amount_raw holds no more than nine coins.
    ADD COLUMN amount_credits bigint,
    ADD COLUMN value_raw numeric(78, 0),
    -- Which of the ledger's cash accounts its money is on.
    ADD COLUMN cash_account text,
    ADD CONSTRAINT payment_attempts_kind CHECK (kind IN ('wallet', 'deposit', 'authorization')) NOT VALID,
    ADD CONSTRAINT payment_attempts_deposit_has_worth CHECK (
        (kind = 'deposit') = (amount_credits IS NOT NULL) AND (kind = 'deposit') = (value_raw IS NOT NULL)
        AND (kind = 'deposit') = (cash_account IS NOT NULL) AND (cash_account ~ '^cash:.*:deposits$') IS NOT FALSE
        AND (amount_credits > 0) IS NOT FALSE AND (value_raw > 0) IS NOT FALSE
    ) NOT VALID,
    DROP CONSTRAINT payment_attempts_amount_usd_cents_check,
    ADD CONSTRAINT payment_attempts_amount_usd_cents_check
        CHECK (amount_usd_cents > 0 OR (kind = 'deposit' AND amount_usd_cents = 0)) NOT VALID,
    DROP CONSTRAINT payment_attempts_amounts_agree,
    ADD CONSTRAINT payment_attempts_amounts_agree CHECK (
        CASE kind WHEN 'deposit' THEN amount_raw = least(value_raw, 9223372036854775807)
                                      AND amount_usd_cents = amount_credits / 100000
                  ELSE amount_raw = amount_usd_cents * 10000 END
    ) NOT VALID;

-- One transaction may hold several deposits of one account. Built before, under another name, as `kind` was.
DROP INDEX payment_attempts_hash_held_by_account;
ALTER INDEX payment_attempts_hash_held_by_wallet RENAME TO payment_attempts_hash_held_by_account;

-- Extended public keys. Every method with the same key shares its counter: no index is given out twice.
CREATE TABLE address_rings (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    curve text NOT NULL DEFAULT 'secp256k1' CHECK (curve IN ('secp256k1')),
    path text NOT NULL CHECK (path <> ''),
    xpub text NOT NULL UNIQUE,
    fingerprint text NOT NULL CHECK (fingerprint ~ '^[0-9a-f]{8}$'),
    next_index bigint NOT NULL DEFAULT 0 CHECK (next_index BETWEEN 0 AND 2147483648),
    gap_limit integer NOT NULL DEFAULT 20 CHECK (gap_limit BETWEEN 6 AND 100000),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE payment_methods (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._-]+:[A-Za-z0-9._-]+$'),
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    -- The symbol, which names the ledger accounts; `address` is its contract.
    token text NOT NULL CHECK (token ~ '^[A-Za-z0-9._-]+$'),
    address text CHECK (address ~ '^0x[0-9a-fA-F]{40}$'),
    decimals integer NOT NULL CHECK (decimals BETWEEN 0 AND 36),
    kind text NOT NULL CHECK (kind IN ('erc20', 'native', 'utxo')),
    scheme text NOT NULL CHECK (scheme IN ('create2', 'xpub')),
    ring_id uuid REFERENCES address_rings (id),
    min_amount_raw numeric(78, 0) NOT NULL DEFAULT 1 CHECK (min_amount_raw > 0),
    confirmations integer CHECK (confirmations > 0),
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payment_methods_token_has_contract CHECK ((address IS NOT NULL) = (kind = 'erc20')),
    CONSTRAINT payment_methods_xpub_has_ring CHECK ((ring_id IS NOT NULL) = (scheme = 'xpub'))
);
CREATE INDEX payment_methods_by_token ON payment_methods (chain_id, lower(address));

CREATE TABLE deposit_addresses (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    address text NOT NULL CHECK (address <> ''),
    scheme text NOT NULL CHECK (scheme IN ('create2', 'xpub')),
    ring_id uuid REFERENCES address_rings (id),
    index bigint CHECK (index BETWEEN 0 AND 2147483647),
    salt text CHECK (salt ~ '^0x[0-9a-f]{64}$'),
    -- Of create2: where the forwarder sends everything. It is part of the address.
    treasury text CHECK (treasury ~ '^0x[0-9a-fA-F]{40}$'),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    charge_id uuid,
    -- When it was last asked for or paid: by that it is read with each block, every few minutes, or by its balance.
    active_at timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT deposit_addresses_once UNIQUE (chain_id, address),
    CONSTRAINT deposit_addresses_of_scheme CHECK (
        CASE scheme WHEN 'create2' THEN salt IS NOT NULL AND treasury IS NOT NULL AND ring_id IS NULL AND index IS NULL
                    ELSE salt IS NULL AND treasury IS NULL AND ring_id IS NOT NULL AND index IS NOT NULL END)
);
-- On EVM an address is known by its bytes, whatever case its letters are in.
CREATE UNIQUE INDEX deposit_addresses_once_in_any_case ON deposit_addresses (lower(address), chain_id);
CREATE UNIQUE INDEX deposit_addresses_one_per_index ON deposit_addresses (chain_id, ring_id, index)
    WHERE ring_id IS NOT NULL;
-- The account's own; where the treasury or the key has changed, the one before stays its own, too.
CREATE UNIQUE INDEX deposit_addresses_one_own ON deposit_addresses
    (billing_account_id, chain_id, scheme, coalesce(ring_id::text, lower(treasury))) WHERE charge_id IS NULL;
CREATE UNIQUE INDEX deposit_addresses_one_per_charge ON deposit_addresses (charge_id) WHERE charge_id IS NOT NULL;
CREATE INDEX deposit_addresses_active ON deposit_addresses (chain_id, active_at);
CREATE INDEX deposit_addresses_by_ring ON deposit_addresses (ring_id, index) WHERE ring_id IS NOT NULL;

CREATE TABLE charges (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    method_id text NOT NULL REFERENCES payment_methods (id),
    amount_usd_cents bigint NOT NULL CHECK (amount_usd_cents > 0),
    quoted_amount_raw numeric(78, 0) NOT NULL CHECK (quoted_amount_raw > 0),
    address_id uuid NOT NULL REFERENCES deposit_addresses (id),
    -- Kept by refresh_charge().
    status text NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'partial', 'confirming', 'paid', 'expired')),
    price_expires_at timestamptz NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX charges_one_per_address ON charges (address_id);
CREATE INDEX charges_by_account ON charges (billing_account_id, created_at);
CREATE INDEX charges_unpaid ON charges (price_expires_at) WHERE status = 'new';
ALTER TABLE deposit_addresses ADD CONSTRAINT deposit_addresses_of_charge
    FOREIGN KEY (charge_id) REFERENCES charges (id) DEFERRABLE INITIALLY DEFERRED;

-- A transfer to a deposit address. There from the moment it is seen; it has an attempt once it is confirmed.
CREATE TABLE deposits (
    id uuid PRIMARY KEY,
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    -- Below zero: not on the chain any more. Its attempt says what became of it.
    log_index bigint NOT NULL,
    address_id uuid NOT NULL REFERENCES deposit_addresses (id),
    method_id text NOT NULL REFERENCES payment_methods (id),
    token text NOT NULL,
    from_address text NOT NULL,
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw >= 0),
    credits bigint NOT NULL CHECK (credits >= 0),
    block_number bigint NOT NULL,
    block_hash text NOT NULL,
    block_time timestamptz NOT NULL,
    attempt_id uuid UNIQUE REFERENCES payment_attempts (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Checked at commit: a reorganisation may exchange the places of two.
    CONSTRAINT deposits_once UNIQUE (chain_id, tx_hash, log_index) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX deposits_by_address ON deposits (address_id, created_at);
CREATE INDEX deposits_without_attempt ON deposits (chain_id, block_number) WHERE attempt_id IS NULL;

CREATE TRIGGER deposits_refresh_charge AFTER INSERT OR UPDATE OR DELETE ON deposits
    FOR EACH ROW EXECUTE FUNCTION refresh_charge_of_deposit();
CREATE TRIGGER payment_attempts_refresh_charge AFTER UPDATE OF status ON payment_attempts
    FOR EACH ROW WHEN (NEW.kind = 'deposit') EXECUTE FUNCTION refresh_charge_of_attempt();

CREATE TRIGGER payment_methods_open_cash_accounts AFTER INSERT ON payment_methods
    FOR EACH ROW EXECUTE FUNCTION open_cash_accounts();

-- An operator's credit of a deposit: in its token's decimals.
ALTER TABLE transfer_credits
    ADD COLUMN token_decimals integer NOT NULL DEFAULT 6,
    DROP CONSTRAINT transfer_credits_amounts_agree,
    ADD CONSTRAINT transfer_credits_amounts_agree CHECK (
        amount_credits = CASE part WHEN 'refund' THEN 0
                         ELSE floor(value_raw * 10000000 / power(10::numeric, token_decimals)) END
    ) NOT VALID;

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['address_rings', 'payment_methods', 'deposit_addresses', 'charges', 'deposits'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
END $$;

-- Public keys and what can be paid with are the installation's, not a tenant's.
CREATE POLICY all_read ON address_rings FOR SELECT TO settle_app USING (true);
CREATE POLICY all_read ON payment_methods FOR SELECT TO settle_app USING (true);
CREATE POLICY own_addresses ON deposit_addresses FOR ALL TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))
    WITH CHECK (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
CREATE POLICY own_charges ON charges FOR ALL TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))
    WITH CHECK (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
CREATE POLICY own_deposits ON deposits FOR SELECT TO settle_app
    USING (EXISTS (SELECT 1 FROM deposit_addresses d WHERE d.id = address_id));
