-- Sweeps: what was moved from deposit addresses to a treasury, in the ledger.

-- Book a transfer from a deposit address to a treasury, once: from the one account of its token to the other. False where it
-- is booked already. What it is worth is the caller's to say; a fraction of a credit is booked nowhere.
CREATE OR REPLACE FUNCTION public.book_swept_transfer(p_chain_id bigint, p_tx_hash text, p_log_index bigint, p_address_id uuid, p_method_id text, p_treasury text, p_value_raw numeric, p_credits bigint, p_block_number bigint, p_block_hash text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_entry_id uuid := CASE WHEN p_credits > 0 THEN gen_random_uuid() END;
    v_account text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('swept:' || p_chain_id || ':' || p_tx_hash || ':' || p_log_index, 0));
    IF EXISTS (SELECT FROM swept_transfers s
                WHERE s.chain_id = p_chain_id AND s.tx_hash = p_tx_hash AND s.log_index = p_log_index) THEN
        RETURN false;
    END IF;
    IF v_entry_id IS NOT NULL THEN
        SELECT 'cash:' || lower(m.token) INTO STRICT v_account FROM payment_methods m WHERE m.id = p_method_id;
        INSERT INTO general_entries (id, reason, reference)
        VALUES (v_entry_id, 'sweep', format('transfer:%s:%s:%s', p_chain_id, p_tx_hash, p_log_index));
        INSERT INTO journal_lines (entry_id, account_code, side, amount)
        VALUES (v_entry_id, v_account, 'debit', p_credits), (v_entry_id, v_account || ':deposits', 'credit', p_credits);
    END IF;
    INSERT INTO swept_transfers (chain_id, tx_hash, log_index, address_id, method_id, treasury, value_raw, credits,
                                 block_number, block_hash, entry_id)
    VALUES (p_chain_id, p_tx_hash, p_log_index, p_address_id, p_method_id, p_treasury, p_value_raw, p_credits,
            p_block_number, p_block_hash, v_entry_id);
    RETURN true;
END $function$;
