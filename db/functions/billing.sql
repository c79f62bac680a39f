-- Holds and charges of calls. No role may write these tables: each function runs with the rights of their owner, in one
-- short call that locks in one order: rate limit, key, hold, account, sums of the day.

-- Set credits aside for a call, or say why not. One call decides everything, so that nothing that it decides by can
-- change in between: the key (a revoked one is refused in every process by the next call), limits, rates, funds.
--
-- p_amount_min: hold less where less is available, down to this; NULL holds all of p_amount or nothing.
-- outcome: held, or unknown_key, key_revoked, key_expired, model_not_allowed, attribution_not_allowed,
-- billing_not_granted, rate_limited, insufficient_credits (limit_source says which limit).
CREATE OR REPLACE FUNCTION public.hold_credits(p_hold_id uuid, p_key_hash text, p_request_id text, p_amount bigint, p_amount_min bigint, p_dialect text, p_model text, p_upstream text, p_is_streamed boolean, p_attribute_to text, p_bill_to text, p_owner text, p_lease_seconds double precision, p_rate_bucket text, p_rate_per_minute integer, p_markup_factor numeric, p_price_version text, p_rates jsonb, p_input_tokens bigint, p_output_tokens_limit bigint, OUT outcome text, OUT limit_source text, OUT account_id text, OUT key_id uuid, OUT held bigint, OUT balance bigint, OUT available bigint, OUT all_held bigint, OUT retry_after_seconds double precision, OUT rate_remaining integer)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_key virtual_keys;
    v_account billing_accounts;
    v_room numeric;
    v_taken record;
