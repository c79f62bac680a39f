-- Deposits: what a charge's status follows from, and the next index of a key.

-- What has come to a charge's address, of its method's token: all of it, and what is credited.
CREATE OR REPLACE FUNCTION public.received_for_charge(p_charge_id uuid)
 RETURNS TABLE(seen_raw numeric, credited_raw numeric)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT coalesce(sum(d.value_raw) FILTER (WHERE a.status IS NULL OR a.status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED', 'CREDITED')
                                                   OR d.operator_credits IS NOT NULL), 0),
           coalesce(sum(d.value_raw) FILTER (WHERE a.status = 'CREDITED' OR d.operator_credits IS NOT NULL), 0)
      FROM charges c
      JOIN payment_methods m ON m.id = c.method_id
      JOIN deposits d ON d.address_id = c.address_id
      JOIN payment_methods of_deposit ON of_deposit.id = d.method_id
       AND of_deposit.chain_id = m.chain_id AND of_deposit.token = m.token
      LEFT JOIN payment_attempts a ON a.id = d.attempt_id
     WHERE c.id = p_charge_id
$function$;

-- A charge's status: domain.deposits.charges has the same rule. The charge is locked first, so that of two deposits that are
-- credited at once the second one's statement sees the first.
CREATE OR REPLACE FUNCTION public.refresh_charge(p_charge_id uuid)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM 1 FROM charges c WHERE c.id = p_charge_id FOR UPDATE;
    UPDATE charges c SET status = s.status, updated_at = now()
      FROM (SELECT k.id,
                   CASE WHEN r.credited_raw >= k.quoted_amount_raw THEN 'paid'
                        WHEN r.seen_raw >= k.quoted_amount_raw THEN 'confirming'
                        WHEN r.seen_raw > 0 THEN 'partial'
                        WHEN k.price_expires_at <= clock_timestamp() THEN 'expired'
                        ELSE 'new' END AS status
              FROM charges k, received_for_charge(k.id) r WHERE k.id = p_charge_id) s
     WHERE c.id = s.id AND c.status <> s.status;
END $function$;

CREATE OR REPLACE FUNCTION public.refresh_charge_of_deposit()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM refresh_charge(d.charge_id) FROM deposit_addresses d
      WHERE d.charge_id IS NOT NULL AND d.id IN (CASE WHEN TG_OP <> 'DELETE' THEN NEW.address_id END,
                                                 CASE WHEN TG_OP <> 'INSERT' THEN OLD.address_id END);
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION public.refresh_charge_of_attempt()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    PERFORM refresh_charge(d.charge_id) FROM deposits t JOIN deposit_addresses d ON d.id = t.address_id
      WHERE t.attempt_id = NEW.id AND d.charge_id IS NOT NULL;
    RETURN NULL;
END $function$;

-- An operator has credited a transfer: where it is a deposit, and to the account of its address, the deposit is credited, and
-- with it what its charge asks for. To another account it is no payment of that charge.
CREATE OR REPLACE FUNCTION public.note_operator_credit_of_deposit()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_deposit deposits;
BEGIN
    UPDATE deposits d SET operator_credits = NEW.amount_credits
      FROM deposit_addresses a
     WHERE d.chain_id = NEW.chain_id AND d.tx_hash = NEW.tx_hash AND d.log_index = NEW.log_index
       AND a.id = d.address_id AND a.billing_account_id = NEW.billing_account_id AND NEW.amount_credits > 0
    RETURNING d.* INTO v_deposit;
    IF FOUND THEN
        v_deposit.credits := NEW.amount_credits;
        PERFORM record_webhook_of_deposit(v_deposit, 'deposit.credited');
    END IF;
    RETURN NULL;
END $function$;

-- The next index of a key, never given out twice: the caller's transaction writes the address, or takes the index back.
CREATE OR REPLACE FUNCTION public.allocate_index(p_ring_id uuid)
 RETURNS bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    UPDATE address_rings r SET next_index = r.next_index + 1 WHERE r.id = p_ring_id RETURNING r.next_index - 1
$function$;

-- After a restore: so many indices of a key are given out to no one. Only forward. Where the key has addresses of a chain
-- like Bitcoin, as many more may be unpaid at its end, since no payment to the ones that were skipped is known.
CREATE OR REPLACE FUNCTION public.skip_indices(p_ring_id uuid, p_count integer, OUT next_index bigint, OUT gap_limit integer)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    IF p_count IS NULL OR p_count < 1 THEN
        RAISE EXCEPTION 'an index only moves forward: expected 1 or more to skip, got %', p_count
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE address_rings r
       SET next_index = r.next_index + p_count,
           gap_limit = r.gap_limit + CASE WHEN EXISTS (
               SELECT FROM payment_methods m WHERE m.ring_id = r.id AND m.kind = 'utxo') THEN p_count ELSE 0 END
     WHERE r.id = p_ring_id
    RETURNING r.next_index, r.gap_limit INTO skip_indices.next_index, skip_indices.gap_limit;
END $function$;

-- How many indices of a key come after the last one that was paid to, of all accounts: that far a wallet has to search.
CREATE OR REPLACE FUNCTION public.unpaid_at_the_end(p_ring_id uuid)
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT r.next_index - coalesce((
               SELECT a.index + 1 FROM deposit_addresses a
                WHERE a.ring_id = r.id AND EXISTS (SELECT FROM deposits d WHERE d.address_id = a.id)
                ORDER BY a.index DESC LIMIT 1), 0)
      FROM address_rings r WHERE r.id = p_ring_id
$function$;

-- Whose a charge is. The payer of one has no account here: its id, which cannot be guessed, opens its page.
CREATE OR REPLACE FUNCTION public.owner_of_charge(p_charge_id uuid, OUT user_id text, OUT billing_account_id text)
 RETURNS record
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT b.owner_user_id, b.id FROM charges c JOIN billing_accounts b ON b.id = c.billing_account_id
     WHERE c.id = p_charge_id
$function$;

-- The two ledger accounts of a method's token.
CREATE OR REPLACE FUNCTION public.open_cash_accounts()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO ledger_accounts (code, name, type, normal_side) VALUES
        ('cash:' || lower(NEW.token), NEW.token || ' in the treasury', 'asset', 'debit'),
        ('cash:' || lower(NEW.token) || ':deposits', NEW.token || ' at deposit addresses', 'asset', 'debit')
    ON CONFLICT (code) DO NOTHING;
    RETURN NULL;
END $function$;
