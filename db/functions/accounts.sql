-- Accounts: whose rows a process sees, wallets and their accounts, sign-in, sessions, rate limits.

-- The user in whose scope the transaction is; NULL outside of one, where row-level security shows nothing.
CREATE OR REPLACE FUNCTION public.current_tenant()
 RETURNS text
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT nullif(current_setting('settle.user_id', true), '')
$function$;

-- Whether the system tenant is there and flagged; NULL where it is missing. Tenants may not see its row.
CREATE OR REPLACE FUNCTION public.system_tenant_is_flagged()
 RETURNS boolean
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT is_system_tenant FROM billing_accounts WHERE id = 'cogni_system'
$function$;

-- The user, billing account and default key of a wallet; opens them when the wallet has none. Safe at once and twice.
CREATE OR REPLACE FUNCTION public.provision_wallet(p_wallet_address text)
 RETURNS TABLE(user_id text, billing_account_id text, created boolean)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    v_user_id text;
    v_account_id text;
    v_created boolean := false;
BEGIN
    INSERT INTO users (id, wallet_address) VALUES (gen_random_uuid()::text, p_wallet_address)
    ON CONFLICT DO NOTHING;
    -- The lock makes a second caller wait until the first one's account is there.
    SELECT u.id INTO v_user_id FROM users u WHERE lower(u.wallet_address) = lower(p_wallet_address) FOR UPDATE;
    SELECT b.id INTO v_account_id FROM billing_accounts b
     WHERE b.owner_user_id = v_user_id AND b.kind = 'personal' ORDER BY b.created_at, b.id LIMIT 1;
    IF NOT FOUND THEN
        v_created := true;
        v_account_id := gen_random_uuid()::text;
        INSERT INTO billing_accounts (id, owner_user_id) VALUES (v_account_id, v_user_id);
        INSERT INTO virtual_keys (billing_account_id, label, is_default) VALUES (v_account_id, 'Default', true);
    END IF;
    RETURN QUERY SELECT v_user_id, v_account_id, v_created;
END $function$;

