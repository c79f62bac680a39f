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

-- The oldest revision of the code that may run with a revision of the schema; NULL where that revision does not say.
CREATE FUNCTION schema_compatible_from(p_revision text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.compatible_from FROM schema_compatibility c WHERE c.revision = p_revision
$$;

-- Write, at most every five seconds for each role, however many processes ask: what one of them has committed proves it
-- for all. The seconds since the last proof; 0 means that this transaction's commit is one.
-- A full disk stops what needs new blocks first, which an update of one row does not. So some blocks are written to a
-- temporary file, which leaves nothing behind.
CREATE FUNCTION prove_writes() RETURNS double precision
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_age double precision;
BEGIN
    INSERT INTO write_probes (role_name, written_at)
    SELECT session_user, clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM write_probes w WHERE w.role_name = session_user)
    ON CONFLICT (role_name) DO NOTHING;
    -- Whoever holds the row is proving it now.
    UPDATE write_probes w SET written_at = clock_timestamp()
     WHERE w.role_name = (
        SELECT due.role_name FROM write_probes due
         WHERE due.role_name = session_user
           AND due.written_at NOT BETWEEN clock_timestamp() - interval '5 seconds' AND clock_timestamp()
           FOR UPDATE SKIP LOCKED);
    IF FOUND THEN
        PERFORM set_config('work_mem', '64kB', true);
        PERFORM count(*) FROM generate_series(1, 10000);
        RETURN 0;
    END IF;
    SELECT extract(epoch FROM clock_timestamp() - w.written_at) INTO v_age
      FROM write_probes w WHERE w.role_name = session_user;
    RETURN coalesce(v_age, 0);
END $$;

REVOKE ALL ON FUNCTION schema_compatible_from, prove_writes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION schema_compatible_from, prove_writes TO settle_app, settle_settlement, settle_service;
