-- Webhooks: events are written by the triggers of what causes them, in its transaction, so that no writer can forget one
-- and none is written for what is rolled back. An account that takes no event of a type costs one read of an index.

-- Whether an endpoint that takes p_events takes a type. NULL takes all, 'payment.*' all of its group.
CREATE OR REPLACE FUNCTION public.takes_webhook(p_events text[], p_type text)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT p_events IS NULL OR p_type = ANY (p_events) OR split_part(p_type, '.', 1) || '.*' = ANY (p_events)
$function$;

-- Whether any endpoint of an account takes a type: without one no body is built. In PL/pgSQL, which keeps its plan.
CREATE OR REPLACE FUNCTION public.is_webhook_taken(p_billing_account_id text, p_type text)
 RETURNS boolean
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    RETURN EXISTS (SELECT FROM webhook_endpoints e
                    WHERE e.billing_account_id = p_billing_account_id AND e.disabled_at IS NULL
                      AND takes_webhook(e.events, p_type));
END $function$;

-- Write an event, whose body is what is sent at every try, and a delivery for each endpoint that takes it.
--
-- Its caller holds the lock of the subject's row, so that each sequence is above those before it, whatever a clock does.
-- Microseconds, and not a count: events are deleted when they are old, and a count would begin again.
CREATE OR REPLACE FUNCTION public.record_webhook_event(p_billing_account_id text, p_type text, p_subject text, p_data json)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_event_id uuid := gen_random_uuid();
    v_sequence bigint;
BEGIN
    SELECT greatest((extract(epoch FROM v_now) * 1e6)::bigint, coalesce(max(e.sequence) + 1, 0)) INTO v_sequence
      FROM webhook_events e WHERE e.subject = p_subject;
    INSERT INTO webhook_events (id, billing_account_id, type, subject, sequence, body, created_at)
    VALUES (v_event_id, p_billing_account_id, p_type, p_subject, v_sequence,
            json_build_object('type', p_type, 'timestamp', as_utc(v_now), 'sequence', v_sequence, 'data', p_data), v_now);
    INSERT INTO webhook_deliveries (event_id, endpoint_id, billing_account_id)
    SELECT v_event_id, e.id, p_billing_account_id FROM webhook_endpoints e
     WHERE e.billing_account_id = p_billing_account_id AND e.disabled_at IS NULL AND takes_webhook(e.events, p_type);
END $function$;