BEGIN
    held := 0;
    SELECT * INTO v_key FROM virtual_keys k WHERE k.key_hash = p_key_hash;
    outcome := CASE
        WHEN v_key.id IS NULL OR NOT v_key.active THEN 'unknown_key'
        WHEN v_key.revoked_at IS NOT NULL THEN 'key_revoked'
        WHEN v_key.expires_at <= clock_timestamp() THEN 'key_expired'
        WHEN v_key.models IS NOT NULL AND p_model <> ALL (v_key.models) THEN 'model_not_allowed'
        WHEN p_attribute_to IS NOT NULL AND NOT v_key.may_attribute THEN 'attribution_not_allowed'
        END;
    -- Few calls name another account: the tables are read for those only, and no condition with a subquery is planned for
    -- the others.
    IF outcome IS NULL AND p_attribute_to IS NOT NULL THEN
        PERFORM FROM billing_accounts b WHERE b.id = p_attribute_to;
        outcome := CASE WHEN NOT FOUND THEN 'attribution_not_allowed' END;
    END IF;
    IF outcome IS NULL AND p_bill_to <> v_key.billing_account_id THEN
        PERFORM FROM billing_grants g
          WHERE g.payer_account_id = p_bill_to AND g.grantee_account_id = v_key.billing_account_id
            AND g.revoked_at IS NULL;
        outcome := CASE WHEN NOT FOUND THEN 'billing_not_granted' END;
    END IF;
    key_id := v_key.id;
    account_id := coalesce(p_bill_to, v_key.billing_account_id);
    IF outcome IS NOT NULL THEN
        RETURN;
    END IF;
    v_taken := take_from_rate_limit(
        p_rate_bucket || ':' || coalesce(p_attribute_to, v_key.billing_account_id), p_rate_per_minute);
    retry_after_seconds := v_taken.retry_after_seconds;
    rate_remaining := v_taken.remaining;
    IF retry_after_seconds IS NOT NULL THEN
        outcome := 'rate_limited';
        RETURN;
    END IF;
    held := p_amount;
    IF v_key.limit_day_credits IS NOT NULL OR v_key.limit_month_credits IS NOT NULL THEN
        -- Calls with a limited key wait here for each other: what one holds, the next one sees.
        PERFORM FROM virtual_keys k WHERE k.id = v_key.id FOR NO KEY UPDATE;
        v_room := room_of_key(v_key);
        held := amount_within(p_amount, p_amount_min, v_room);
        limit_source := CASE WHEN held IS NULL THEN 'key_limit' END;
    END IF;
    SELECT * INTO v_account FROM billing_accounts b WHERE b.id = account_id FOR NO KEY UPDATE;
    balance := v_account.balance_credits;
    all_held := v_account.held_credits;
    IF held IS NOT NULL AND (v_account.limit_day_credits IS NOT NULL OR v_account.limit_month_credits IS NOT NULL) THEN
        v_room := room_of_account(v_account);
        held := amount_within(held, p_amount_min, v_room);
        limit_source := CASE WHEN held IS NULL THEN 'account_limit' END;
    END IF;
    IF held IS NOT NULL AND v_account.kind <> 'platform_service' THEN
        v_room := balance - all_held;
        held := amount_within(held, p_amount_min, v_room);
        -- Where the balance itself is enough, calls in flight are the reason: waiting may help.
        limit_source := CASE WHEN held IS NOT NULL THEN NULL
                             WHEN balance >= coalesce(p_amount_min, p_amount) THEN 'in_flight' ELSE 'balance' END;
    END IF;
    IF held IS NULL THEN
        outcome := 'insufficient_credits';
        held := 0;
        available := greatest(v_room, 0);
        RETURN;
    END IF;
    UPDATE billing_accounts b SET held_credits = b.held_credits + held WHERE b.id = account_id
    RETURNING b.held_credits INTO all_held;
    INSERT INTO credit_holds (id, billing_account_id, virtual_key_id, request_id, amount_credits, dialect, model, upstream,
                              is_streamed, attributed_to, owner, lease_until, markup_factor, price_version, rates,
                              input_tokens_estimate, output_tokens_limit)
    VALUES (p_hold_id, account_id, v_key.id, p_request_id, held, p_dialect, p_model, p_upstream, p_is_streamed,
            p_attribute_to, p_owner, clock_timestamp() + make_interval(secs => p_lease_seconds), p_markup_factor,
            p_price_version, p_rates, p_input_tokens, p_output_tokens_limit);
    -- Once a minute is often enough to know that a key is in use.
    IF v_key.last_used_at IS NULL OR v_key.last_used_at < now() - interval '1 minute' THEN
        UPDATE virtual_keys k SET last_used_at = now() WHERE k.id = v_key.id;
    END IF;
    outcome := 'held';
    available := balance - all_held;
END $function$;

-- What a key's limits leave, after what was spent and what is held; NULL where it has none. One statement, so that a
-- capture between two of them is not missed.
CREATE OR REPLACE FUNCTION public.room_of_key(p_key virtual_keys)
 RETURNS numeric
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT least(p_key.limit_day_credits - spent.on_day, p_key.limit_month_credits - spent.in_month) - held.credits
      FROM (SELECT coalesce(sum(u.charged_credits) FILTER (WHERE u.day = (now() AT TIME ZONE 'UTC')::date), 0) AS on_day,
                   coalesce(sum(u.charged_credits), 0) AS in_month
              FROM usage_by_day u
             WHERE u.virtual_key_id = p_key.id AND u.day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date) spent,
           (SELECT coalesce(sum(h.amount_credits), 0) AS credits FROM credit_holds h
             WHERE h.virtual_key_id = p_key.id AND h.state = 'held') held
$function$;

-- The same of an account, whose row is locked.
CREATE OR REPLACE FUNCTION public.room_of_account(p_account billing_accounts)
 RETURNS numeric
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT least(p_account.limit_day_credits - spent.on_day, p_account.limit_month_credits - spent.in_month)
           - p_account.held_credits
      FROM (SELECT coalesce(sum(u.charged_credits) FILTER (WHERE u.day = (now() AT TIME ZONE 'UTC')::date), 0) AS on_day,
                   coalesce(sum(u.charged_credits), 0) AS in_month
              FROM usage_by_day u
             WHERE u.billing_account_id = p_account.id
               AND u.day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date) spent
