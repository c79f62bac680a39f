-- Tables, keys and the checks that a single row must pass.

CREATE TABLE users (
    id text PRIMARY KEY CHECK (id <> ''),
    wallet_address text UNIQUE CHECK (wallet_address ~ '^0x[0-9a-fA-F]{40}$'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One wallet, one user, however its address is written.
CREATE UNIQUE INDEX users_one_per_wallet ON users (lower(wallet_address));

CREATE TABLE billing_accounts (
    id text PRIMARY KEY CHECK (id <> ''),
    owner_user_id text NOT NULL REFERENCES users (id),
    balance_credits bigint NOT NULL DEFAULT 0,
    is_system_tenant boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX billing_accounts_one_system_tenant ON billing_accounts (is_system_tenant) WHERE is_system_tenant;
CREATE INDEX billing_accounts_owner ON billing_accounts (owner_user_id);

CREATE TABLE virtual_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    label text NOT NULL DEFAULT 'Default',
    is_default boolean NOT NULL DEFAULT false,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX virtual_keys_one_default ON virtual_keys (billing_account_id) WHERE is_default;

CREATE TABLE ledger_accounts (
    code text PRIMARY KEY CHECK (code <> ''),
    name text NOT NULL,
    type text NOT NULL CHECK (type IN ('asset', 'liability', 'equity', 'revenue', 'expense')),
    normal_side text NOT NULL CHECK (normal_side IN ('debit', 'credit')),
    billing_account_id text REFERENCES billing_accounts (id),
    CHECK ((normal_side = 'debit') = (type IN ('asset', 'expense')))
);
CREATE INDEX ix_ledger_accounts_billing_account_id ON ledger_accounts (billing_account_id);

CREATE TABLE credit_ledger (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Assigned under the lock of the account's row, so it orders the entries of each account.
    entry_seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    virtual_key_id uuid REFERENCES virtual_keys (id),
    amount bigint NOT NULL CHECK (amount <> 0),
    balance_after bigint NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    reference text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (
        reason NOT IN ('credits_purchase', 'platform_revenue_share', 'system_donation')
        OR (amount > 0 AND reference IS NOT NULL)
    )
);
CREATE UNIQUE INDEX credit_ledger_one_purchase_per_reference
    ON credit_ledger (billing_account_id, reference) WHERE reason = 'credits_purchase';
CREATE UNIQUE INDEX credit_ledger_one_revenue_share_per_reference
    ON credit_ledger (billing_account_id, reference) WHERE reason = 'platform_revenue_share';
CREATE UNIQUE INDEX credit_ledger_one_donation_per_reference
    ON credit_ledger (billing_account_id, reference) WHERE reason = 'system_donation';
-- For the doors: a generic plan cannot use the partial indexes, and would read an account's whole history instead.
CREATE INDEX credit_ledger_by_reference ON credit_ledger (reference);
CREATE UNIQUE INDEX credit_ledger_by_account ON credit_ledger (billing_account_id, entry_seq);

CREATE TABLE journal_lines (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    entry_id uuid NOT NULL REFERENCES credit_ledger (id),
    account_code text NOT NULL REFERENCES ledger_accounts (code),
    side text NOT NULL CHECK (side IN ('debit', 'credit')),
    amount bigint NOT NULL CHECK (amount > 0)
);
CREATE INDEX ix_journal_lines_entry_id ON journal_lines (entry_id);

CREATE TABLE payment_attempts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    from_address text NOT NULL CHECK (from_address ~ '^0x[0-9a-fA-F]{40}$'),
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    token text NOT NULL CHECK (token ~ '^0x[0-9a-fA-F]{40}$'),
    to_address text NOT NULL CHECK (to_address ~ '^0x[0-9a-fA-F]{40}$'),
    amount_raw bigint NOT NULL,
    amount_usd_cents bigint NOT NULL CHECK (amount_usd_cents > 0),
    purpose text NOT NULL DEFAULT 'self' CHECK (purpose IN ('self', 'system')),
    status text NOT NULL DEFAULT 'CREATED_INTENT'
        CHECK (status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED', 'CREDITED', 'REJECTED', 'FAILED')),
    tx_hash text CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    error_code text,
    expires_at timestamptz,
    submitted_at timestamptz,
    submission_count bigint NOT NULL DEFAULT 0,
    -- The bonus's share of a credited purchase: decided with the credit, so that a later setting does not change it.
    revenue_share numeric CHECK (revenue_share BETWEEN 0 AND 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payment_attempts_amounts_agree CHECK (amount_raw = amount_usd_cents * 10000),
    CONSTRAINT payment_attempts_intent_has_expiry
        CHECK (status <> 'CREATED_INTENT' OR (expires_at IS NOT NULL AND tx_hash IS NULL)),
    CONSTRAINT payment_attempts_submitted_has_hash
        CHECK (
            status NOT IN ('PENDING_UNVERIFIED', 'CREDITED')
            OR (tx_hash IS NOT NULL AND submitted_at IS NOT NULL AND expires_at IS NULL)
        ),
    CONSTRAINT payment_attempts_purchase_has_share
        CHECK ((revenue_share IS NOT NULL) = (status = 'CREDITED' AND purpose = 'self')),
    CONSTRAINT payment_attempts_error_iff_refused
        CHECK ((error_code IS NOT NULL) = (status IN ('REJECTED', 'FAILED')))
);
CREATE UNIQUE INDEX payment_attempts_hash_held_by_account
    ON payment_attempts (billing_account_id, chain_id, tx_hash)
    WHERE status IN ('PENDING_UNVERIFIED', 'CREDITED');
CREATE INDEX payment_attempts_by_hash ON payment_attempts (tx_hash) WHERE tx_hash IS NOT NULL;
CREATE INDEX payment_attempts_open
    ON payment_attempts (status, created_at) WHERE status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED');
CREATE INDEX payment_attempts_by_account ON payment_attempts (billing_account_id, created_at);

CREATE TABLE payment_events (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    attempt_id uuid NOT NULL REFERENCES payment_attempts (id),
    event_type text NOT NULL CHECK (event_type <> ''),
    from_status text,
    to_status text NOT NULL,
    error_code text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payment_events_by_attempt ON payment_events (attempt_id, id);

CREATE TABLE settled_transfers (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    log_index bigint NOT NULL CHECK (log_index >= 0),
    attempt_id uuid NOT NULL REFERENCES payment_attempts (id),
    block_number bigint NOT NULL CHECK (block_number >= 0),
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    from_address text NOT NULL CHECK (from_address ~ '^0x[0-9a-fA-F]{40}$'),
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw > 0),
    surplus_raw numeric(78, 0) NOT NULL CHECK (surplus_raw >= 0),
    -- What the payer sent in other transfers of the same transaction, which pay nothing.
    unapplied_raw numeric(78, 0) NOT NULL DEFAULT 0 CHECK (unapplied_raw >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT settled_transfers_one_attempt_per_transfer UNIQUE (chain_id, tx_hash, log_index),
    CONSTRAINT settled_transfers_one_transfer_per_attempt UNIQUE (attempt_id)
);
