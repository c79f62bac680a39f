-- Which revisions of the code may run with the schema as it is, and the proof that a commit reaches the disk.

-- One row for each migration from this one on; `settle migrate` writes it in the migration's own transaction.
CREATE TABLE schema_compatibility (
    revision text PRIMARY KEY CHECK (revision ~ '^[0-9]{4}$'),
    -- Code of this revision and of every later one may run with the schema.
    compatible_from text NOT NULL CHECK (compatible_from ~ '^[0-9]{4}$'),
    applied_at timestamptz NOT NULL DEFAULT now(),
    CHECK (compatible_from <= revision)
);

-- When a process of a role last proved that it can write. Half of each page stays free, so that an update finds room
-- beside its row and changes no index (HOT).
CREATE TABLE write_probes (
    role_name text PRIMARY KEY,
    written_at timestamptz NOT NULL
) WITH (fillfactor = 50);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['schema_compatibility', 'write_probes'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', v_table);
    END LOOP;
END $$;