$function$;

-- p_amount where there is room for it, else the room where that is at least p_amount_min, else NULL.
-- A room of NULL is no bound.
CREATE OR REPLACE FUNCTION public.amount_within(p_amount bigint, p_amount_min bigint, p_room numeric)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN p_room IS NULL OR p_amount <= p_room THEN p_amount
                WHEN p_room >= p_amount_min THEN p_room::bigint END
$function$;

-- The owner is alive: extend the lease, and note what was produced. False where the hold is resolved, or another's.
CREATE OR REPLACE FUNCTION public.renew_hold(p_hold_id uuid, p_owner text, p_lease_seconds double precision, p_output_bytes bigint, p_upstream_id text)
 RETURNS boolean
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    WITH renewed AS (
        UPDATE credit_holds h
           SET lease_until = clock_timestamp() + make_interval(secs => p_lease_seconds),
               output_bytes = greatest(h.output_bytes, p_output_bytes),
               upstream_id = coalesce(p_upstream_id, h.upstream_id)
         WHERE h.id = p_hold_id AND h.owner = p_owner AND h.state = 'held'
        RETURNING 1)
    SELECT count(*) > 0 FROM renewed
$function$;

-- Release the hold of a call that cost nothing to anyone. False where it is resolved already, or unknown.
CREATE OR REPLACE FUNCTION public.void_hold(p_hold_id uuid)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_hold credit_holds;
BEGIN
    UPDATE credit_holds h SET state = 'voided', resolved_at = now() WHERE h.id = p_hold_id AND h.state = 'held'
    RETURNING h.* INTO v_hold;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE billing_accounts b SET held_credits = b.held_credits - v_hold.amount_credits
     WHERE b.id = v_hold.billing_account_id;
    RETURN true;
END $function$;

-- The part of a receipt that follows from the call itself, the same for every source.
CREATE OR REPLACE FUNCTION public.receipt_of_call(p_user_cost_usd numeric, p_provider_cost_usd numeric, p_absorbed_cost_usd numeric, p_charge_reason text, p_provider text, p_tokens bigint[], p_estimated boolean, p_doubt text, p_doubt_detail text, p_unit_prices jsonb)
 RETURNS charge_receipts
 LANGUAGE plpgsql
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_receipt charge_receipts;
BEGIN
    v_receipt.id := gen_random_uuid();
    v_receipt.provider_cost_usd := p_provider_cost_usd;
    v_receipt.user_cost_usd := p_user_cost_usd;
    v_receipt.absorbed_cost_usd := p_absorbed_cost_usd;
    v_receipt.charge_reason := p_charge_reason;
    v_receipt.provider := p_provider;
    v_receipt.input_tokens := p_tokens[1];
    v_receipt.cached_input_tokens := p_tokens[2];
    v_receipt.cache_write_tokens := p_tokens[3];
    v_receipt.output_tokens := p_tokens[4];
    v_receipt.reasoning_tokens := p_tokens[5];
    v_receipt.estimated := p_estimated;
    v_receipt.doubt := p_doubt;
    v_receipt.doubt_detail := p_doubt_detail;
    v_receipt.unit_prices := p_unit_prices;
    RETURN v_receipt;
END $function$;

-- Charge a call: its hold is resolved, the entry posted, the receipt written, the day's sums moved, in one transaction.
--
-- p_tokens: input, cached input, cache writes, output, reasoning.
-- p_only_lapsed: only where the lease has lapsed, for who charges in the place of an owner that died.
-- outcome: captured, or repeated (it was captured before: what was charged then), not_lapsed, voided, unknown_hold.
CREATE OR REPLACE FUNCTION public.capture_hold(p_hold_id uuid, p_only_lapsed boolean, p_charged bigint, p_grace bigint, p_user_cost_usd numeric, p_provider_cost_usd numeric, p_absorbed_cost_usd numeric, p_charge_reason text, p_provider text, p_upstream_id text, p_tokens bigint[], p_estimated boolean, p_doubt text, p_doubt_detail text, p_unit_prices jsonb, OUT outcome text, OUT receipt_id uuid, OUT charged bigint, OUT uncollected bigint, OUT balance bigint, OUT available bigint)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_hold credit_holds;
    v_account billing_accounts;
    v_receipt charge_receipts;
