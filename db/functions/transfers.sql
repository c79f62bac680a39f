-- Transfers: which are income, from which block on, and that each is applied once.

-- The current and former treasuries, whose own transfers are no income.
CREATE OR REPLACE FUNCTION public.treasuries()
 RETURNS TABLE(to_address text)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT d.to_address FROM payment_destinations d WHERE d.noted_by <> 'intent'
$function$;

-- Why an address cannot be a payer: the zero address, sender of mints; a current or former treasury; a token's contract;
-- an address of ours that was paid into, whose transfers move what is ours already. That deposits are there is a worker's
-- word: an address alone may be written by a process that people reach.
-- NULL for a payer. Reveals only what is public on the chain.
CREATE OR REPLACE FUNCTION public.non_payer_kind(p_address text)
 RETURNS text
 LANGUAGE plpgsql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_address ~ '^0x0{40}$' THEN
        RETURN 'nobody';
    ELSIF EXISTS (SELECT 1 FROM treasuries() d WHERE d.to_address = lower(p_address)) THEN
        RETURN 'treasury';
    ELSIF EXISTS (SELECT 1 FROM payment_destinations d
                   WHERE d.token = lower(p_address) AND d.noted_by <> 'intent') THEN
        RETURN 'token';
    -- This text also runs on a schema that has no deposits yet.
    ELSIF to_regclass('public.deposits') IS NULL THEN
        RETURN NULL;
    ELSIF EXISTS (SELECT 1 FROM deposit_addresses a JOIN deposits d ON d.address_id = a.id
                   WHERE lower(a.address) = lower(p_address)) THEN
        RETURN 'deposit_address';
    END IF;
    RETURN NULL;
END $function$;

-- Whether a scope of the watcher, by its key, is the one in which an attempt's transfer is read. Deposit addresses share the
-- scopes of their lanes (domain.chain.DepositScope).
CREATE OR REPLACE FUNCTION public.is_scope_of(p_scope_token text, p_scope_to_address text, p_kind text, p_token text, p_to_address text)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE p_kind WHEN 'deposit' THEN lower(p_scope_token) = '0x00000000000000000000000000000000000000de'
           ELSE lower(p_scope_token) = lower(p_token) AND lower(p_scope_to_address) = lower(p_to_address) END
$function$;

-- From which block on transfers to a treasury are payments: the setting's, or the first that was read.
CREATE OR REPLACE FUNCTION public.answered_blocks()
 RETURNS TABLE(chain_id bigint, token text, to_address text, first_block bigint)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT c.chain_id, lower(c.token), lower(c.to_address),
           min(coalesce(c.answers_from, CASE WHEN c.block_hash IS NOT NULL THEN c.first_block END))
      FROM chain_cursors c GROUP BY c.chain_id, lower(c.token), lower(c.to_address)
$function$;

-- The same of one treasury.
CREATE OR REPLACE FUNCTION public.first_block_answered_for(p_chain_id bigint, p_token text, p_to_address text)
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT a.first_block FROM answered_blocks() a
     WHERE a.chain_id = p_chain_id AND a.token = lower(p_token) AND a.to_address = lower(p_to_address)
$function$;

-- The height of a chain as its worker has last seen it; none before one has followed it. Reveals what is public.
CREATE OR REPLACE FUNCTION public.watched_head(p_chain_id bigint)
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT max(c.head_number) FROM chain_cursors c WHERE c.chain_id = p_chain_id AND c.retired_at IS NULL
$function$;

-- An attempt is paid only by income: a payer's transfer, in an accepted block.
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
        RAISE EXCEPTION 'transfer % of transaction % is from %, which cannot be a payer',
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

-- A transfer pays once, by whatever path it is credited. Attempts and operators are serialized by transaction, not by log: logs are
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

-- Which transfer is which after its transaction has moved to another block: domain/transfers/identity.py has the rule and
-- the reasons; a test has both answer the same questions.

-- Whether two transfers of one transaction are of one sender and value.
CREATE OR REPLACE FUNCTION public.is_alike(p_from_address text, p_value_raw numeric, p_other_from_address text, p_other_value_raw numeric)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT p_value_raw = p_other_value_raw AND lower(p_from_address) = lower(p_other_from_address)
$function$;

