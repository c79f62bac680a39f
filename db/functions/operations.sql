-- What operators do with a transfer: credit it, credit its surplus, record that it was sent back.

-- The other way round: an operator credits, or sends back, what the canonical chain shows and no attempt was paid with;
-- or credits the surplus of what an attempt was paid with, once that is final.
CREATE OR REPLACE FUNCTION public.check_transfer_credit()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_token text;
    v_to_address text;
BEGIN
    PERFORM lock_transfers_of(NEW.chain_id, NEW.tx_hash);
    IF NEW.part = 'surplus' THEN
        PERFORM 1 FROM payment_attempts a JOIN settled_transfers s ON s.attempt_id = a.id
          WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND s.log_index = NEW.log_index
            AND s.surplus_raw = NEW.value_raw AND lower(s.from_address) = lower(NEW.from_address)
            AND a.status = 'CREDITED'
            AND EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = a.id AND f.outcome = 'final')
            FOR SHARE OF a;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'transfer % of transaction % has no such surplus', NEW.log_index, NEW.tx_hash
                USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_surplus';
        END IF;
        RETURN NEW;
    END IF;
    SELECT o.token, o.to_address INTO v_token, v_to_address FROM observed_transfers o
     WHERE o.chain_id = NEW.chain_id AND o.tx_hash = NEW.tx_hash AND o.log_index = NEW.log_index
       AND o.block_number = NEW.block_number AND o.block_hash = NEW.block_hash
       AND is_alike(o.from_address, o.value_raw, NEW.from_address, NEW.value_raw)
       FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'transfer % of transaction % is not on the chain like that', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_transfer_on_chain';
    END IF;
    IF transfer_is_paid(NEW.chain_id, NEW.tx_hash, NEW.log_index, NEW.block_hash, NEW.from_address, NEW.value_raw,
                        v_token, v_to_address, false) OR EXISTS (
        -- An attempt was paid with what the chain shows as something else in that very place.
        SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
          LEFT JOIN transfer_finality f ON f.attempt_id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND a.status <> 'REVERSED'
           AND coalesce(f.log_index, s.log_index) = NEW.log_index
           AND coalesce(f.block_hash, s.block_hash) = NEW.block_hash
    ) OR EXISTS (
        -- An attempt was credited by this transaction, and its settled transfer was deleted: it may have been this one.
        SELECT 1 FROM payment_attempts a
         WHERE a.tx_hash = NEW.tx_hash AND a.chain_id = NEW.chain_id AND a.status = 'CREDITED'
           AND lower(a.from_address) = lower(NEW.from_address)
           AND NOT EXISTS (SELECT 1 FROM settled_transfers s WHERE s.attempt_id = a.id)
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % has paid already', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'transfer_credits_not_settled';
    END IF;
    RETURN NEW;
END $function$;

-- What an operator credits or sends back is the transfer that the finding is about, on the finding's own chain.
CREATE OR REPLACE FUNCTION public.check_transfer_credit_finding()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM findings f
         WHERE f.id = NEW.finding_id AND f.chain_id = NEW.chain_id AND f.tx_hash = NEW.tx_hash
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % on chain % is not what finding % is about',
            NEW.log_index, NEW.tx_hash, NEW.chain_id, NEW.finding_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_its_finding';
    END IF;
    RETURN NULL;
END $function$;

-- The rules of income hold for operators too. A transfer from the treasury itself cannot be sent back either: nothing was
-- received. A transfer without a payer is credited only to an account with an owner.
CREATE OR REPLACE FUNCTION public.check_credited_income()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_treasury text;
    v_first_block bigint;
BEGIN
    IF NEW.part = 'surplus' THEN
        -- Of a payment that was answered for when it was credited.
        SELECT a.to_address, NULL INTO v_treasury, v_first_block
          FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND s.log_index = NEW.log_index;
    ELSE
        SELECT o.to_address, first_block_answered_for(o.chain_id, o.token, o.to_address) INTO v_treasury, v_first_block
          FROM observed_transfers o
         WHERE o.chain_id = NEW.chain_id AND o.tx_hash = NEW.tx_hash AND o.log_index = NEW.log_index;
    END IF;
    IF lower(v_treasury) = lower(NEW.from_address) OR non_payer_kind(NEW.from_address) IN ('treasury', 'deposit_address') THEN
        RAISE EXCEPTION 'transfer % of transaction % is from the treasury itself', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_is_income';
    END IF;
    IF NEW.part = 'whole' AND NEW.block_number < v_first_block THEN
        RAISE EXCEPTION 'transfer % of transaction % is of block %, payments are taken from block % on',
            NEW.log_index, NEW.tx_hash, NEW.block_number, v_first_block
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_not_too_old';
    END IF;
    IF EXISTS (
        SELECT 1 FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id
         WHERE b.id = NEW.billing_account_id AND non_payer_kind(u.wallet_address) IN ('nobody', 'token')
    ) THEN
        RAISE EXCEPTION 'the wallet of billing account % cannot be a payer''s', NEW.billing_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_to_somebody';
    END IF;
    RETURN NEW;
END $function$;

-- A credited transfer and its ledger entry come in one commit, each because of the other.
CREATE OR REPLACE FUNCTION public.check_transfer_credit_posted()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NEW.part <> 'refund' AND NOT EXISTS (
        SELECT 1 FROM credit_ledger e JOIN journal_lines l ON l.entry_id = e.id
         WHERE e.reference = NEW.reference AND e.reason = 'operator_credit' AND e.amount = NEW.amount_credits
           AND e.billing_account_id = NEW.billing_account_id AND l.side = 'debit'
           -- A deposit's money is where it came to.
           AND l.account_code = coalesce(
               (SELECT 'cash:' || lower(m.token) || ':deposits' FROM deposits d JOIN payment_methods m ON m.id = d.method_id
                 WHERE d.chain_id = NEW.chain_id AND d.tx_hash = NEW.tx_hash AND d.log_index = NEW.log_index), 'cash:usdc')
    ) THEN
        RAISE EXCEPTION '% is credited to % without a ledger entry', NEW.reference, NEW.billing_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_in_ledger';
    END IF;
    RETURN NULL;
END $function$;

-- The other way round: an entry of an operator's credit, or of its bonus, belongs to a credited transfer.
CREATE OR REPLACE FUNCTION public.check_operator_credit_entry()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM transfer_credits c
         WHERE c.reference = NEW.reference
           AND CASE NEW.reason
               WHEN 'operator_credit'
               THEN c.billing_account_id = NEW.billing_account_id AND c.amount_credits = NEW.amount
               ELSE NEW.billing_account_id = 'cogni_system' AND NEW.amount = bonus_of_credits(c.amount_credits, c.revenue_share)
               END
    ) THEN
        RAISE EXCEPTION 'ledger entry % (% of %) has no transfer that an operator credited', NEW.id, NEW.reason, NEW.amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_operator_credit_has_transfer';
    END IF;
    RETURN NULL;
END $function$;

-- Operators' credits whose bonus is due and not posted.
CREATE OR REPLACE FUNCTION public.credits_without_bonus()
 RETURNS TABLE(finding_id uuid, reference text)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT c.finding_id, c.reference FROM transfer_credits c
     WHERE bonus_of_credits(c.amount_credits, c.revenue_share) > 0
       AND NOT EXISTS (SELECT FROM credit_ledger e
                        WHERE e.reference = c.reference AND e.reason = 'platform_revenue_share')
$function$;