BEGIN
    UPDATE credit_holds h
       SET state = 'captured', resolved_at = now(), upstream_id = coalesce(p_upstream_id, h.upstream_id)
     WHERE h.id = p_hold_id AND h.state = 'held' AND NOT (p_only_lapsed AND h.lease_until >= clock_timestamp())
    RETURNING h.* INTO v_hold;
    IF NOT FOUND THEN
        SELECT * INTO v_hold FROM credit_holds h WHERE h.id = p_hold_id;
        outcome := CASE
            WHEN NOT FOUND THEN 'unknown_hold'
            WHEN v_hold.state = 'captured' THEN 'repeated'
            WHEN v_hold.state = 'voided' THEN 'voided'
            ELSE 'not_lapsed' END;
        SELECT r.id, r.charged_credits, r.uncollected_credits INTO receipt_id, charged, uncollected
          FROM charge_references f JOIN charge_receipts r ON r.id = f.receipt_id AND r.created_at = f.receipt_created_at
         WHERE f.source_system = 'gateway' AND f.source_reference = p_hold_id::text;
        SELECT b.balance_credits, b.balance_credits - b.held_credits INTO balance, available
          FROM billing_accounts b WHERE b.id = v_hold.billing_account_id;
        RETURN;
    END IF;
    outcome := 'captured';
    SELECT * INTO v_account FROM billing_accounts b WHERE b.id = v_hold.billing_account_id FOR NO KEY UPDATE;
    v_receipt := receipt_of_call(p_user_cost_usd, p_provider_cost_usd, p_absorbed_cost_usd, p_charge_reason, p_provider,
                                 p_tokens, p_estimated, p_doubt, p_doubt_detail, p_unit_prices);
    v_receipt.request_id := v_hold.request_id;
    v_receipt.hold_id := p_hold_id;
    v_receipt.billing_account_id := v_hold.billing_account_id;
    v_receipt.virtual_key_id := v_hold.virtual_key_id;
    -- More than the hold only as far as what the account has left for it, and the grace that all calls share.
    v_receipt.charged_credits := CASE WHEN v_account.kind = 'platform_service' THEN p_charged ELSE
        least(p_charged, greatest(v_hold.amount_credits,
            v_account.balance_credits - (v_account.held_credits - v_hold.amount_credits) + p_grace)) END;
    v_receipt.uncollected_credits := p_charged - v_receipt.charged_credits;
    IF v_receipt.uncollected_credits > 0 THEN
        v_receipt.user_cost_usd := usd_of_credits(v_receipt.charged_credits);
        v_receipt.absorbed_cost_usd := greatest(p_absorbed_cost_usd, p_provider_cost_usd - v_receipt.user_cost_usd);
    END IF;
    v_receipt.source_system := 'gateway';
    v_receipt.source_reference := p_hold_id::text;
    v_receipt.model := v_hold.model;
    v_receipt.price_version := v_hold.price_version;
    v_receipt.attributed_to := v_hold.attributed_to;
    v_receipt.upstream_id := v_hold.upstream_id;
    v_receipt.called_at := v_hold.created_at;
    PERFORM post_charge(v_receipt, v_hold.amount_credits);
    receipt_id := v_receipt.id;
    charged := v_receipt.charged_credits;
    uncollected := v_receipt.uncollected_credits;
    -- The account is locked: this is what it has now.
    balance := v_account.balance_credits - charged;
    available := balance - (v_account.held_credits - v_hold.amount_credits);
