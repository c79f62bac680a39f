-- Payment by signature: claims of authorizations, and what the relay may do. Its role has no other rights than these.

-- Claim a signed authorization for the caller's own attempt, before anything is sent. What signature and chain say was
-- checked by the caller; here is decided whose it is. Answers new, same, or why not.
CREATE OR REPLACE FUNCTION public.claim_authorization(p_attempt_id uuid, p_from_address text, p_nonce text, p_valid_after bigint, p_valid_before bigint, p_signature bytea, p_is_contract boolean, p_from_block bigint, p_per_day integer, p_failed_per_day integer)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_user text := nullif(current_setting('settle.user_id', true), '');
    v_attempt payment_attempts;
    v_own_nonce text;
BEGIN
    SELECT a.* INTO v_attempt
      FROM payment_attempts a JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.id = p_attempt_id AND a.kind = 'authorization' AND b.owner_user_id = v_user FOR UPDATE OF a;
    SELECT own_nonce INTO v_own_nonce FROM payment_authorizations WHERE attempt_id = v_attempt.id;
    IF v_own_nonce IS NULL THEN
        RETURN 'not_found';
    END IF;
    IF v_attempt.authorization_nonce IS NOT NULL THEN
        RETURN CASE WHEN (v_attempt.authorization_nonce, lower(v_attempt.from_address)) = (p_nonce, lower(p_from_address))
                    THEN 'same' ELSE 'claimed_another' END;
    END IF;
    IF v_attempt.status <> 'CREATED_INTENT' OR v_attempt.expires_at <= clock_timestamp() THEN
        RETURN 'expired';
    END IF;
    IF p_nonce <> v_own_nonce THEN
        IF EXISTS (SELECT 1 FROM payment_authorizations o WHERE o.own_nonce = p_nonce) THEN
            RETURN 'of_another_attempt';
        END IF;
        -- Nothing in it says what it pays: of a wallet that has signed in here, only its own accounts may claim it. A
        -- stranger who has seen it, in a mempool, is none of them.
        IF EXISTS (
            SELECT 1 FROM users u
             WHERE lower(u.wallet_address) = lower(p_from_address) AND u.id <> v_user
               AND NOT EXISTS (SELECT 1 FROM account_members m
                                WHERE m.billing_account_id = v_attempt.billing_account_id AND m.user_id = u.id)
        ) THEN
            RETURN 'of_another_wallet';
        END IF;
    END IF;
    IF p_per_day <= (
        SELECT count(*) FROM payment_authorizations c JOIN payment_attempts a ON a.id = c.attempt_id
         WHERE a.billing_account_id = v_attempt.billing_account_id AND c.claimed_at > now() - interval '1 day'
           AND a.created_at > now() - interval '40 days'
    ) OR p_failed_per_day <= (
        SELECT count(*) FROM relay_nonces n JOIN payment_attempts a ON a.id = n.attempt_id
         WHERE a.billing_account_id = v_attempt.billing_account_id AND n.outcome = 'reverted'
           AND n.created_at > now() - interval '1 day'
    ) THEN
        RETURN 'limit';
    END IF;
    BEGIN
        UPDATE payment_attempts a
           SET from_address = p_from_address, authorization_nonce = p_nonce, expires_at = to_timestamp(p_valid_before)
         WHERE a.id = p_attempt_id;
    EXCEPTION WHEN unique_violation THEN
        RETURN 'in_use';
    END;
    UPDATE payment_authorizations c
       SET valid_after = p_valid_after, valid_before = p_valid_before, signature = p_signature,
           is_contract = p_is_contract, from_block = p_from_block, claimed_at = clock_timestamp()
     WHERE c.attempt_id = p_attempt_id;
    INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, metadata)
    VALUES (p_attempt_id, 'authorization_claimed', 'CREATED_INTENT', 'CREATED_INTENT',
            jsonb_build_object('from', p_from_address, 'nonce', p_nonce, 'validBefore', p_valid_before,
                               'nonceIsOwn', p_nonce = v_own_nonce));
    RETURN 'new';
