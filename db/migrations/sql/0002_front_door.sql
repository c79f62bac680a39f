-- What the HTTP interface keeps: sign-in challenges, sessions, idempotency keys, rate limits; and indexes for lists.

-- In the order in which a settlement takes them: a worker that runs meanwhile waits, and neither waits for the other.
LOCK TABLE payment_attempts, users, billing_accounts, credit_ledger IN SHARE ROW EXCLUSIVE MODE;

CREATE TABLE login_challenges (
    nonce text PRIMARY KEY CHECK (nonce ~ '^[0-9A-Za-z]{16,64}$'),
    wallet_address text NOT NULL CHECK (wallet_address ~ '^0x[0-9a-fA-F]{40}$'),
    -- The exact bytes that the wallet is asked to sign: nothing is ever parsed back out of what a caller sends.
    message text NOT NULL UNIQUE CHECK (length(message) BETWEEN 1 AND 2000),
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX login_challenges_by_expiry ON login_challenges (expires_at);

CREATE TABLE sessions (
    -- SHA-256 of the cookie's value: who reads this table cannot sign in with it.
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    user_id text NOT NULL REFERENCES users (id),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE idempotency_keys (
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL CHECK (length(request_hash) = 32),
    answer jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (billing_account_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Unlogged: a crash of the server forgets who was quick, which harms nobody, and taking from a bucket costs no WAL.
CREATE UNLOGGED TABLE rate_limits (
    bucket text PRIMARY KEY CHECK (length(bucket) BETWEEN 1 AND 200),
    full_at timestamptz NOT NULL
);
CREATE INDEX rate_limits_by_age ON rate_limits (full_at);

CREATE INDEX payment_attempts_by_time ON payment_attempts (created_at, id);
CREATE INDEX payment_attempts_by_status ON payment_attempts (status, created_at);
-- Entries are appended in the order of time, so a few kilobytes tell where a day begins.
CREATE INDEX credit_ledger_by_time ON credit_ledger USING brin (created_at);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['login_challenges', 'sessions', 'idempotency_keys', 'rate_limits'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', v_table);
    END LOOP;
END $$;

CREATE POLICY own_idempotency_keys ON idempotency_keys FOR ALL TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))
    WITH CHECK (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
GRANT SELECT, INSERT ON idempotency_keys TO settle_app;

-- Challenges and sessions are needed before anybody's scope is known. No role may read these tables: each door wants
-- the secret (a nonce, a token's hash) and tells about that one row.

-- Store a challenge. Sweeps a few expired ones, so that what strangers ask for does not pile up.
CREATE FUNCTION open_login_challenge(p_nonce text, p_wallet_address text, p_message text, p_expires_at timestamptz)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM login_challenges WHERE nonce IN (
        SELECT c.nonce FROM login_challenges c WHERE c.expires_at < clock_timestamp()
         ORDER BY c.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    INSERT INTO login_challenges (nonce, wallet_address, message, expires_at)
    VALUES (p_nonce, p_wallet_address, p_message, p_expires_at);
END $$;

-- The challenge of a nonce, or of an exact message, that can still be used.
CREATE FUNCTION find_login_challenge(p_nonce text, p_message text)
RETURNS TABLE (nonce text, wallet_address text, message text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT c.nonce, c.wallet_address, c.message FROM login_challenges c
     WHERE (c.nonce = p_nonce OR c.message = p_message) AND c.nonce = coalesce(p_nonce, c.nonce)
       AND c.message = coalesce(p_message, c.message) AND c.expires_at > clock_timestamp()
$$;

-- Use a challenge up and open a session for its wallet, whose account is opened where it has none: all or nothing.
-- No row where the challenge is gone. The caller has verified the signature. The session that the browser had before
-- ends, so that a token which was there before the login is worth nothing after it.
CREATE FUNCTION open_session(p_nonce text, p_token_hash bytea, p_expires_at timestamptz, p_former_token_hash bytea)
RETURNS TABLE (user_id text, billing_account_id text, wallet_address text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
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
END $$;

CREATE FUNCTION find_session(p_token_hash bytea)
RETURNS TABLE (user_id text, billing_account_id text, wallet_address text, expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT s.user_id, s.billing_account_id, u.wallet_address, s.expires_at
      FROM sessions s JOIN users u ON u.id = s.user_id
     WHERE s.token_hash = p_token_hash AND s.expires_at > clock_timestamp()
$$;

-- End the session of a token, or with p_everywhere all sessions of its user; how many ended.
CREATE FUNCTION end_session(p_token_hash bytea, p_everywhere boolean) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH ended AS (
        DELETE FROM sessions s
         WHERE s.token_hash = p_token_hash
            OR (p_everywhere AND s.user_id = (SELECT f.user_id FROM find_session(p_token_hash) f))
        RETURNING 1)
    SELECT count(*) FROM ended
$$;

-- For operators: end all sessions of a wallet; how many ended.
CREATE FUNCTION end_sessions_of_wallet(p_wallet_address text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH ended AS (
        DELETE FROM sessions s USING users u
         WHERE u.id = s.user_id AND lower(u.wallet_address) = lower(p_wallet_address)
        RETURNING 1)
    SELECT count(*) FROM ended
$$;

-- Take one from each bucket in turn: NULL where all had one, else the seconds until the one that is empty has one.
-- Generic cell rate algorithm: a bucket is the moment at which it will be full again. Callers name their buckets in
-- one order (account before address), so two of them never wait for each other.
CREATE FUNCTION take_from_rate_limits(p_buckets text[], p_per_minute integer[]) RETURNS double precision
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_now timestamptz;
    v_step interval;
    v_full_at timestamptz;
BEGIN
    FOR i IN 1 .. cardinality(p_buckets) LOOP
        v_now := clock_timestamp();
        v_step := interval '1 minute' / p_per_minute[i];
        INSERT INTO rate_limits AS r (bucket, full_at) VALUES (p_buckets[i], v_now + v_step)
        ON CONFLICT (bucket) DO UPDATE SET full_at = greatest(r.full_at, v_now) + v_step
         WHERE greatest(r.full_at, v_now) + v_step <= v_now + interval '1 minute';
        IF NOT FOUND THEN
            SELECT r.full_at INTO v_full_at FROM rate_limits r WHERE r.bucket = p_buckets[i];
            RETURN extract(epoch FROM greatest(v_full_at + v_step - v_now - interval '1 minute', interval '0'));
        END IF;
    END LOOP;
    DELETE FROM rate_limits WHERE bucket IN (
        SELECT r.bucket FROM rate_limits r WHERE r.full_at < clock_timestamp()
         ORDER BY r.full_at LIMIT 3 FOR UPDATE SKIP LOCKED);
    RETURN NULL;
END $$;

REVOKE ALL ON FUNCTION open_login_challenge, find_login_challenge, open_session, find_session, end_session,
    end_sessions_of_wallet, take_from_rate_limits FROM PUBLIC;
GRANT EXECUTE ON FUNCTION open_login_challenge, find_login_challenge, open_session, find_session, end_session,
    take_from_rate_limits TO settle_app;
GRANT EXECUTE ON FUNCTION end_sessions_of_wallet TO settle_service;