END $function$;

-- Charge a call that an external proxy made, and has no hold for. Of the same reference and body it answers what was
-- charged then; another body is a conflict. The account pays whatever it has: the call was made.
-- outcome: charged, repeated, conflict.
CREATE OR REPLACE FUNCTION public.ingest_charge(p_source_system text, p_source_reference text, p_body_hash bytea, p_request_id text, p_billing_account_id text, p_charged bigint, p_user_cost_usd numeric, p_provider_cost_usd numeric, p_absorbed_cost_usd numeric, p_charge_reason text, p_model text, p_provider text, p_upstream_id text, p_tokens bigint[], p_estimated boolean, p_doubt text, p_doubt_detail text, p_price_version text, p_unit_prices jsonb, p_called_at timestamp with time zone, OUT outcome text, OUT receipt_id uuid, OUT charged bigint)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_receipt charge_receipts;
BEGIN
    -- Who ingests the same reference at the same time waits here, and then finds its receipt.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_source_system || ':' || p_source_reference, 0));
    SELECT r.* INTO v_receipt FROM charge_references f
      JOIN charge_receipts r ON r.id = f.receipt_id AND r.created_at = f.receipt_created_at
     WHERE f.source_system = p_source_system AND f.source_reference = p_source_reference;
    IF FOUND THEN
        outcome := CASE WHEN v_receipt.body_hash = p_body_hash THEN 'repeated' ELSE 'conflict' END;
        receipt_id := v_receipt.id;
        charged := v_receipt.charged_credits;
        RETURN;
    END IF;
    v_receipt := receipt_of_call(p_user_cost_usd, p_provider_cost_usd, p_absorbed_cost_usd, p_charge_reason, p_provider,
                                 p_tokens, p_estimated, p_doubt, p_doubt_detail, p_unit_prices);
    v_receipt.request_id := p_request_id;
    v_receipt.billing_account_id := p_billing_account_id;
    SELECT k.id INTO v_receipt.virtual_key_id FROM virtual_keys k
     WHERE k.billing_account_id = p_billing_account_id AND k.is_default;
    v_receipt.charged_credits := p_charged;
    v_receipt.uncollected_credits := 0;
    v_receipt.source_system := p_source_system;
    v_receipt.source_reference := p_source_reference;
    v_receipt.model := p_model;
    v_receipt.price_version := p_price_version;
    v_receipt.upstream_id := p_upstream_id;
    v_receipt.body_hash := p_body_hash;
    v_receipt.called_at := p_called_at;
    PERFORM post_charge(v_receipt, 0);
    outcome := 'charged';
    receipt_id := v_receipt.id;
    charged := p_charged;
END $function$;

-- Post what a call cost, and write its receipt. The entry has the user's price as revenue, the provider's cost as an
-- expense owed to providers, and the part of it that no price was charged for as an expense of its own.
-- p_release is taken off the account's held credits by the same update.
CREATE OR REPLACE FUNCTION public.post_charge(p_receipt charge_receipts, p_release bigint)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_reference text := p_receipt.source_system || ':' || p_receipt.source_reference;
    v_charged bigint := p_receipt.charged_credits;
    v_cost bigint := credits_of_usd(p_receipt.provider_cost_usd);
    v_absorbed bigint := credits_of_usd(p_receipt.absorbed_cost_usd);
    v_account billing_accounts;
