-- Transfers: which are income, from which block on, and that each is applied once.

-- Why an address pays for nobody: the zero address, which sends what is minted; a treasury, of now or before; a token.
-- NULL for a payer. Says nothing that the chain does not show everybody.
CREATE OR REPLACE FUNCTION public.non_payer_kind(p_address text)
 RETURNS text
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT CASE
           WHEN p_address ~ '^0x0{40}$' THEN 'nobody'
           WHEN EXISTS (SELECT 1 FROM payment_destinations d
                         WHERE d.to_address = lower(p_address) AND d.noted_by <> 'intent') THEN 'treasury'
           WHEN EXISTS (SELECT 1 FROM payment_destinations d
                         WHERE d.token = lower(p_address) AND d.noted_by <> 'intent') THEN 'token'
           END
$function$;

-- From which block on transfers to a treasury are payments: the setting's, or the first that was read.
CREATE OR REPLACE FUNCTION public.first_block_answered_for(p_chain_id bigint, p_token text, p_to_address text)
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT coalesce(answers_from, CASE WHEN block_hash IS NOT NULL THEN first_block END) FROM chain_cursors
     WHERE chain_id = p_chain_id AND lower(token) = lower(p_token) AND lower(to_address) = lower(p_to_address)
     ORDER BY 1 LIMIT 1
$function$;

-- An attempt is paid by money that came in, in a block that settle answers for.
CREATE OR REPLACE FUNCTION public.check_settled_income()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_treasury text;
    v_first_block bigint;
BEGIN
    SELECT a.to_address, first_block_answered_for(a.chain_id, a.token, a.to_address) INTO v_treasury, v_first_block
      FROM payment_attempts a WHERE a.id = NEW.attempt_id;
    IF lower(v_treasury) = lower(NEW.from_address) OR non_payer_kind(NEW.from_address) IS NOT NULL THEN
        RAISE EXCEPTION 'transfer % of transaction % is from %, which pays for nobody',
            NEW.log_index, NEW.tx_hash, NEW.from_address
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_from_a_payer';
    END IF;
    IF NEW.block_number < v_first_block THEN
        RAISE EXCEPTION 'transfer % of transaction % is of block %, payments are taken from block % on',
            NEW.log_index, NEW.tx_hash, NEW.block_number, v_first_block
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_not_too_old';
    END IF;
    RETURN NEW;
END $function$;

-- A transfer is handed to attempts of its own chain.
CREATE OR REPLACE FUNCTION public.check_observed_attempt()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id) THEN
        RAISE EXCEPTION 'transaction % on chain % cannot pay attempt %, which is of another chain',
            NEW.tx_hash, NEW.chain_id, NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'observed_transfers_pays_attempt_of_its_chain';
    END IF;
    RETURN NULL;
END $function$;

-- A transfer pays once, whoever credits it. Attempts and operators are serialized by transaction, not by log: logs are
-- renumbered when their transaction moves to another block. What is read after the lock must not be older than the lock.
CREATE OR REPLACE FUNCTION public.lock_transfers_of(p_chain_id bigint, p_tx_hash text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF current_setting('transaction_isolation') = 'repeatable read' THEN
        RAISE EXCEPTION 'a transfer is applied in READ COMMITTED: an older snapshot does not show what was just applied'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('transfers:' || p_chain_id || ':' || p_tx_hash, 0));
END $function$;

-- An attempt is not paid by a transfer that an operator has credited. In another block than it was then, its log may
-- have another index: it is known by its sender and value.
CREATE OR REPLACE FUNCTION public.refuse_credited_transfer()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM lock_transfers_of(NEW.chain_id, NEW.tx_hash);
    IF EXISTS (
        SELECT 1 FROM transfer_credits c
         WHERE c.chain_id = NEW.chain_id AND c.tx_hash = NEW.tx_hash AND c.part <> 'surplus'
           AND CASE WHEN c.block_hash = NEW.block_hash THEN c.log_index = NEW.log_index
                    ELSE lower(c.from_address) = lower(NEW.from_address) AND c.value_raw = NEW.value_raw END
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % was credited by an operator', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'settled_transfers_not_credited_by_operator';
    END IF;
    -- What comes back after its reversal is for an operator, whatever index its log has in its new block.
    IF EXISTS (
        SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND a.status = 'REVERSED'
           AND lower(s.from_address) = lower(NEW.from_address) AND s.value_raw = NEW.value_raw
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % has paid an attempt that was reversed', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'settled_transfers_one_attempt_per_transfer';
    END IF;
    RETURN NEW;
END $function$;
