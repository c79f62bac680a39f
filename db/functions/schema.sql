-- The schema itself: which code may run with it, and the proof that a commit reaches the disk.

-- The oldest revision of the code that may run with a revision of the schema; NULL where that revision does not say.
CREATE OR REPLACE FUNCTION public.schema_compatible_from(p_revision text)
 RETURNS text
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT c.compatible_from FROM schema_compatibility c WHERE c.revision = p_revision
$function$;

-- Write, at most every five seconds for each role, however many processes ask: what one of them has committed proves it
-- for all. The seconds since the last proof; 0 means that this transaction's commit is one.
-- A full disk stops what needs new blocks first, which an update of one row does not. So some blocks are written to a
-- temporary file, which leaves nothing behind.
CREATE OR REPLACE FUNCTION public.prove_writes()
 RETURNS double precision
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_age double precision;
BEGIN
    INSERT INTO write_probes (role_name, written_at)
    SELECT session_user, clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM write_probes w WHERE w.role_name = session_user)
    ON CONFLICT (role_name) DO NOTHING;
    -- The transaction that holds the row's lock is proving it now.
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
END $function$;