-- Whether the transfer at a place in a block has paid: by the places of its twins that are observed in that block, and
-- those at which twins were when they paid. Each of those takes one twin: that of its own index, else the first free one.
CREATE OR REPLACE FUNCTION public.is_place_paid(p_log_index bigint, p_observed bigint[], p_paid bigint[])
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT p_log_index = ANY (p_paid)
        OR (SELECT count(*) FROM (SELECT unnest(p_observed) AS log_index UNION SELECT p_log_index) place
             WHERE place.log_index <> ALL (p_paid) AND place.log_index <= p_log_index)
           <= cardinality(p_paid)
            - (SELECT count(*) FROM (SELECT unnest(p_observed) AS log_index UNION SELECT p_log_index) place
                WHERE place.log_index = ANY (p_paid))
$function$;

-- The transfers of a transaction that have paid an attempt, or that an operator has credited or sent back (without an
-- attempt), where they were last known to be. Of the latter the token is known as long as the watcher has them there.
CREATE OR REPLACE FUNCTION public.paid_transfers_of(p_chain_id bigint, p_tx_hash text, p_token text, p_to_address text)
 RETURNS TABLE(attempt_id uuid, status text, log_index bigint, block_hash text, from_address text, value_raw numeric, in_scope boolean)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT s.attempt_id, a.status, coalesce(f.log_index, s.log_index), coalesce(f.block_hash, s.block_hash),
           s.from_address, s.value_raw,
           lower(a.token) = lower(p_token) AND lower(a.to_address) = lower(p_to_address)
      FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
      LEFT JOIN transfer_finality f ON f.attempt_id = s.attempt_id
     WHERE s.chain_id = p_chain_id AND s.tx_hash = p_tx_hash
     UNION ALL
    SELECT NULL, NULL, c.log_index, c.block_hash, c.from_address, c.value_raw,
           coalesce(lower(o.token) = lower(p_token) AND lower(o.to_address) = lower(p_to_address), true)
      FROM transfer_credits c
      LEFT JOIN observed_transfers o
        ON o.chain_id = c.chain_id AND o.tx_hash = c.tx_hash AND o.log_index = c.log_index
       AND o.block_hash = c.block_hash
     WHERE c.chain_id = p_chain_id AND c.tx_hash = p_tx_hash AND c.part <> 'surplus'
$function$;

-- Whether a transfer has paid. What was reversed has paid an attempt, and is an operator's to credit when it comes back.
CREATE OR REPLACE FUNCTION public.transfer_is_paid(p_chain_id bigint, p_tx_hash text, p_log_index bigint, p_block_hash text, p_from_address text, p_value_raw numeric, p_token text, p_to_address text, p_counts_reversed boolean)
 RETURNS boolean
 LANGUAGE sql
 STABLE
AS $function$
    SELECT is_place_paid(
        p_log_index,
        ARRAY(SELECT o.log_index FROM observed_transfers o
               WHERE o.chain_id = p_chain_id AND o.tx_hash = p_tx_hash AND o.block_hash = p_block_hash
                 AND lower(o.token) = lower(p_token) AND lower(o.to_address) = lower(p_to_address)
                 AND is_alike(o.from_address, o.value_raw, p_from_address, p_value_raw)),
        ARRAY(SELECT p.log_index FROM paid_transfers_of(p_chain_id, p_tx_hash, p_token, p_to_address) p
               WHERE p.in_scope AND is_alike(p.from_address, p.value_raw, p_from_address, p_value_raw)
                 AND (p_counts_reversed OR p.status IS DISTINCT FROM 'REVERSED')))
$function$;

-- An attempt is not paid by a transfer that has paid before, or that an operator has credited or sent back.
CREATE OR REPLACE FUNCTION public.refuse_credited_transfer()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM lock_transfers_of(NEW.chain_id, NEW.tx_hash);
    IF (SELECT transfer_is_paid(NEW.chain_id, NEW.tx_hash, NEW.log_index, NEW.block_hash, NEW.from_address, NEW.value_raw,
                                a.token, a.to_address, true)
          FROM payment_attempts a WHERE a.id = NEW.attempt_id) THEN
        RAISE EXCEPTION 'transfer % of transaction % has paid an attempt, or was credited by an operator, before',
            NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'settled_transfers_not_credited_by_operator';
    END IF;
    RETURN NEW;
END $function$;
