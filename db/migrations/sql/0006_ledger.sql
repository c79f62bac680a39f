-- Journal entries that change no account's credits, and the chart's accounts for usage (seeds.sql).

-- The header of such an entry: what a provider takes for a call that no account is charged for.
CREATE TABLE general_entries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    reason text NOT NULL CHECK (reason IN ('absorbed_cost')),
    reference text NOT NULL CHECK (reference <> ''),
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT general_entries_once_per_reference UNIQUE (reason, reference)
);
CREATE INDEX general_entries_by_time ON general_entries USING brin (created_at);

-- A line names an entry of the one kind or of the other. Its header is written in the same transaction, and neither
-- header is ever deleted: the trigger that checks an entry finds the header, or refuses the line.
ALTER TABLE journal_lines DROP CONSTRAINT journal_lines_entry_id_fkey;

CREATE TRIGGER general_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON general_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE CONSTRAINT TRIGGER general_entries_balanced AFTER INSERT ON general_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_entry_balanced();

ALTER TABLE credit_ledger
    ADD CONSTRAINT credit_ledger_usage_takes CHECK (reason <> 'llm_usage' OR (amount < 0 AND reference IS NOT NULL)) NOT VALID;

ALTER TABLE general_entries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON general_entries TO CURRENT_USER USING (true) WITH CHECK (true);
