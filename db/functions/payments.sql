-- Payment attempts: their steps, who may take which, and what a credit and a reversal must come with.

-- What was agreed is write-once; a status only takes the legal steps (domain.payments.attempt.LEGAL_TRANSITIONS).
CREATE OR REPLACE FUNCTION public.guard_attempt()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'CREATED_INTENT' THEN
            RAISE EXCEPTION 'a payment attempt begins as CREATED_INTENT, not %', NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_first_status';
        END IF;
        -- A deposit's attempt says that money has come: the word of a worker, never of a process that people reach.
        IF NEW.kind = 'deposit' AND NOT (pg_has_role(current_user, 'settle_service', 'USAGE')
           OR pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID), 'USAGE')) THEN
            RAISE EXCEPTION 'role % may not make payment attempt % of a deposit', current_user, NEW.id
                USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'payment_attempts_deposit_by_worker';
        END IF;
        RETURN NEW;
    END IF;
    IF (NEW.id, NEW.billing_account_id, NEW.chain_id, NEW.token, NEW.to_address,
        NEW.amount_raw, NEW.amount_usd_cents, NEW.amount_credits, NEW.value_raw, NEW.cash_account, NEW.purpose, NEW.kind, NEW.created_at)
       IS DISTINCT FROM
       (OLD.id, OLD.billing_account_id, OLD.chain_id, OLD.token, OLD.to_address,
        OLD.amount_raw, OLD.amount_usd_cents, OLD.amount_credits, OLD.value_raw, OLD.cash_account, OLD.purpose, OLD.kind, OLD.created_at)
       -- Who pays by signature is known when a signature is claimed, which an open intent is once.
       OR ((NEW.from_address, NEW.authorization_nonce) IS DISTINCT FROM (OLD.from_address, OLD.authorization_nonce)
           AND NOT (OLD.kind = 'authorization' AND OLD.authorization_nonce IS NULL
                    AND OLD.status = 'CREATED_INTENT' AND NEW.status = 'CREATED_INTENT')) THEN
        RAISE EXCEPTION 'what was agreed in payment attempt % is write-once', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_write_once';
    END IF;
    IF OLD.status IN ('REJECTED', 'REVERSED')
       OR NOT (
           (NEW.status = OLD.status AND OLD.status NOT IN ('CREDITED', 'FAILED'))
           OR (OLD.status = 'CREATED_INTENT' AND NEW.status IN ('PENDING_UNVERIFIED', 'FAILED'))
           OR (OLD.status = 'PENDING_UNVERIFIED' AND NEW.status IN ('CREDITED', 'REJECTED', 'FAILED'))
           OR (OLD.status = 'CREDITED' AND NEW.status = 'REVERSED')
           -- It expired because its payment was unknown, and was paid in time.
           OR (OLD.status = 'FAILED' AND OLD.error_code = 'INTENT_EXPIRED' AND NEW.status = 'PENDING_UNVERIFIED')
       ) THEN
        RAISE EXCEPTION 'payment attempt % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_legal_transition';
    END IF;
    -- A credited attempt keeps what it was credited with.
    IF OLD.status = 'CREDITED' AND (NEW.tx_hash, NEW.submitted_at, NEW.submission_count, NEW.revenue_share)
       IS DISTINCT FROM (OLD.tx_hash, OLD.submitted_at, OLD.submission_count, OLD.revenue_share) THEN
        RAISE EXCEPTION 'what payment attempt % was credited with is write-once', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_write_once';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $function$;

