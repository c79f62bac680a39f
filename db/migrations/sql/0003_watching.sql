-- What the chain watcher sees, how far it has come, and what it or a reconciliation leaves to an operator.

-- Every transfer of the token to the treasury on the canonical chain, as far as it was followed.
CREATE TABLE observed_transfers (
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    tx_hash text NOT NULL CHECK (tx_hash ~ '^0x[0-9a-f]{64}$'),
    log_index bigint NOT NULL CHECK (log_index >= 0),
    block_number bigint NOT NULL CHECK (block_number >= 0),
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    block_time timestamptz NOT NULL,
    token text NOT NULL,
    from_address text NOT NULL CHECK (from_address ~ '^0x[0-9a-fA-F]{40}$'),
    to_address text NOT NULL CHECK (to_address ~ '^0x[0-9a-fA-F]{40}$'),
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw > 0),
    observed_at timestamptz NOT NULL DEFAULT now(),
    -- When it was handed to an attempt, found to be an attempt's already, or written down as a finding.
    handled_at timestamptz,
    attempt_id uuid REFERENCES payment_attempts (id),
    PRIMARY KEY (chain_id, tx_hash, log_index)
);
CREATE INDEX observed_transfers_by_block ON observed_transfers (chain_id, block_number);
CREATE INDEX observed_transfers_unhandled ON observed_transfers (chain_id, block_number) WHERE handled_at IS NULL;

-- Those whose block a reorganisation has taken off the canonical chain.
CREATE TABLE orphaned_transfers (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL,
    tx_hash text NOT NULL,
    log_index bigint NOT NULL,
    block_number bigint NOT NULL,
    block_hash text NOT NULL,
    from_address text NOT NULL,
    value_raw numeric(78, 0) NOT NULL,
    observed_at timestamptz NOT NULL,
    orphaned_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orphaned_transfers_by_transaction ON orphaned_transfers (chain_id, tx_hash);

-- The last block whose transfers are all in observed_transfers; the next look begins behind it.
CREATE TABLE chain_cursors (
    chain_id bigint NOT NULL,
    token text NOT NULL,
    to_address text NOT NULL,
    -- The first block that was ever read: what was paid before is nobody's business.
    first_block bigint NOT NULL CHECK (first_block >= 0),
    block_number bigint NOT NULL CHECK (block_number >= first_block - 1),
    block_hash text,
    -- The chain's height at that moment: the difference is the watcher's lag.
    head_number bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Since when the chain is followed: what was settled before may lie below first_block.
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, token, to_address)
);

-- Hashes of blocks that the cursor has passed: where the chain and these last agree, a reorganisation began.
CREATE TABLE watched_blocks (
    chain_id bigint NOT NULL,
    token text NOT NULL,
    to_address text NOT NULL,
    block_number bigint NOT NULL,
    block_hash text NOT NULL,
    PRIMARY KEY (chain_id, token, to_address, block_number)
);

-- What nobody but an operator may decide. `key` comes from facts, so that the same thing is found once.
CREATE TABLE findings (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    key text NOT NULL UNIQUE CHECK (key <> ''),
    kind text NOT NULL CHECK (kind <> ''),
    chain_id bigint,
    tx_hash text,
    log_index bigint,
    attempt_id uuid REFERENCES payment_attempts (id),
    billing_account_id text REFERENCES billing_accounts (id),
    value_raw numeric(78, 0),
    detail text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    -- When the outside was told of it.
    announced_at timestamptz,
    resolved_at timestamptz,
    -- The remedy that was taken.
    resolution text,
    CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);
CREATE INDEX findings_open ON findings (created_at) WHERE resolved_at IS NULL;
CREATE INDEX findings_to_announce ON findings (created_at) WHERE announced_at IS NULL;
CREATE INDEX findings_by_attempt ON findings (attempt_id) WHERE attempt_id IS NOT NULL;
CREATE INDEX findings_by_transfer ON findings (chain_id, tx_hash, log_index) WHERE tx_hash IS NOT NULL;
