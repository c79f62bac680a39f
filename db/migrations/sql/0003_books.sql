-- The books check: how far it has come, and what it has found wrong.

-- New entries are found by their number; each posting appends to this index's last page. On an expression, so that no
-- plan of another query takes it: who wants an account's last entry would go through everybody's until one is his.
CREATE UNIQUE INDEX credit_ledger_by_number ON credit_ledger ((entry_seq + 0));

-- Tables whose rows are numbered and never change. Numbers are given before the commit, so a lower one may appear after
-- a higher one: db/ledger/invariants.py says when a number can no longer appear.
CREATE TABLE books_checkpoints (
    stream text PRIMARY KEY CHECK (stream IN ('entries', 'lines', 'events')),
    -- All rows up to this number have been checked, and no other can appear among them.
    checked_to bigint NOT NULL DEFAULT 0,
    -- No row can appear any more up to this number.
    safe_to bigint NOT NULL DEFAULT 0,
    -- What safe_to becomes when everybody has finished who was under way when this was noted (books_checks.mark_xid).
    mark bigint NOT NULL DEFAULT 0,
    CHECK (0 <= checked_to AND checked_to <= safe_to AND safe_to <= mark)
);
INSERT INTO books_checkpoints (stream) VALUES ('entries'), ('lines'), ('events');

CREATE TABLE books_checks (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    mark_xid bigint NOT NULL DEFAULT 0,
    -- Sums of the journal lines that were checked.
    debits numeric(78, 0) NOT NULL DEFAULT 0,
    credits numeric(78, 0) NOT NULL DEFAULT 0,
    -- How often wrong lines were mended, and how often they had been when the sums were taken: where these differ the
    -- sums are of lines as they were before, and the next count of all lines makes new ones.
    lines_mended bigint NOT NULL DEFAULT 0,
    sums_of bigint NOT NULL DEFAULT 0,
    -- Where the round over old rows has come.
    round jsonb NOT NULL DEFAULT '{}',
    -- When the scheduled check, and one of everything, last came to their end.
    checked_at timestamptz,
    checked_in_full_at timestamptz
);
INSERT INTO books_checks DEFAULT VALUES;

CREATE TABLE books_violations (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    check_name text NOT NULL CHECK (check_name <> ''),
    -- The entry, account, attempt or line that it is about.
    subject text NOT NULL CHECK (subject <> ''),
    detail text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    announced_at timestamptz,
    resolution_announced_at timestamptz
);
CREATE UNIQUE INDEX books_violations_open ON books_violations (check_name, subject) WHERE resolved_at IS NULL;
CREATE INDEX books_violations_unannounced ON books_violations (id)
    WHERE announced_at IS NULL OR (resolved_at IS NOT NULL AND resolution_announced_at IS NULL);