BEGIN
    UPDATE billing_accounts b
       SET balance_credits = b.balance_credits - v_charged, held_credits = b.held_credits - p_release
     WHERE b.id = p_receipt.billing_account_id RETURNING b.* INTO v_account;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no billing account %', p_receipt.billing_account_id USING ERRCODE = 'foreign_key_violation';
    END IF;
    p_receipt.created_at := now();
    IF v_charged > 0 OR v_cost > 0 THEN
        p_receipt.entry_id := gen_random_uuid();
        IF v_charged > 0 THEN
            INSERT INTO credit_ledger (id, billing_account_id, virtual_key_id, amount, balance_after, reason, reference)
            VALUES (p_receipt.entry_id, p_receipt.billing_account_id, p_receipt.virtual_key_id, -v_charged,
                    v_account.balance_credits, 'llm_usage', v_reference);
        ELSE
            INSERT INTO general_entries (id, reason, reference)
            VALUES (p_receipt.entry_id, 'absorbed_cost', v_reference);
        END IF;
        INSERT INTO journal_lines (entry_id, account_code, side, amount)
        SELECT p_receipt.entry_id, l.account_code, l.side, l.amount
          FROM (VALUES ('credits:' || p_receipt.billing_account_id, 'debit', v_charged),
                       ('revenue:usage', 'credit', v_charged),
                       ('expense:providers', 'debit', v_cost - v_absorbed),
                       ('expense:absorbed', 'debit', v_absorbed),
                       ('payable:providers', 'credit', v_cost)) l (account_code, side, amount)
         WHERE l.amount > 0;
    END IF;
    INSERT INTO charge_receipts SELECT p_receipt.*;
    INSERT INTO usage_by_day AS u (day, billing_account_id, virtual_key_id, model, attributed_to, calls, charged_credits,
                                   provider_cost_usd, absorbed_cost_usd, input_tokens, cached_input_tokens, output_tokens)
    VALUES ((now() AT TIME ZONE 'UTC')::date, p_receipt.billing_account_id, p_receipt.virtual_key_id, p_receipt.model,
            coalesce(p_receipt.attributed_to, ''), 1, v_charged, p_receipt.provider_cost_usd,
            p_receipt.absorbed_cost_usd, p_receipt.input_tokens, p_receipt.cached_input_tokens, p_receipt.output_tokens)
    ON CONFLICT (billing_account_id, day, virtual_key_id, model, attributed_to) DO UPDATE
       SET calls = u.calls + 1,
           charged_credits = u.charged_credits + excluded.charged_credits,
           provider_cost_usd = u.provider_cost_usd + excluded.provider_cost_usd,
           absorbed_cost_usd = u.absorbed_cost_usd + excluded.absorbed_cost_usd,
           input_tokens = u.input_tokens + excluded.input_tokens,
           cached_input_tokens = u.cached_input_tokens + excluded.cached_input_tokens,
           output_tokens = u.output_tokens + excluded.output_tokens;
    PERFORM note_crossings(v_account, p_receipt.virtual_key_id, v_charged, v_reference);
END $function$;