END $function$;

-- The same of an authorization that was never shown here and is on the chain: its nonce is the own one of an open attempt,
-- which is what its payer has signed. False where there is no such attempt.
CREATE OR REPLACE FUNCTION public.claim_by_transfer(p_chain_id bigint, p_token text, p_from_address text, p_nonce text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_attempt_id uuid;
BEGIN
    UPDATE payment_attempts a SET from_address = p_from_address, authorization_nonce = p_nonce
      FROM payment_authorizations c
     WHERE c.own_nonce = p_nonce AND c.attempt_id = a.id AND a.chain_id = p_chain_id AND lower(a.token) = lower(p_token)
       AND a.kind = 'authorization' AND a.status = 'CREATED_INTENT' AND a.authorization_nonce IS NULL
    RETURNING a.id INTO v_attempt_id;
    IF v_attempt_id IS NULL THEN
        RETURN false;
    END IF;
    INSERT INTO payment_events (attempt_id, event_type, from_status, to_status, metadata)
    VALUES (v_attempt_id, 'authorization_claimed', 'CREATED_INTENT', 'CREATED_INTENT',
            jsonb_build_object('from', p_from_address, 'nonce', p_nonce, 'nonceIsOwn', true));
    RETURN true;
END $function$;

-- The transaction that was last sent for the caller's own attempt; none before the first.
CREATE OR REPLACE FUNCTION public.relayed_hash(p_attempt_id uuid)
 RETURNS text
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT coalesce(n.mined_tx_hash, t.tx_hash)
      FROM payment_attempts a
      JOIN billing_accounts b ON b.id = a.billing_account_id
      JOIN relay_nonces n ON n.attempt_id = a.id
      JOIN relay_transactions t ON t.chain_id = n.chain_id AND t.relayer = n.relayer AND t.nonce = n.nonce
     WHERE a.id = p_attempt_id AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND t.sent_at IS NOT NULL
     ORDER BY n.created_at DESC, t.stored_at DESC LIMIT 1
$function$;

-- Claims that nothing has been signed for, or only what reverted, oldest first. Those of an account that is at a limit
-- wait; so do those that have expired, for the proof that they never pay.
CREATE OR REPLACE FUNCTION public.relay_claims(p_chain_id bigint, p_limit integer, p_per_day integer, p_failed_per_day integer)
 RETURNS TABLE(attempt_id uuid, token text, to_address text, from_address text, amount_raw bigint, nonce text, valid_after bigint, valid_before bigint, signature bytea, is_contract boolean)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT a.id, a.token, a.to_address, a.from_address, a.amount_raw, a.authorization_nonce, c.valid_after,
           c.valid_before, c.signature, c.is_contract
      FROM payment_attempts a JOIN payment_authorizations c ON c.attempt_id = a.id
     WHERE a.kind = 'authorization' AND a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED')
       AND a.chain_id = p_chain_id AND c.claimed_at IS NOT NULL AND to_timestamp(c.valid_before) > now()
       AND NOT EXISTS (SELECT 1 FROM relay_nonces n
                        WHERE n.attempt_id = a.id AND n.outcome IS DISTINCT FROM 'reverted'
                          AND n.outcome IS DISTINCT FROM 'lost')
       AND p_per_day > (
           SELECT count(*) FROM relay_nonces n JOIN payment_attempts o ON o.id = n.attempt_id
            WHERE o.billing_account_id = a.billing_account_id AND n.created_at > now() - interval '1 day')
       AND p_failed_per_day > (
           SELECT count(*) FROM relay_nonces n JOIN payment_attempts o ON o.id = n.attempt_id
            WHERE o.billing_account_id = a.billing_account_id AND n.outcome = 'reverted'
              AND n.created_at > now() - interval '1 day')
     ORDER BY c.claimed_at LIMIT p_limit
$function$;

-- The account's next nonce, its row locked until the caller's transaction ends: `p_chain_nonce` is what the chain says,
-- which is higher where the account was used elsewhere.
CREATE OR REPLACE FUNCTION public.relay_next_nonce(p_chain_id bigint, p_relayer text, p_chain_nonce bigint)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_next bigint;
BEGIN
    INSERT INTO relayers (chain_id, address, next_nonce) VALUES (p_chain_id, p_relayer, p_chain_nonce)
    ON CONFLICT (chain_id, address) DO NOTHING;
    UPDATE relayers r SET next_nonce = greatest(r.next_nonce, p_chain_nonce)
     WHERE r.chain_id = p_chain_id AND r.address = p_relayer RETURNING r.next_nonce INTO v_next;
    RETURN v_next;
END $function$;

-- Store a signed transaction before it is sent: the first of a nonce that was locked in this transaction, or one that
-- replaces `p_replaces` others of it. `p_attempt_id` is an attempt's, or the id of what was signed for a charge. False
-- where another relay was first.
CREATE OR REPLACE FUNCTION public.relay_store(p_chain_id bigint, p_relayer text, p_nonce bigint, p_attempt_id uuid, p_replaces integer, p_tx_hash text, p_raw bytea, p_gas bigint, p_max_fee_wei numeric, p_priority_fee_wei numeric)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM 1 FROM relayers r WHERE r.chain_id = p_chain_id AND r.address = p_relayer FOR UPDATE;
    IF p_replaces = 0 THEN
        BEGIN
            INSERT INTO relay_nonces (chain_id, relayer, nonce, attempt_id)
            SELECT p_chain_id, p_relayer, p_nonce, a.id FROM payment_attempts a
             WHERE a.id = p_attempt_id AND a.kind = 'authorization' AND a.authorization_nonce IS NOT NULL
               AND a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED') FOR SHARE;
            IF NOT FOUND THEN
                INSERT INTO relay_nonces (chain_id, relayer, nonce, charge_authorization_id)
                SELECT p_chain_id, p_relayer, p_nonce, c.id FROM charge_authorizations c
                 WHERE c.id = p_attempt_id AND c.chain_id = p_chain_id AND c.outcome IS NULL FOR SHARE;
            END IF;
        EXCEPTION WHEN unique_violation THEN
            RETURN false;
        END;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
        UPDATE relayers r SET next_nonce = p_nonce + 1
         WHERE r.chain_id = p_chain_id AND r.address = p_relayer AND r.next_nonce = p_nonce;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'nonce % of relayer % is not the next one', p_nonce, p_relayer
                USING ERRCODE = 'check_violation', CONSTRAINT = 'relay_nonces_in_order';
        END IF;
    ELSIF p_replaces <> (
        SELECT count(*) FROM relay_transactions t
          JOIN relay_nonces n ON n.chain_id = t.chain_id AND n.relayer = t.relayer AND n.nonce = t.nonce
         WHERE t.chain_id = p_chain_id AND t.relayer = p_relayer AND t.nonce = p_nonce AND n.outcome IS NULL
    ) THEN
        RETURN false;
    END IF;
    INSERT INTO relay_transactions (chain_id, tx_hash, relayer, nonce, raw, gas, max_fee_wei, priority_fee_wei)
    VALUES (p_chain_id, p_tx_hash, p_relayer, p_nonce, p_raw, p_gas, p_max_fee_wei, p_priority_fee_wei);
    RETURN true;
END $function$;

-- The account's nonces without an outcome, and all that was signed for them, in order. `attempt_id` is an attempt's, or
-- the id of what was signed for a charge.
CREATE OR REPLACE FUNCTION public.relay_open_transactions(p_chain_id bigint, p_relayer text)
 RETURNS TABLE(nonce bigint, attempt_id uuid, tx_hash text, raw bytea, gas bigint, max_fee_wei numeric, priority_fee_wei numeric, stored_at timestamp with time zone, sent_at timestamp with time zone, age_seconds double precision)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT n.nonce, coalesce(n.attempt_id, n.charge_authorization_id), t.tx_hash, t.raw, t.gas, t.max_fee_wei, t.priority_fee_wei, t.stored_at, t.sent_at,
           extract(epoch FROM clock_timestamp() - t.stored_at)::double precision
      FROM relay_nonces n
      JOIN relay_transactions t ON t.chain_id = n.chain_id AND t.relayer = n.relayer AND t.nonce = n.nonce
     WHERE n.outcome IS NULL AND n.chain_id = p_chain_id AND n.relayer = p_relayer
     ORDER BY n.nonce, t.stored_at, t.tx_hash
$function$;

-- A node has taken the transaction.
CREATE OR REPLACE FUNCTION public.relay_sent(p_chain_id bigint, p_tx_hash text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    UPDATE relay_transactions t SET sent_at = coalesce(t.sent_at, clock_timestamp())
     WHERE t.chain_id = p_chain_id AND t.tx_hash = p_tx_hash
$function$;

-- A transaction of the nonce is confirmed, or (lost) another one than ours has used it. What is confirmed was sent, also
-- where the relay died before it could say so.
CREATE OR REPLACE FUNCTION public.relay_ended(p_chain_id bigint, p_relayer text, p_nonce bigint, p_outcome text, p_tx_hash text, p_spent_wei numeric)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE relay_nonces n
       SET outcome = p_outcome, mined_tx_hash = p_tx_hash, spent_wei = p_spent_wei, ended_at = clock_timestamp()
     WHERE n.chain_id = p_chain_id AND n.relayer = p_relayer AND n.nonce = p_nonce AND n.outcome IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM relay_sent(p_chain_id, p_tx_hash);
    RETURN true;
END $function$;

-- Gas of the last day in wei: what was spent, and of what is open the most that it can cost.
CREATE OR REPLACE FUNCTION public.relay_spent_today(p_chain_id bigint, p_relayer text)
 RETURNS numeric
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT coalesce(sum(coalesce(
               n.spent_wei,
               (SELECT max(t.gas * t.max_fee_wei) FROM relay_transactions t
                 WHERE t.chain_id = n.chain_id AND t.relayer = n.relayer AND t.nonce = n.nonce))), 0)
      FROM relay_nonces n
     WHERE n.chain_id = p_chain_id AND n.relayer = p_relayer AND n.created_at > now() - interval '1 day'
$function$;

-- The relay of the account has completed a pass.
CREATE OR REPLACE FUNCTION public.relay_seen(p_chain_id bigint, p_relayer text, p_chain_nonce bigint, p_balance_wei numeric)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    INSERT INTO relayers (chain_id, address, next_nonce, seen_at, balance_wei)
    VALUES (p_chain_id, p_relayer, p_chain_nonce, clock_timestamp(), p_balance_wei)
    ON CONFLICT (chain_id, address) DO UPDATE SET seen_at = excluded.seen_at, balance_wei = excluded.balance_wei
$function$;

-- Whether a relay of the chain has completed a pass within so many seconds: pages offer to sign only where one has.
CREATE OR REPLACE FUNCTION public.is_relay_there(p_chain_id bigint, p_seconds integer)
 RETURNS boolean
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT EXISTS (SELECT 1 FROM relayers r
                    WHERE r.chain_id = p_chain_id AND r.seen_at > now() - make_interval(secs => p_seconds))
$function$;

-- What was signed for the charge, the newest first, with its last transaction: `state` is what the relay knows of it.
-- One whose transfer is among the charge's deposits is left out: from then on it is a deposit.
CREATE OR REPLACE FUNCTION public.charge_authorizations_of(p_charge_id uuid)
 RETURNS TABLE(id uuid, payer text, nonce text, value_raw numeric, valid_before bigint, state text, tx_hash text, is_on_its_way boolean, is_seen boolean)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT c.id, c.payer, c.nonce, c.value_raw, c.valid_before,
           coalesce(c.outcome, CASE WHEN n.outcome IN ('succeeded', 'reverted') THEN n.outcome
                                    WHEN n.outcome IS NULL AND n.tx_hash IS NOT NULL THEN 'sent' ELSE 'claimed' END),
           coalesce(c.executed_by, n.tx_hash),
           c.outcome IS NULL AND d.id IS NULL AND n.outcome IS DISTINCT FROM 'reverted'
               AND (to_timestamp(c.valid_before) > clock_timestamp()
                    OR (n.nonce IS NOT NULL AND n.outcome IS NULL)),
           d.id IS NOT NULL
      FROM charge_authorizations c
      JOIN charges k ON k.id = c.charge_id
      JOIN billing_accounts b ON b.id = k.billing_account_id
      LEFT JOIN LATERAL (
           SELECT r.nonce, r.outcome, coalesce(r.mined_tx_hash, t.tx_hash) AS tx_hash
             FROM relay_nonces r
             LEFT JOIN relay_transactions t ON t.chain_id = r.chain_id AND t.relayer = r.relayer AND t.nonce = r.nonce
                                           AND t.sent_at IS NOT NULL
            WHERE r.charge_authorization_id = c.id
            ORDER BY r.created_at DESC, t.stored_at DESC NULLS LAST LIMIT 1) n ON true
      LEFT JOIN LATERAL (
           SELECT f.id FROM deposits f
            WHERE f.address_id = k.address_id AND f.value_raw = c.value_raw AND lower(f.from_address) = lower(c.payer)
              AND (f.tx_hash = c.executed_by OR EXISTS (
                   SELECT 1 FROM relay_nonces r JOIN relay_transactions t
                       ON t.chain_id = r.chain_id AND t.relayer = r.relayer AND t.nonce = r.nonce
                    WHERE r.charge_authorization_id = c.id AND t.tx_hash = f.tx_hash)) LIMIT 1) d ON true
     WHERE c.charge_id = p_charge_id AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
     ORDER BY c.claimed_at DESC, c.id LIMIT 50
$function$;

-- Keep what was signed for a charge in the caller's scope, before anything is sent. What signature and chain say was
-- checked by the caller. The charge's lock serializes it with deposits and with others who sign. Answers new, same, or
-- why not; of two who sign at once the second is refused, and nothing of theirs is sent.
CREATE OR REPLACE FUNCTION public.claim_charge_authorization(p_charge_id uuid, p_chain_id bigint, p_token text, p_payer text, p_to_address text, p_value_raw numeric, p_valid_after bigint, p_valid_before bigint, p_nonce text, p_signature bytea, p_is_contract boolean, p_from_block bigint, p_per_charge integer, p_failed_per_charge integer, p_per_account integer, p_failed_per_account integer)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_charge charges;
    v_seen numeric;
BEGIN
    SELECT k.* INTO v_charge
      FROM charges k
      JOIN billing_accounts b ON b.id = k.billing_account_id
      JOIN payment_methods m ON m.id = k.method_id
      JOIN deposit_addresses a ON a.id = k.address_id
     WHERE k.id = p_charge_id AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND m.chain_id = p_chain_id AND lower(m.address) = lower(p_token) AND lower(a.address) = lower(p_to_address)
       FOR UPDATE OF k;
    IF v_charge.id IS NULL THEN
        RETURN 'not_found';
    END IF;
    IF EXISTS (SELECT 1 FROM charge_authorizations c
                WHERE c.chain_id = p_chain_id AND lower(c.token) = lower(p_token) AND lower(c.payer) = lower(p_payer)
                  AND c.nonce = p_nonce) THEN
        RETURN CASE WHEN EXISTS (
            SELECT 1 FROM charge_authorizations c
             WHERE c.charge_id = p_charge_id AND lower(c.payer) = lower(p_payer) AND c.nonce = p_nonce
               AND (c.value_raw, c.valid_after, c.valid_before) = (p_value_raw, p_valid_after, p_valid_before))
            THEN 'same' ELSE 'in_use' END;
    END IF;
    IF EXISTS (SELECT 1 FROM charge_authorizations_of(p_charge_id) o WHERE o.is_on_its_way) THEN
        RETURN 'on_its_way';
    END IF;
    SELECT r.seen_raw INTO v_seen FROM received_for_charge(p_charge_id) r;
    IF p_value_raw <> v_charge.quoted_amount_raw - v_seen THEN
        RETURN 'another_amount';
    END IF;
    -- Counted of charges alone: strangers sign them, and shall not use up what the account itself may sign.
    IF p_per_charge <= (SELECT count(*) FROM charge_authorizations c
                         WHERE c.charge_id = p_charge_id AND c.claimed_at > now() - interval '1 day')
       OR p_per_account <= (SELECT count(*) FROM charge_authorizations c JOIN charges o ON o.id = c.charge_id
                             WHERE o.billing_account_id = v_charge.billing_account_id
                               AND c.claimed_at > now() - interval '1 day')
       OR p_failed_per_charge <= relay_failures_of_charges(v_charge.billing_account_id, p_charge_id)
       OR p_failed_per_account <= relay_failures_of_charges(v_charge.billing_account_id, NULL) THEN
        RETURN 'limit';
    END IF;
    INSERT INTO charge_authorizations (charge_id, chain_id, token, payer, to_address, value_raw, valid_after,
                                       valid_before, nonce, signature, is_contract, from_block)
    VALUES (p_charge_id, p_chain_id, p_token, p_payer, p_to_address, p_value_raw, p_valid_after, p_valid_before,
            p_nonce, p_signature, p_is_contract, p_from_block)
    ON CONFLICT DO NOTHING;
    RETURN CASE WHEN FOUND THEN 'new' ELSE 'in_use' END;
END $function$;

-- The relay's transactions of the last day that reverted, for an account's charges, or for one of them.
CREATE OR REPLACE FUNCTION public.relay_failures_of_charges(p_billing_account_id text, p_charge_id uuid)
 RETURNS bigint
 LANGUAGE sql
 STABLE
AS $function$
    SELECT count(*) FROM relay_nonces n
      JOIN charge_authorizations c ON c.id = n.charge_authorization_id
      JOIN charges k ON k.id = c.charge_id
     WHERE k.billing_account_id = p_billing_account_id AND (p_charge_id IS NULL OR c.charge_id = p_charge_id)
       AND n.outcome = 'reverted' AND n.created_at > now() - interval '1 day'
$function$;

-- What was signed for charges and nothing was sent for, or only what reverted, oldest first. Those of a charge or an
-- account that is at a limit wait; so do those that have expired, for the proof that they are never executed.
CREATE OR REPLACE FUNCTION public.relay_charge_claims(p_chain_id bigint, p_limit integer, p_failed_per_charge integer, p_failed_per_account integer)
 RETURNS TABLE(id uuid, charge_id uuid, token text, to_address text, payer text, value_raw numeric, nonce text, valid_after bigint, valid_before bigint, signature bytea, is_contract boolean)
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT c.id, c.charge_id, c.token, c.to_address, c.payer, c.value_raw, c.nonce, c.valid_after, c.valid_before,
           c.signature, c.is_contract
      FROM charge_authorizations c JOIN charges k ON k.id = c.charge_id
     WHERE c.chain_id = p_chain_id AND c.outcome IS NULL AND to_timestamp(c.valid_before) > now()
       AND NOT EXISTS (SELECT 1 FROM relay_nonces n
                        WHERE n.charge_authorization_id = c.id AND n.outcome IS DISTINCT FROM 'reverted'
                          AND n.outcome IS DISTINCT FROM 'lost')
       AND p_failed_per_charge > relay_failures_of_charges(k.billing_account_id, c.charge_id)
       AND p_failed_per_account > relay_failures_of_charges(k.billing_account_id, NULL)
     ORDER BY c.claimed_at LIMIT p_limit
$function$;

-- What became of what was signed for a charge is known for good: executed by a transaction, or never to be.
CREATE OR REPLACE FUNCTION public.end_charge_authorization(p_id uuid, p_executed_by text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE charge_authorizations c
       SET outcome = CASE WHEN p_executed_by IS NULL THEN 'expired' ELSE 'executed' END, executed_by = p_executed_by,
           ended_at = clock_timestamp()
     WHERE c.id = p_id AND c.outcome IS NULL;
    RETURN FOUND;
END $function$;