-- Which steps of an attempt a role may take, in addition to what guard_attempt requires of every role. It runs with the
-- caller's rights, because only then current_user is the caller; inside the owner's functions that is the owner.
-- A role that is not known by its rights gets the least.
CREATE OR REPLACE FUNCTION public.guard_attempt_by_role()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_is_submission boolean := NEW.status = 'PENDING_UNVERIFIED' AND NEW.submission_count = OLD.submission_count + 1;
    v_is_credit boolean := NEW.status = 'CREDITED' AND OLD.status = 'PENDING_UNVERIFIED';
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID), 'USAGE') THEN
        RETURN NEW;
    END IF;
    IF pg_has_role(current_user, 'settle_service', 'USAGE') THEN
        IF v_is_credit AND NEW.purpose = 'self' THEN
            RAISE EXCEPTION 'role % may not credit payment attempt %: its buyer is credited by role settle_settlement',
                current_user, OLD.id
                USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'payment_attempts_step_of_role';
        END IF;
        RETURN NEW;
    END IF;
    IF NOT (
        NEW.status = OLD.status
        OR v_is_submission
        OR (pg_has_role(current_user, 'settle_settlement', 'USAGE')
            AND ((v_is_credit AND NEW.purpose = 'self') OR NEW.status IN ('REJECTED', 'FAILED')))
        OR (NEW.status = 'FAILED' AND OLD.status = 'CREATED_INTENT'
            AND NEW.error_code = 'INTENT_EXPIRED' AND OLD.expires_at <= clock_timestamp()
            -- A signature that was claimed may be used as long as nothing proves that it cannot be.
            -- As JSON: this text also runs on a schema that has no authorizations yet.
            AND to_jsonb(OLD) ->> 'authorization_nonce' IS NULL)
    ) THEN
        RAISE EXCEPTION 'role % may not take payment attempt % from % to %',
            current_user, OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'payment_attempts_step_of_role';
    END IF;
    -- What a submission writes changes with a submission only; a credit names the transaction that paid.
    IF NOT v_is_submission AND (
        (NEW.submitted_at, NEW.submission_count, NEW.expires_at)
            IS DISTINCT FROM (OLD.submitted_at, OLD.submission_count, OLD.expires_at)
        OR (NEW.tx_hash IS DISTINCT FROM OLD.tx_hash AND NOT v_is_credit)
    ) THEN
        RAISE EXCEPTION 'role % may not change what was submitted for payment attempt % without a submission',
            current_user, OLD.id
            USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'payment_attempts_step_of_role';
    END IF;
    IF v_is_submission THEN
        -- Time limits count from here: one in the future would let a payment wait without limit.
        NEW.submitted_at := least(NEW.submitted_at, clock_timestamp());
    END IF;
    RETURN NEW;
END $function$;

-- The steps of a tenant's own attempt. These run with their caller's rights, and can do nothing that its statements could
-- not: they save round trips.

-- An attempt, in its tenant's scope, which it sets for the transaction: where each statement is one, this is one call.
CREATE OR REPLACE FUNCTION public.own_attempt(p_user_id text, p_attempt_id uuid)
 RETURNS SETOF payment_attempts
 LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM set_config('settle.user_id', p_user_id, true);
    RETURN QUERY SELECT * FROM payment_attempts a WHERE a.id = p_attempt_id;
END $function$;

-- Record a submission for an attempt that the caller has locked: when it counts as submitted (guard_attempt_by_role).
CREATE OR REPLACE FUNCTION public.record_own_submission(p_attempt_id uuid, p_from_status text, p_tx_hash text, p_submitted_at timestamp with time zone, p_event_type text, p_details jsonb)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
AS $function$
DECLARE
    v_submitted_at timestamptz;
BEGIN
    UPDATE payment_attempts a
       SET status = 'PENDING_UNVERIFIED', tx_hash = p_tx_hash, submitted_at = p_submitted_at,
           submission_count = a.submission_count + 1, expires_at = NULL, error_code = NULL
     WHERE a.id = p_attempt_id
    RETURNING a.submitted_at INTO v_submitted_at;
    INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, metadata)
    VALUES (p_attempt_id, p_event_type, p_from_status, 'PENDING_UNVERIFIED', p_details);
    RETURN v_submitted_at;
END $function$;

-- Credit a tenant's own purchase, if the attempt is in the status that its caller decided by: CREDITED, the transfer that
-- paid, the audit trail, and the entry, which post_own_purchase checks and posts. Nothing where the status has changed.
CREATE OR REPLACE FUNCTION public.credit_own_purchase(p_user_id text, p_attempt_id uuid, p_status text, p_revenue_share numeric, p_chain_id bigint, p_tx_hash text, p_log_index bigint, p_block_number bigint, p_block_hash text, p_from_address text, p_value_raw numeric, p_surplus_raw numeric, p_unapplied_raw numeric, p_amount bigint, p_contra_account text, p_metadata jsonb, p_details jsonb)
 RETURNS TABLE(entry_id uuid, amount bigint, balance_after bigint, posted boolean)
 LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM set_config('settle.user_id', p_user_id, true);
    UPDATE payment_attempts a SET status = 'CREDITED', tx_hash = p_tx_hash, revenue_share = p_revenue_share
     WHERE a.id = p_attempt_id AND a.status = p_status;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    INSERT INTO settled_transfers (chain_id, tx_hash, log_index, attempt_id, block_number, block_hash, from_address,
                                   value_raw, surplus_raw, unapplied_raw)
    VALUES (p_chain_id, p_tx_hash, p_log_index, p_attempt_id, p_block_number, p_block_hash, p_from_address, p_value_raw,
            p_surplus_raw, p_unapplied_raw);
    INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, metadata)
    VALUES (p_attempt_id, 'credited', p_status, 'CREDITED', p_details);
    RETURN QUERY SELECT * FROM post_own_purchase(p_attempt_id, p_amount, p_contra_account, p_metadata);