-- Note the thresholds that a charge crosses: the balance's end, and 80 and 100 percent of a limit, once in its period.
CREATE OR REPLACE FUNCTION public.note_crossings(p_account billing_accounts, p_key_id uuid, p_charged bigint, p_reference text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_key virtual_keys;
    v_today date := (now() AT TIME ZONE 'UTC')::date;
    v_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
BEGIN
    IF p_account.balance_credits <= 0 AND p_account.balance_credits + p_charged > 0 THEN
        INSERT INTO billing_alerts (kind, billing_account_id, balance_credits, reference)
        VALUES ('balance_exhausted', p_account.id, p_account.balance_credits, p_reference);
    END IF;
    SELECT * INTO v_key FROM virtual_keys k WHERE k.id = p_key_id;
    IF num_nonnulls(p_account.limit_day_credits, p_account.limit_month_credits, v_key.limit_day_credits,
                    v_key.limit_month_credits) = 0 THEN
        RETURN;
    END IF;
    INSERT INTO billing_alerts (kind, billing_account_id, virtual_key_id, period, period_start, threshold_percent,
                                balance_credits, spent_credits, limit_credits, reference)
    SELECT l.kind, p_account.id, CASE l.kind WHEN 'key_limit' THEN p_key_id END, l.period, l.period_start, t.percent,
           p_account.balance_credits, s.credits, l.credits, p_reference
      FROM (VALUES ('account_limit', 'day', v_today, p_account.limit_day_credits),
                   ('account_limit', 'month', v_month, p_account.limit_month_credits),
                   ('key_limit', 'day', v_today, v_key.limit_day_credits),
                   ('key_limit', 'month', v_month, v_key.limit_month_credits)) l (kind, period, period_start, credits),
           (VALUES (80), (100)) t (percent),
           LATERAL (SELECT coalesce(sum(u.charged_credits), 0) AS credits FROM usage_by_day u
                     WHERE u.day >= l.period_start
                       AND CASE l.kind WHEN 'key_limit' THEN u.virtual_key_id = p_key_id
                                       ELSE u.billing_account_id = p_account.id END) s
     WHERE s.credits * 100 >= l.credits * t.percent
    ON CONFLICT DO NOTHING;
END $function$;

-- A charge is identified by its source and the source's reference, once over all months.
CREATE OR REPLACE FUNCTION public.note_charge_reference()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO charge_references (source_system, source_reference, receipt_id, receipt_created_at)
    VALUES (NEW.source_system, NEW.source_reference, NEW.id, NEW.created_at);
    RETURN NULL;
END $function$;

-- What was set aside is write-once, and a hold is resolved once.
CREATE OR REPLACE FUNCTION public.guard_hold()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF OLD.state <> 'held' OR (NEW.id, NEW.billing_account_id, NEW.virtual_key_id, NEW.request_id, NEW.amount_credits,
        NEW.model, NEW.rates, NEW.markup_factor, NEW.attributed_to, NEW.created_at)
       IS DISTINCT FROM (OLD.id, OLD.billing_account_id, OLD.virtual_key_id, OLD.request_id, OLD.amount_credits,
        OLD.model, OLD.rates, OLD.markup_factor, OLD.attributed_to, OLD.created_at) THEN
        RAISE EXCEPTION 'hold % is resolved, or what it sets aside is changed', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'credit_holds_write_once';
    END IF;
    RETURN NEW;
END $function$;

-- Open the partitions of this month and of p_months_ahead more; how many are new. One whose receipts are in the default
-- partition already stays there.
CREATE OR REPLACE FUNCTION public.open_receipt_months(p_months_ahead integer)
 RETURNS integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_from timestamptz;
    v_to timestamptz;
    v_name text;
    v_opened integer := 0;
BEGIN
    FOR i IN 0 .. p_months_ahead LOOP
        v_from := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i)) AT TIME ZONE 'UTC';
        v_to := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i + 1)) AT TIME ZONE 'UTC';
        v_name := 'charge_receipts_' || to_char(v_from AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass(v_name) IS NOT NULL
            OR EXISTS (SELECT FROM charge_receipts_other r WHERE r.created_at >= v_from AND r.created_at < v_to);
        EXECUTE format('CREATE TABLE %I PARTITION OF charge_receipts FOR VALUES FROM (%L) TO (%L)', v_name, v_from, v_to);
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_name);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_name);
        v_opened := v_opened + 1;
    END LOOP;
    RETURN v_opened;
END $function$;

-- The charge of a request, for who holds the key: by key hash, because the gateway has no user's scope.
CREATE OR REPLACE FUNCTION public.find_key(p_key_hash text, OUT key_id uuid, OUT account_id text, OUT owner_user_id text, OUT state text, OUT models text[], OUT balance bigint, OUT held bigint)
 RETURNS record
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT k.id, b.id, b.owner_user_id,
           CASE WHEN NOT k.active THEN 'unknown_key' WHEN k.revoked_at IS NOT NULL THEN 'key_revoked'
                WHEN k.expires_at <= clock_timestamp() THEN 'key_expired' ELSE 'active' END,
           k.models, b.balance_credits, b.held_credits
      FROM virtual_keys k JOIN billing_accounts b ON b.id = k.billing_account_id
     WHERE k.key_hash = p_key_hash
$function$;
