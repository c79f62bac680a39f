-- What the gateway does of a call besides holding and charging: claims by Idempotency-Key, another upstream's turn at it,
-- and what a key may read of its account's calls. By key hash, because the gateway has no user's scope.

-- Claim a call before it is made. A claim whose call is not in flight any more, and has no answer stored, is free again:
-- its owner died, and its hold was resolved.
-- outcome: claimed, in_flight, answered (body is NULL where it was streamed), conflict (another request), unknown_key,
-- key_revoked, key_expired. request_id is that of the call which has the claim.
CREATE OR REPLACE FUNCTION public.claim_call(p_key_hash text, p_key text, p_request_hash bytea, p_request_id text, p_hold_id uuid, p_lease_seconds double precision, OUT outcome text, OUT key_id uuid, OUT request_id text, OUT status integer, OUT headers jsonb, OUT body bytea)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_claim call_claims;
    v_lease_until timestamptz := clock_timestamp() + make_interval(secs => p_lease_seconds);
BEGIN
    SELECT k.key_id, k.state INTO key_id, outcome FROM find_key(p_key_hash) k;
    outcome := coalesce(outcome, 'unknown_key');
    IF outcome <> 'active' THEN
        RETURN;
    END IF;
    request_id := p_request_id;
    INSERT INTO call_claims (virtual_key_id, key, request_hash, request_id, hold_id, lease_until)
    VALUES (key_id, p_key, p_request_hash, p_request_id, p_hold_id, v_lease_until)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        outcome := 'claimed';
        RETURN;
    END IF;
    SELECT * INTO v_claim FROM call_claims c WHERE c.virtual_key_id = claim_call.key_id AND c.key = p_key FOR UPDATE;
    IF NOT FOUND THEN
        -- Given up a moment ago: the next try gets it.
        outcome := 'in_flight';
        RETURN;
    END IF;
    request_id := v_claim.request_id;
    IF v_claim.request_hash <> p_request_hash THEN
        outcome := 'conflict';
    ELSIF v_claim.status IS NOT NULL THEN
        outcome := 'answered';
        status := v_claim.status;
        headers := v_claim.headers;
        body := v_claim.body;
    ELSIF v_claim.lease_until > clock_timestamp() OR EXISTS (
        -- The answer is stored a moment after the charge.
        SELECT FROM credit_holds h WHERE h.id = v_claim.hold_id
           AND (h.state = 'held' OR h.resolved_at > clock_timestamp() - interval '30 seconds')) THEN
        outcome := 'in_flight';
    ELSE
        UPDATE call_claims c SET request_id = p_request_id, hold_id = p_hold_id, lease_until = v_lease_until
         WHERE c.virtual_key_id = claim_call.key_id AND c.key = p_key;
        request_id := p_request_id;
        outcome := 'claimed';
    END IF;
END $function$;

-- Store a claimed call's answer, to be given again; with p_status NULL give the claim up. False where another call has
-- the claim by now.
CREATE OR REPLACE FUNCTION public.finish_call(p_key_id uuid, p_key text, p_request_id text, p_status integer, p_headers jsonb, p_body bytea)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_status IS NULL THEN
        DELETE FROM call_claims c
         WHERE c.virtual_key_id = p_key_id AND c.key = p_key AND c.request_id = p_request_id AND c.status IS NULL;
    ELSE
        UPDATE call_claims c SET status = p_status, headers = p_headers, body = p_body
         WHERE c.virtual_key_id = p_key_id AND c.key = p_key AND c.request_id = p_request_id AND c.status IS NULL;
    END IF;
    RETURN FOUND;
END $function$;

-- Another upstream is tried with the same call. False where the hold is resolved, or another's.
CREATE OR REPLACE FUNCTION public.move_hold(p_hold_id uuid, p_owner text, p_upstream text)
 RETURNS boolean
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    WITH moved AS (
        UPDATE credit_holds h SET upstream = p_upstream, upstream_id = NULL
         WHERE h.id = p_hold_id AND h.owner = p_owner AND h.state = 'held'
        RETURNING 1)
    SELECT count(*) > 0 FROM moved
$function$;

-- What became of a request, for a key of the account that made it, or that pays for it. A request whose first upstream
-- took something and failed has two holds: the sums are of both.
CREATE OR REPLACE FUNCTION public.usage_of_request(p_key_hash text, p_request_id text)
 RETURNS TABLE(status text, model text, charged_credits bigint, held_credits bigint, input_tokens bigint, cached_input_tokens bigint, output_tokens bigint, reasoning_tokens bigint, estimated boolean, provider_cost_usd numeric, user_cost_usd numeric, created_at timestamp with time zone)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT CASE WHEN bool_or(h.state = 'held') THEN 'held' WHEN bool_or(h.state = 'captured') THEN 'charged'
                ELSE 'voided' END,
           min(h.model),
           coalesce(sum(r.charged_credits), 0)::bigint,
           coalesce(sum(h.amount_credits) FILTER (WHERE h.state = 'held'), 0)::bigint,
           coalesce(sum(r.input_tokens), 0)::bigint,
           coalesce(sum(r.cached_input_tokens), 0)::bigint,
           coalesce(sum(r.output_tokens), 0)::bigint,
           coalesce(sum(r.reasoning_tokens), 0)::bigint,
           coalesce(bool_or(r.estimated), false),
           coalesce(sum(r.provider_cost_usd), 0),
           coalesce(sum(r.user_cost_usd), 0),
           min(h.created_at)
      FROM find_key(p_key_hash) k
      JOIN credit_holds h ON h.request_id = p_request_id
      JOIN virtual_keys v ON v.id = h.virtual_key_id
      LEFT JOIN charge_references f ON f.source_system = 'gateway' AND f.source_reference = h.id::text
      LEFT JOIN charge_receipts r ON r.id = f.receipt_id AND r.created_at = f.receipt_created_at
     WHERE k.state = 'active' AND k.account_id IN (v.billing_account_id, h.billing_account_id)
     GROUP BY h.request_id
$function$;