-- Open an account of an organization, or of one of the platform's services, with its default key. An organization's owner
-- is its first member.
CREATE OR REPLACE FUNCTION public.open_account(p_id text, p_owner_user_id text, p_kind text, p_tier text, p_name text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO billing_accounts (id, owner_user_id, kind, tier, name)
    VALUES (p_id, p_owner_user_id, p_kind, p_tier, p_name);
    INSERT INTO virtual_keys (billing_account_id, label, is_default) VALUES (p_id, 'Default', true);
    IF p_kind = 'organization' THEN
        INSERT INTO account_members (billing_account_id, user_id, role) VALUES (p_id, p_owner_user_id, 'owner');
    END IF;
END $function$;

-- An address that cannot be a payer opens no account, by any path (`provision_wallet`, `open_session`): its credits
-- would have no owner.
CREATE OR REPLACE FUNCTION public.check_wallet_is_somebodys()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF non_payer_kind(NEW.wallet_address) IN ('nobody', 'token') THEN
        RAISE EXCEPTION '% is not a payer''s wallet: it cannot have an account', NEW.wallet_address
            USING ERRCODE = 'check_violation', CONSTRAINT = 'users_wallet_is_somebodys';
    END IF;
    RETURN NEW;
END $function$;

-- Store a challenge. Sweeps a few expired ones, so that anonymous requests do not accumulate rows.
CREATE OR REPLACE FUNCTION public.open_login_challenge(p_nonce text, p_wallet_address text, p_message text, p_expires_at timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    DELETE FROM login_challenges WHERE nonce IN (
        SELECT c.nonce FROM login_challenges c WHERE c.expires_at < clock_timestamp()
         ORDER BY c.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    INSERT INTO login_challenges (nonce, wallet_address, message, expires_at)
    VALUES (p_nonce, p_wallet_address, p_message, p_expires_at);
END $function$;

-- The challenge of a nonce, or of an exact message, that can still be used.
CREATE OR REPLACE FUNCTION public.find_login_challenge(p_nonce text, p_message text)
 RETURNS TABLE(nonce text, wallet_address text, message text)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT c.nonce, c.wallet_address, c.message FROM login_challenges c
     WHERE (c.nonce = p_nonce OR c.message = p_message) AND c.nonce = coalesce(p_nonce, c.nonce)
       AND c.message = coalesce(p_message, c.message) AND c.expires_at > clock_timestamp()
$function$;

-- Use a challenge up and open a session for its wallet, whose account is opened where it has none: all or nothing.
-- No row where the challenge was used or has expired. The caller has verified the signature. The browser's former
-- session ends, so that a token from before the login is worthless after it.
CREATE OR REPLACE FUNCTION public.open_session(p_nonce text, p_token_hash bytea, p_expires_at timestamp with time zone, p_former_token_hash bytea)
 RETURNS TABLE(user_id text, billing_account_id text, wallet_address text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    v_wallet text;
    v_user_id text;
    v_account_id text;
BEGIN
    DELETE FROM login_challenges c WHERE c.nonce = p_nonce AND c.expires_at > clock_timestamp()
    RETURNING c.wallet_address INTO v_wallet;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT p.user_id, p.billing_account_id INTO v_user_id, v_account_id FROM provision_wallet(v_wallet) p;
    DELETE FROM sessions s WHERE s.token_hash = p_former_token_hash;
    DELETE FROM sessions WHERE token_hash IN (
        SELECT s.token_hash FROM sessions s WHERE s.expires_at < clock_timestamp()
         ORDER BY s.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    INSERT INTO sessions (token_hash, user_id, billing_account_id, expires_at)
    VALUES (p_token_hash, v_user_id, v_account_id, p_expires_at);
    RETURN QUERY SELECT v_user_id, v_account_id, u.wallet_address FROM users u WHERE u.id = v_user_id;
END $function$;

-- The session of a token, as long as it lasts.
CREATE OR REPLACE FUNCTION public.find_session(p_token_hash bytea)
 RETURNS TABLE(user_id text, billing_account_id text, wallet_address text, expires_at timestamp with time zone)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT s.user_id, s.billing_account_id, u.wallet_address, s.expires_at
      FROM sessions s JOIN users u ON u.id = s.user_id
     WHERE s.token_hash = p_token_hash AND s.expires_at > clock_timestamp()
$function$;

-- End the session of a token, or with p_everywhere all sessions of its user; how many ended.
CREATE OR REPLACE FUNCTION public.end_session(p_token_hash bytea, p_everywhere boolean)
 RETURNS bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    WITH ended AS (
        DELETE FROM sessions s
         WHERE s.token_hash = p_token_hash
            OR (p_everywhere AND s.user_id = (SELECT f.user_id FROM find_session(p_token_hash) f))
        RETURNING 1)
    SELECT count(*) FROM ended
$function$;

-- For operators: end all sessions of a wallet; how many ended.
CREATE OR REPLACE FUNCTION public.end_sessions_of_wallet(p_wallet_address text)
 RETURNS bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    WITH ended AS (
        DELETE FROM sessions s USING users u
         WHERE u.id = s.user_id AND lower(u.wallet_address) = lower(p_wallet_address)
        RETURNING 1)
    SELECT count(*) FROM ended
$function$;

-- Take one token from each bucket, in order: NULL if all had one, else the seconds until the empty one has one.
-- Callers name their buckets in one order (account before address), so two of them never wait for each other.
CREATE OR REPLACE FUNCTION public.take_from_rate_limits(p_buckets text[], p_per_minute integer[])
 RETURNS double precision
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_taken record;
BEGIN
    FOR i IN 1 .. cardinality(p_buckets) LOOP
        v_taken := take_from_rate_limit(p_buckets[i], p_per_minute[i]);
        IF v_taken.retry_after_seconds IS NOT NULL THEN
            RETURN v_taken.retry_after_seconds;
        END IF;
    END LOOP;
    DELETE FROM rate_limits WHERE bucket IN (
        SELECT r.bucket FROM rate_limits r WHERE r.full_at < clock_timestamp()
         ORDER BY r.full_at LIMIT 3 FOR UPDATE SKIP LOCKED);
    RETURN NULL;
END $function$;

-- Take one token from a bucket: how many are left, or the seconds until there is one.
-- Generic cell rate algorithm: a bucket is stored as the time at which it will be full again.
CREATE OR REPLACE FUNCTION public.take_from_rate_limit(p_bucket text, p_per_minute integer, OUT retry_after_seconds double precision, OUT remaining integer)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_step interval := interval '1 minute' / p_per_minute;
    v_full_at timestamptz;
BEGIN
    INSERT INTO rate_limits AS r (bucket, full_at) VALUES (p_bucket, v_now + v_step)
    ON CONFLICT (bucket) DO UPDATE SET full_at = greatest(r.full_at, v_now) + v_step
     WHERE greatest(r.full_at, v_now) + v_step <= v_now + interval '1 minute'
    RETURNING r.full_at INTO v_full_at;
    IF FOUND THEN
        remaining := floor(extract(epoch FROM v_now + interval '1 minute' - v_full_at) * p_per_minute / 60);
    ELSE
        SELECT r.full_at INTO v_full_at FROM rate_limits r WHERE r.bucket = p_bucket;
        retry_after_seconds := extract(epoch FROM greatest(v_full_at + v_step - v_now - interval '1 minute',
                                                           interval '0'));
    END IF;
END $function$;

-- Delete at most p_limit expired rows of each kind; how many of each were deleted. Later calls delete the rest.
-- No role may read these tables or delete from them: this deletes expired rows only, and returns only counts.
CREATE OR REPLACE FUNCTION public.prune_expired(p_limit integer, p_keys_older_than interval)
 RETURNS TABLE(pruned_from text, pruned_rows bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_limit < 1 OR p_keys_older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'expected a limit of 1 or more, and an hour or more for keys' USING ERRCODE = 'check_violation';
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
    -- A call may be in flight for longer: its claim is renewed by nothing, and its hold is open.
    RETURN QUERY
    WITH old AS (
        SELECT c.virtual_key_id, c.key FROM call_claims c
         WHERE c.created_at < clock_timestamp() - p_keys_older_than AND c.lease_until < clock_timestamp()
           AND NOT EXISTS (SELECT FROM credit_holds h WHERE h.id = c.hold_id AND h.state = 'held')
         ORDER BY c.created_at LIMIT p_limit FOR UPDATE OF c SKIP LOCKED
    ), ended AS (
        DELETE FROM call_claims c USING old WHERE c.virtual_key_id = old.virtual_key_id AND c.key = old.key
        RETURNING 1)
    SELECT 'call_claims', count(*) FROM ended;
END $function$;

-- Whether the caller may make and revoke keys of an account: operators of any, in a user's scope its owner and admins.
CREATE OR REPLACE FUNCTION public.may_manage_account(p_billing_account_id text)
 RETURNS boolean
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT CASE WHEN pg_has_role(session_user, 'settle_service', 'MEMBER') THEN true
                ELSE EXISTS (SELECT FROM billing_accounts b
                              WHERE b.id = p_billing_account_id AND b.owner_user_id = current_tenant())
                  OR EXISTS (SELECT FROM account_members m
                              WHERE m.billing_account_id = p_billing_account_id AND m.user_id = current_tenant()
                                AND m.role IN ('owner', 'admin')) END
$function$;

-- Store a service key by the hash of its secret. False where the account is unknown, or the caller may not manage it.
-- Only operators give the right to attribute: it moves calls to another account's rate limit.
CREATE OR REPLACE FUNCTION public.create_key(p_id uuid, p_billing_account_id text, p_label text, p_key_hash text, p_key_hint text, p_expires_at timestamp with time zone, p_limit_day bigint, p_limit_month bigint, p_models text[], p_may_attribute boolean)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_may_attribute AND NOT pg_has_role(session_user, 'settle_service', 'MEMBER') THEN
        RAISE EXCEPTION 'only operators give a key the right to attribute' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT may_manage_account(p_billing_account_id) THEN
        RETURN false;
    END IF;
    INSERT INTO virtual_keys (id, billing_account_id, label, key_hash, key_hint, expires_at, limit_day_credits,
                              limit_month_credits, models, may_attribute, created_by_user_id)
    SELECT p_id, b.id, p_label, p_key_hash, p_key_hint, p_expires_at, p_limit_day, p_limit_month, p_models,
           p_may_attribute, current_tenant() FROM billing_accounts b WHERE b.id = p_billing_account_id;
    RETURN FOUND;
END $function$;

-- Replace a key by one with the same limits, which works at once; the old one works until p_old_until, or until it
-- expires where that is sooner. False where there is no such key in force that the caller may manage.
CREATE OR REPLACE FUNCTION public.rotate_key(p_old_id uuid, p_new_id uuid, p_key_hash text, p_key_hint text, p_old_until timestamp with time zone)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_old virtual_keys;
BEGIN
    SELECT * INTO v_old FROM virtual_keys k
     WHERE k.id = p_old_id AND k.key_hash IS NOT NULL AND k.revoked_at IS NULL AND k.rotated_to IS NULL
       AND may_manage_account(k.billing_account_id)
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO virtual_keys (id, billing_account_id, label, key_hash, key_hint, expires_at, limit_day_credits,
                              limit_month_credits, models, may_attribute, created_by_user_id)
    VALUES (p_new_id, v_old.billing_account_id, v_old.label, p_key_hash, p_key_hint, v_old.expires_at,
            v_old.limit_day_credits, v_old.limit_month_credits, v_old.models, v_old.may_attribute,
            coalesce(current_tenant(), v_old.created_by_user_id));
    UPDATE virtual_keys SET rotated_to = p_new_id, expires_at = least(expires_at, p_old_until) WHERE id = p_old_id;
    RETURN true;
END $function$;

-- Refuse a key from now on, in every process. False where it is unknown, revoked already, or the caller may not manage it.
CREATE OR REPLACE FUNCTION public.revoke_key(p_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE virtual_keys k SET revoked_at = now()
     WHERE k.id = p_id AND k.key_hash IS NOT NULL AND k.revoked_at IS NULL AND may_manage_account(k.billing_account_id);
    RETURN FOUND;
END $function$;

-- The members of an account, for who may manage it.
CREATE OR REPLACE FUNCTION public.members_of_account(p_billing_account_id text)
 RETURNS TABLE(user_id text, wallet_address text, role text, since timestamp with time zone)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT m.user_id, u.wallet_address, m.role, m.created_at
      FROM account_members m JOIN users u ON u.id = m.user_id
     WHERE m.billing_account_id = p_billing_account_id AND may_manage_account(p_billing_account_id)
     ORDER BY m.created_at, m.user_id
$function$;