END $function$;

-- Until when a transfer pays the attempt in time: its first expires_at, which a submission clears.
CREATE OR REPLACE FUNCTION public.keep_payable_until()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    NEW.payable_until := CASE TG_OP WHEN 'INSERT' THEN NEW.expires_at
                         ELSE coalesce(OLD.payable_until, OLD.expires_at) END;
    RETURN NEW;
END $function$;

-- The payer is the wallet that signed in, so that no attempt can be paid by another wallet's transfer.
CREATE OR REPLACE FUNCTION public.check_own_wallet()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    -- A deposit is bound to its recipient, an authorization to its nonce.
    IF NEW.kind = 'wallet' AND NOT EXISTS (
        SELECT 1 FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id
         WHERE b.id = NEW.billing_account_id AND lower(u.wallet_address) = lower(NEW.from_address)
    ) THEN
        RAISE EXCEPTION 'payment attempt % is not from the wallet of the account that makes it', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_from_own_wallet';
    END IF;
    RETURN NULL;
END $function$;

-- Before any worker has written down where payments go, on a new system, what intents name counts.
CREATE OR REPLACE FUNCTION public.note_first_destination()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_destinations d WHERE d.chain_id = NEW.chain_id AND d.noted_by <> 'intent')
       -- As JSON: this text also runs on a schema that has no kinds yet. A deposit address is no treasury.
       AND to_jsonb(NEW) ->> 'kind' IS DISTINCT FROM 'deposit' THEN
        INSERT INTO payment_destinations (chain_id, token, to_address, noted_by)
        VALUES (NEW.chain_id, lower(NEW.token), lower(NEW.to_address), 'intent') ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $function$;

-- What the watcher has seen of a transfer that a payer names. Has rows only for the payer of the caller's own attempt.
CREATE OR REPLACE FUNCTION public.observed_payments(p_attempt_id uuid, p_tx_hash text)
 RETURNS TABLE(block_number bigint, block_time timestamp with time zone)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT t.block_number, t.block_time
      FROM payment_attempts a
      JOIN billing_accounts b ON b.id = a.billing_account_id
      JOIN observed_transfers t ON t.chain_id = a.chain_id AND t.tx_hash = p_tx_hash
     WHERE a.id = p_attempt_id AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND lower(t.from_address) = lower(a.from_address) AND lower(t.to_address) = lower(a.to_address)
       AND lower(t.token) = lower(a.token) AND t.value_raw >= a.amount_raw
$function$;

-- When it was mined: it may be named after the intent has expired, and was in time all the same.
CREATE OR REPLACE FUNCTION public.observed_payment_time(p_attempt_id uuid, p_tx_hash text)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT min(block_time) FROM observed_payments(p_attempt_id, p_tx_hash)
$function$;

-- CREDITED means: a settled transfer and the ledger entry that it paid for are there, in the same commit.
CREATE OR REPLACE FUNCTION public.check_credited_attempt()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM settled_transfers WHERE attempt_id = NEW.id) THEN
        RAISE EXCEPTION 'payment attempt % is CREDITED without a settled transfer', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_credited_by_transfer';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.id::text AND e.amount = credits_of_attempt(NEW.amount_credits, NEW.amount_usd_cents)
           AND e.billing_account_id = CASE NEW.purpose WHEN 'self' THEN NEW.billing_account_id ELSE 'cogni_system' END
           AND e.reason = CASE NEW.purpose WHEN 'self' THEN 'credits_purchase' ELSE 'system_donation' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is CREDITED without its ledger entry', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_credited_in_ledger';
    END IF;
    RETURN NULL;
END $function$;

-- The other way round: a settled transfer is there only for an attempt that the same commit credits.
CREATE OR REPLACE FUNCTION public.check_settled_transfer()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts WHERE id = NEW.attempt_id AND status = 'CREDITED') THEN
        RAISE EXCEPTION 'payment attempt % has a settled transfer and is not CREDITED', NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_pays_credited_attempt';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM payment_attempts a
         WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id AND a.tx_hash = NEW.tx_hash
           AND lower(a.from_address) = lower(NEW.from_address)
           AND NEW.value_raw >= coalesce(a.value_raw, a.amount_raw)
           AND NEW.surplus_raw = NEW.value_raw - coalesce(a.value_raw, a.amount_raw)
           AND (a.kind <> 'deposit' OR NEW.surplus_raw = 0)
    ) THEN
        RAISE EXCEPTION 'the settled transfer of payment attempt % is not what was agreed', NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_pays_what_was_agreed';
    END IF;
    RETURN NULL;
END $function$;