-- A time as it is written in a body.
CREATE OR REPLACE FUNCTION public.as_utc(p_time timestamp with time zone)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT to_char(p_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$function$;

-- A payment has taken a step.
CREATE OR REPLACE FUNCTION public.record_webhook_of_payment()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_step text := CASE NEW.status WHEN 'PENDING_UNVERIFIED' THEN 'submitted' WHEN 'CREDITED' THEN 'credited'
                                   WHEN 'REVERSED' THEN 'reversed' WHEN 'REJECTED' THEN 'failed'
                                   WHEN 'FAILED' THEN 'failed' END;
    v_deposit deposits;
BEGIN
    IF v_step IS NULL THEN
        RAISE EXCEPTION 'no webhook event is defined for status %', NEW.status;
    END IF;
    IF is_webhook_taken(NEW.billing_account_id, 'payment.' || v_step) THEN
        PERFORM record_webhook_event(NEW.billing_account_id, 'payment.' || v_step, 'payment:' || NEW.id, json_build_object(
            'attemptId', NEW.id,
            'billingAccountId', NEW.billing_account_id,
            'kind', NEW.kind,
            'purpose', NEW.purpose,
            'status', NEW.status,
            'errorCode', NEW.error_code,
            'chainId', NEW.chain_id,
            'token', NEW.token,
            'from', NEW.from_address,
            'to', NEW.to_address,
            'amountRaw', coalesce(NEW.value_raw, NEW.amount_raw)::text,
            'amountUsdCents', NEW.amount_usd_cents,
            'amountCredits', credits_of_attempt(NEW.amount_credits, NEW.amount_usd_cents),
            'txHash', NEW.tx_hash));
    END IF;
    IF NEW.kind = 'deposit' AND v_step IN ('credited', 'reversed') THEN
        FOR v_deposit IN SELECT d.* FROM deposits d WHERE d.attempt_id = NEW.id LOOP
            PERFORM record_webhook_of_deposit(v_deposit, 'deposit.' || v_step);
        END LOOP;
    END IF;
    RETURN NULL;
END $function$;

-- An event about a deposit, whose row its caller has written or locked, or whose attempt's.
CREATE OR REPLACE FUNCTION public.record_webhook_of_deposit(p_deposit deposits, p_type text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_address deposit_addresses;
BEGIN
    SELECT * INTO v_address FROM deposit_addresses a WHERE a.id = p_deposit.address_id;
    IF is_webhook_taken(v_address.billing_account_id, p_type) THEN
        PERFORM record_webhook_event(v_address.billing_account_id, p_type, 'deposit:' || p_deposit.id, json_build_object(
            'depositId', p_deposit.id,
            'billingAccountId', v_address.billing_account_id,
            'chargeId', v_address.charge_id,
            'attemptId', p_deposit.attempt_id,
            'method', p_deposit.method_id,
            'chainId', p_deposit.chain_id,
            'token', p_deposit.token,
            'from', p_deposit.from_address,
            'address', v_address.address,
            'amountRaw', p_deposit.value_raw::text,
            'amountCredits', CASE WHEN p_deposit.quote_id IS NOT NULL OR p_deposit.credits > 0
                                    OR NOT EXISTS (SELECT FROM price_sources s WHERE s.method_id = p_deposit.method_id)
                                  THEN p_deposit.credits END,
            'txHash', p_deposit.tx_hash,
            'logIndex', p_deposit.log_index,
            'blockNumber', p_deposit.block_number));
    END IF;
END $function$;

-- A transfer to a deposit address has come into a block, or is in none any more (log_index below zero). Of one that was
-- credited, its attempt's reversal is the event.
CREATE OR REPLACE FUNCTION public.record_webhook_of_transfer()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_was_in boolean := TG_OP <> 'INSERT' AND OLD.log_index >= 0;
    v_is_in boolean := TG_OP <> 'DELETE' AND NEW.log_index >= 0;
    v_deposit deposits := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    IF v_was_in <> v_is_in AND NOT EXISTS (SELECT FROM payment_attempts a
                                            WHERE a.id = v_deposit.attempt_id AND a.status IN ('CREDITED', 'REVERSED')) THEN
        PERFORM record_webhook_of_deposit(v_deposit, CASE WHEN v_is_in THEN 'deposit.seen' ELSE 'deposit.reversed' END);
    END IF;
    RETURN NULL;
END $function$;

-- A charge has another status.
CREATE OR REPLACE FUNCTION public.record_webhook_of_charge()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_type text := 'charge.' || NEW.status;
BEGIN
    IF is_webhook_taken(NEW.billing_account_id, v_type) THEN
        PERFORM record_webhook_event(NEW.billing_account_id, v_type, 'charge:' || NEW.id, json_build_object(
            'chargeId', NEW.id,
            'billingAccountId', NEW.billing_account_id,
            'method', NEW.method_id,
            'address', (SELECT a.address FROM deposit_addresses a WHERE a.id = NEW.address_id),
            'status', NEW.status,
            'amountUsdCents', NEW.amount_usd_cents,
            'amountRaw', NEW.quoted_amount_raw::text,
            'receivedRaw', r.seen_raw::text,
            'creditedRaw', r.credited_raw::text,
            'priceExpiresAt', as_utc(NEW.price_expires_at),
            'metadata', NEW.metadata))
          FROM received_for_charge(NEW.id) r;
    END IF;
    RETURN NULL;
END $function$;

-- A charge of a call has crossed a threshold.
CREATE OR REPLACE FUNCTION public.record_webhook_of_alert()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_type text := CASE NEW.kind WHEN 'balance_exhausted' THEN 'balance.exhausted' ELSE 'limit.reached' END;
BEGIN
    IF is_webhook_taken(NEW.billing_account_id, v_type) THEN
        PERFORM record_webhook_event(NEW.billing_account_id, v_type, 'account:' || NEW.billing_account_id,
            json_strip_nulls(json_build_object(
                'billingAccountId', NEW.billing_account_id,
                'balanceCredits', NEW.balance_credits,
                'reference', NEW.reference,
                'limit', CASE WHEN NEW.period IS NOT NULL THEN NEW.kind END,
                'keyId', NEW.virtual_key_id,
                'period', NEW.period,
                'periodStart', NEW.period_start,
                'thresholdPercent', NEW.threshold_percent,
                'spentCredits', NEW.spent_credits,
                'limitCredits', NEW.limit_credits)));
    END IF;
    RETURN NULL;
END $function$;

-- Make an endpoint with its first secret. No role may write these tables, and workers alone read a secret. An account
-- has at most p_limit. outcome: created, not_managed, too_many.
CREATE OR REPLACE FUNCTION public.create_webhook_endpoint(p_id uuid, p_billing_account_id text, p_url text, p_events text[], p_secret bytea, p_limit integer)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT may_manage_account(p_billing_account_id) THEN
        RETURN 'not_managed';
    END IF;
    -- Who makes another one at the same time waits here, and is counted.
    PERFORM pg_advisory_xact_lock(hashtextextended('webhook_endpoints:' || p_billing_account_id, 0));
    IF (SELECT count(*) >= p_limit FROM webhook_endpoints e
         WHERE e.billing_account_id = p_billing_account_id AND e.disabled_reason IS DISTINCT FROM 'deleted') THEN
        RETURN 'too_many';
    END IF;
    INSERT INTO webhook_endpoints (id, billing_account_id, url, events, created_by_user_id)
    VALUES (p_id, p_billing_account_id, p_url, p_events, current_tenant());
    INSERT INTO webhook_secrets (endpoint_id, secret) VALUES (p_id, p_secret);
    RETURN 'created';
END $function$;

-- Sign with another secret, and for p_overlap with the old ones, too: at most four, so that a header has an end. False
-- where there is no such endpoint that the caller may manage.
CREATE OR REPLACE FUNCTION public.rotate_webhook_secret(p_endpoint_id uuid, p_secret bytea, p_overlap interval)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM FROM webhook_endpoints e
      WHERE e.id = p_endpoint_id AND e.disabled_reason IS DISTINCT FROM 'deleted'
        AND may_manage_account(e.billing_account_id) FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE webhook_secrets s SET expires_at = clock_timestamp() + p_overlap
     WHERE s.endpoint_id = p_endpoint_id AND s.expires_at IS NULL;
    DELETE FROM webhook_secrets s
     WHERE s.endpoint_id = p_endpoint_id
       AND (s.expires_at <= clock_timestamp()
            OR s.id NOT IN (SELECT k.id FROM webhook_secrets k WHERE k.endpoint_id = p_endpoint_id
                             ORDER BY k.id DESC LIMIT 3));
    INSERT INTO webhook_secrets (endpoint_id, secret) VALUES (p_endpoint_id, p_secret);
    RETURN true;
END $function$;

-- Send nothing more to an endpoint, for good. False where there is none that the caller may manage.
CREATE OR REPLACE FUNCTION public.delete_webhook_endpoint(p_endpoint_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE webhook_endpoints e SET disabled_at = clock_timestamp(), disabled_reason = 'deleted'
     WHERE e.id = p_endpoint_id AND e.disabled_reason IS DISTINCT FROM 'deleted'
       AND may_manage_account(e.billing_account_id);
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM webhook_secrets s WHERE s.endpoint_id = p_endpoint_id;
    UPDATE webhook_deliveries d SET state = 'stopped', due_at = NULL, ended_at = clock_timestamp()
     WHERE d.endpoint_id = p_endpoint_id AND d.state = 'pending';
    RETURN true;
END $function$;

-- Send to an endpoint again that its receiver had stopped: what happens from now on, and what is asked for. True as well
-- where nothing had stopped it; false where there is none that the caller may manage.
CREATE OR REPLACE FUNCTION public.enable_webhook_endpoint(p_endpoint_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE webhook_endpoints e SET disabled_at = NULL, disabled_reason = NULL
     WHERE e.id = p_endpoint_id AND e.disabled_reason IS DISTINCT FROM 'deleted'
       AND may_manage_account(e.billing_account_id);
    RETURN FOUND;
END $function$;

-- Send an event to an endpoint again, whatever came of it, with all tries before it. False where there is no such delivery
-- that the caller may manage, or its endpoint takes nothing any more.
CREATE OR REPLACE FUNCTION public.redeliver_webhook(p_delivery_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE webhook_deliveries d
       SET state = 'pending', round = d.round + 1, failures = 0, tried_since = clock_timestamp(),
           due_at = clock_timestamp(), started_at = NULL, ended_at = NULL
      FROM webhook_endpoints e
     WHERE d.id = p_delivery_id AND e.id = d.endpoint_id AND e.disabled_at IS NULL
       AND may_manage_account(e.billing_account_id);
    RETURN FOUND;
END $function$;

-- Send an endpoint again what it takes of a time, or with p_only_failed what was given up of it; how many events. What no
-- endpoint of the account took when it happened was not written. The same events: who has had one already recognizes it.
CREATE OR REPLACE FUNCTION public.replay_webhooks(p_endpoint_id uuid, p_from timestamp with time zone, p_to timestamp with time zone, p_only_failed boolean)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT p_only_failed THEN
        INSERT INTO webhook_deliveries (event_id, endpoint_id, billing_account_id)
        SELECT v.id, e.id, e.billing_account_id FROM webhook_endpoints e
          JOIN webhook_events v ON v.billing_account_id = e.billing_account_id AND takes_webhook(e.events, v.type)
         WHERE e.id = p_endpoint_id AND e.disabled_at IS NULL AND may_manage_account(e.billing_account_id)
           AND v.created_at BETWEEN p_from AND p_to
        ON CONFLICT (event_id, endpoint_id) DO NOTHING;
    END IF;
    RETURN (SELECT count(*) FILTER (WHERE redeliver_webhook(d.id))
              FROM webhook_deliveries d JOIN webhook_events v ON v.id = d.event_id
             WHERE d.endpoint_id = p_endpoint_id AND v.created_at BETWEEN p_from AND p_to
               AND (d.state = 'failed' OR NOT p_only_failed));
END $function$;

-- Delete at most p_limit deliveries that ended so long ago, with their tries, then events that no delivery has, and
-- secrets that have expired; how many of each. No role may delete from these tables.
CREATE OR REPLACE FUNCTION public.prune_webhooks(p_limit integer, p_older_than interval)
 RETURNS TABLE(pruned_from text, pruned_rows bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_limit < 1 OR p_older_than < interval '4 days' THEN
        RAISE EXCEPTION 'expected a limit of 1 or more, and four days or more' USING ERRCODE = 'check_violation';
    END IF;
    RETURN QUERY
    WITH old AS (
        SELECT d.id FROM webhook_deliveries d WHERE d.ended_at < clock_timestamp() - p_older_than
         ORDER BY d.ended_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), tries AS (
        DELETE FROM webhook_tries t USING old WHERE t.delivery_id = old.id
    ), ended AS (
        DELETE FROM webhook_deliveries d USING old WHERE d.id = old.id RETURNING 1)
    SELECT 'webhook_deliveries', count(*) FROM ended;
    RETURN QUERY
    WITH old AS (
        SELECT e.id FROM webhook_events e
         WHERE e.created_at < clock_timestamp() - p_older_than
           AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.event_id = e.id)
         ORDER BY e.created_at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), ended AS (
        DELETE FROM webhook_events e USING old WHERE e.id = old.id RETURNING 1)
    SELECT 'webhook_events', count(*) FROM ended;
    RETURN QUERY
    WITH ended AS (
        DELETE FROM webhook_secrets s WHERE s.expires_at < clock_timestamp() RETURNING 1)
    SELECT 'webhook_secrets', count(*) FROM ended;
END $function$;
