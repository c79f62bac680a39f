-- Gaps in what was read of the chain, finality that does not come, clocks.

-- The chain watcher -----------------------------------------------------------------------------------------------

-- Gaps: blocks that no node returned, for one token and treasury; their transfers are not in observed_transfers.
-- The cursor is moved past a gap in the transaction that records it here; gaps are read again periodically.
CREATE TABLE chain_gaps (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL,
    token text NOT NULL,
    to_address text NOT NULL,
    -- What of it has not been read yet.
    first_block bigint NOT NULL CHECK (first_block >= 0),
    last_block bigint NOT NULL CHECK (last_block >= first_block),
    reason text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    tried_at timestamptz NOT NULL DEFAULT now(),
    -- When the last of it was read after all.
    read_at timestamptz
);
CREATE INDEX chain_gaps_unread ON chain_gaps (chain_id, token, to_address, last_block) WHERE read_at IS NULL;

-- What the watcher waits for, and since when; empty while it goes on. A token and treasury that neither the settings nor
-- an attempt names any more is retired: its cursor stays where it is.
ALTER TABLE chain_cursors ADD COLUMN waits_for text, ADD COLUMN waits_since timestamptz,
    ADD COLUMN retired_at timestamptz;

ALTER TABLE chain_gaps ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON chain_gaps TO CURRENT_USER USING (true) WITH CHECK (true);