-- REVERSED means, in the same commit: the buyer's (of a donation, the system tenant's) entry is reversed in full, and
-- the transfer is recorded as reorged out.
CREATE OR REPLACE FUNCTION public.check_reversed_attempt()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = NEW.id AND f.outcome = 'reversed') THEN
        RAISE EXCEPTION 'payment attempt % is REVERSED and its transfer is not recorded as reorged out', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_reversed_transfer_is_gone';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.id::text AND e.reason = 'payment_reversal'
           AND e.amount = -credits_of_attempt(NEW.amount_credits, NEW.amount_usd_cents)
           AND e.billing_account_id = CASE NEW.purpose WHEN 'self' THEN NEW.billing_account_id ELSE 'cogni_system' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is REVERSED without its ledger entry', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_reversed_in_ledger';
    END IF;
    RETURN NULL;
END $function$;

-- A credited transfer is to become final, or to be reversed.
CREATE OR REPLACE FUNCTION public.await_finality_of_transfer()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO transfers_awaiting_finality (attempt_id, chain_id, block_number)
    VALUES (NEW.attempt_id, NEW.chain_id, NEW.block_number)
    -- A row that is there is of a transfer that is not: an attempt has one.
    ON CONFLICT (attempt_id) DO UPDATE SET chain_id = EXCLUDED.chain_id, block_number = EXCLUDED.block_number;
    RETURN NULL;
END $function$;

-- Once its outcome is on record there is nothing to wait for.
CREATE OR REPLACE FUNCTION public.end_wait_for_finality()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    DELETE FROM transfers_awaiting_finality w USING ended WHERE w.attempt_id = ended.attempt_id;
    RETURN NULL;
END $function$;

-- The other way round: an outcome agrees with its attempt's status, and a payment with another status is not reversed.
CREATE OR REPLACE FUNCTION public.check_finality()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM payment_attempts a JOIN settled_transfers s ON s.attempt_id = a.id
         WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id AND a.tx_hash = NEW.tx_hash
           AND a.status = CASE NEW.outcome WHEN 'final' THEN 'CREDITED' ELSE 'REVERSED' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is not what its transfer''s outcome "%" says', NEW.attempt_id, NEW.outcome
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_finality_agrees_with_attempt';
    END IF;
    RETURN NULL;
END $function$;

-- Reversal entries exist only for REVERSED payments, and only for exactly what was credited.
CREATE OR REPLACE FUNCTION public.check_reversal_entry()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id::text = NEW.reference AND a.status = 'REVERSED') THEN
        RAISE EXCEPTION 'ledger entry % reverses a payment that is not REVERSED', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_reverses_reversed_payment';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.reference AND e.billing_account_id = NEW.billing_account_id
           AND e.reason IN ('credits_purchase', 'platform_revenue_share', 'system_donation')
           AND e.amount = -NEW.amount
    ) THEN
        RAISE EXCEPTION 'ledger entry % reverses what was not credited', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_reverses_what_was_given';
    END IF;
    RETURN NULL;
END $function$;

-- Payments that are not finished, what is due to each, and since when: domain/payments/recovery.py has the same rule. A
-- caller's conditions reach into it, as into a view's.
CREATE OR REPLACE FUNCTION public.unfinished_payments()
 RETURNS TABLE(attempt_id uuid, chain_id bigint, due text, since timestamp with time zone)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT a.id, a.chain_id, 'workflow_missing'::text, a.submitted_at
      FROM payment_attempts a WHERE a.status = 'PENDING_UNVERIFIED'
     UNION ALL
    SELECT a.id, a.chain_id, 'bonus_missing'::text, a.updated_at
      FROM payment_attempts a
     WHERE a.status = 'CREDITED' AND a.purpose = 'self'
       AND bonus_of_credits(credits_of_attempt(a.amount_credits, a.amount_usd_cents), a.revenue_share) > 0
       AND NOT EXISTS (SELECT FROM credit_ledger e
                        WHERE e.reference = a.id::text AND e.reason = 'platform_revenue_share')
     UNION ALL
    SELECT a.id, a.chain_id, 'bonus_reversal_missing'::text, a.updated_at
      FROM payment_attempts a
     WHERE a.status = 'REVERSED'
       AND EXISTS (SELECT FROM credit_ledger e
                    WHERE e.reference = a.id::text AND e.reason = 'platform_revenue_share')
       AND NOT EXISTS (SELECT FROM credit_ledger e
                        WHERE e.reference = a.id::text AND e.reason = 'payment_reversal'
                          AND e.billing_account_id = 'cogni_system')
     UNION ALL
    SELECT a.id, a.chain_id, 'finality_missing'::text, a.updated_at
      FROM payment_attempts a
     WHERE a.status = 'CREDITED' AND NOT EXISTS (SELECT FROM transfer_finality f WHERE f.attempt_id = a.id)
$function$;
