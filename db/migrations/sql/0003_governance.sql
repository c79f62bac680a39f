-- The platform's heartbeats, and the door through which housekeeping deletes what has expired.

CREATE TABLE governance_heartbeats (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    -- The workflow that it belongs to: an activity that runs again finds its row.
    key text NOT NULL UNIQUE CHECK (key <> ''),
    -- Each follows one other: of two at the same moment one sees what the other found, and a crossing is found once.
    previous_id bigint REFERENCES governance_heartbeats (id),
    scheduled_at timestamptz NOT NULL,
    status text NOT NULL CHECK (status IN ('ok', 'low', 'failed')),
    account_present boolean NOT NULL,
    is_flagged boolean NOT NULL,
    balance_credits bigint,
    threshold_credits bigint NOT NULL,
    -- Where the balance could not be read it is what the heartbeat before found.
    is_low boolean NOT NULL,
    crossed boolean NOT NULL,
    last_revenue_share_at timestamptz,
    schema_revision text,
    worker_version text NOT NULL,
    chain_id bigint NOT NULL,
    head_number bigint,
    head_age_seconds bigint,
    problems jsonb NOT NULL DEFAULT '[]',
    -- Of one that crossed: when its event arrived. Until then later heartbeats send it again.
    low_balance_announced_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (is_low OR NOT crossed)
);
CREATE UNIQUE INDEX governance_heartbeats_one_after_another ON governance_heartbeats (coalesce(previous_id, 0));
CREATE INDEX governance_heartbeats_to_announce ON governance_heartbeats (id)
    WHERE crossed AND low_balance_announced_at IS NULL;

-- Delete at most p_limit expired rows of each kind; how many of each were deleted. Who comes later finds the rest.
-- No role may read these tables or delete from them: this deletes what is over, and tells numbers.
CREATE FUNCTION prune_expired(p_limit integer, p_keys_older_than interval)
RETURNS TABLE (pruned_from text, pruned_rows bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF p_limit < 1 OR p_keys_older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'wants a limit of 1 or more, and an hour or more for keys' USING ERRCODE = 'check_violation';
    END IF;
    RETURN QUERY
    WITH ended AS (
        DELETE FROM sessions WHERE token_hash = ANY (ARRAY(
            SELECT s.token_hash FROM sessions s WHERE s.expires_at < clock_timestamp()
             ORDER BY s.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT 'sessions', count(*) FROM ended;
    RETURN QUERY
    WITH ended AS (
        DELETE FROM login_challenges WHERE nonce = ANY (ARRAY(
            SELECT c.nonce FROM login_challenges c WHERE c.expires_at < clock_timestamp()
             ORDER BY c.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT 'login_challenges', count(*) FROM ended;
    RETURN QUERY
    WITH ended AS (
        DELETE FROM rate_limits WHERE bucket = ANY (ARRAY(
            SELECT r.bucket FROM rate_limits r WHERE r.full_at < clock_timestamp() - interval '1 minute'
             ORDER BY r.full_at LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT 'rate_limits', count(*) FROM ended;
    RETURN QUERY
    WITH old AS (
        SELECT k.billing_account_id, k.key FROM idempotency_keys k
         WHERE k.created_at < clock_timestamp() - p_keys_older_than
         ORDER BY k.created_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), ended AS (
        DELETE FROM idempotency_keys k USING old
         WHERE k.billing_account_id = old.billing_account_id AND k.key = old.key
        RETURNING 1)
    SELECT 'idempotency_keys', count(*) FROM ended;
END $$;
REVOKE ALL ON FUNCTION prune_expired FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_expired TO settle_service;
