-- The only doors through which credits change and accounts are opened. No role may write the ledger's tables:
-- these functions run with the rights of the tables' owner, each checking what its caller may do.

-- Post one two-line journal entry, or report the one that is already there (posted = false).
-- One short call, because every purchase hits the system tenant's row: the lock on the account's row is taken
-- by the UPDATE and held until the caller commits.
CREATE FUNCTION post_entry(
    p_billing_account_id text, p_amount bigint, p_reason text, p_reference text, p_contra_account text, p_metadata jsonb
) RETURNS TABLE (entry_id uuid, amount bigint, balance_after bigint, posted boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_entry_id uuid;
    v_amount bigint;
    v_balance bigint;
    v_key_id uuid;
BEGIN
    SELECT e.id, e.amount, e.balance_after INTO v_entry_id, v_amount, v_balance FROM credit_ledger e
     WHERE e.billing_account_id = p_billing_account_id AND e.reference = p_reference AND e.reason = p_reason;
    IF FOUND THEN
        RETURN QUERY SELECT v_entry_id, v_amount, v_balance, false;
        RETURN;
    END IF;
    SELECT k.id INTO v_key_id FROM virtual_keys k WHERE k.billing_account_id = p_billing_account_id AND k.is_default;
    v_entry_id := gen_random_uuid();
    UPDATE billing_accounts b SET balance_credits = b.balance_credits + p_amount
     WHERE b.id = p_billing_account_id RETURNING b.balance_credits INTO v_balance;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no billing account %', p_billing_account_id USING ERRCODE = 'foreign_key_violation';
    END IF;
    INSERT INTO credit_ledger (id, billing_account_id, virtual_key_id, amount, balance_after, reason, reference, metadata)
    VALUES (v_entry_id, p_billing_account_id, v_key_id, p_amount, v_balance, p_reason, p_reference, p_metadata);
    INSERT INTO journal_lines (entry_id, account_code, side, amount) VALUES
        (v_entry_id, CASE WHEN p_amount > 0 THEN p_contra_account ELSE 'credits:' || p_billing_account_id END,
         'debit', abs(p_amount)),
        (v_entry_id, CASE WHEN p_amount > 0 THEN 'credits:' || p_billing_account_id ELSE p_contra_account END,
         'credit', abs(p_amount));
    RETURN QUERY SELECT v_entry_id, p_amount, v_balance, true;
END $$;

-- The payer's side of the same: credits an own purchase attempt, for exactly what it costs, and nothing else.
-- The transfer that pays it must be written already; at commit that transfer in turn wants the attempt CREDITED.
CREATE FUNCTION post_own_purchase(p_attempt_id uuid, p_amount bigint, p_contra_account text, p_metadata jsonb)
RETURNS TABLE (entry_id uuid, amount bigint, balance_after bigint, posted boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account text;
BEGIN
    SELECT a.billing_account_id INTO v_account
      FROM payment_attempts a JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.id = p_attempt_id AND a.purpose = 'self' AND a.status IN ('PENDING_UNVERIFIED', 'CREDITED')
       AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND p_amount = a.amount_usd_cents * 100000 AND p_contra_account = 'cash:usdc'
       AND EXISTS (SELECT 1 FROM settled_transfers s WHERE s.attempt_id = a.id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % is not an own purchase of % credits, submitted and paid', p_attempt_id, p_amount
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT * FROM post_entry(
        v_account, p_amount, 'credits_purchase', p_attempt_id::text, p_contra_account, p_metadata);
END $$;

-- The user, billing account and default key of a wallet; opens them when the wallet has none. Safe at once and twice.
CREATE FUNCTION provision_wallet(p_wallet_address text)
RETURNS TABLE (user_id text, billing_account_id text, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_user_id text;
    v_account_id text;
    v_created boolean := false;
BEGIN
    INSERT INTO users (id, wallet_address) VALUES (gen_random_uuid()::text, p_wallet_address)
    ON CONFLICT DO NOTHING;
    -- The lock makes a second caller wait until the first one's account is there.
    SELECT u.id INTO v_user_id FROM users u WHERE lower(u.wallet_address) = lower(p_wallet_address) FOR UPDATE;
    SELECT b.id INTO v_account_id FROM billing_accounts b
     WHERE b.owner_user_id = v_user_id ORDER BY b.created_at, b.id LIMIT 1;
    IF NOT FOUND THEN
        v_created := true;
        v_account_id := gen_random_uuid()::text;
        INSERT INTO billing_accounts (id, owner_user_id) VALUES (v_account_id, v_user_id);
        INSERT INTO virtual_keys (billing_account_id, label, is_default) VALUES (v_account_id, 'Default', true);
    END IF;
    RETURN QUERY SELECT v_user_id, v_account_id, v_created;
END $$;

REVOKE ALL ON FUNCTION post_entry, post_own_purchase, provision_wallet FROM PUBLIC;
GRANT EXECUTE ON FUNCTION post_entry TO settle_service;
GRANT EXECUTE ON FUNCTION post_own_purchase TO settle_app;
GRANT EXECUTE ON FUNCTION provision_wallet TO settle_app, settle_service;

-- Whether the system tenant is there and flagged; NULL where it is missing. Tenants may not see its row.
CREATE FUNCTION system_tenant_is_flagged() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT is_system_tenant FROM billing_accounts WHERE id = 'cogni_system'
$$;
REVOKE ALL ON FUNCTION system_tenant_is_flagged FROM PUBLIC;
GRANT EXECUTE ON FUNCTION system_tenant_is_flagged TO settle_app, settle_service;

-- A trigger's function can be attached to a table of one's own and then shows, in its error, what its owner sees.
REVOKE ALL ON FUNCTION refuse_change, check_entry_balanced, check_running_balance, check_account_balance,
    open_liability_account, guard_attempt, check_own_wallet, check_credited_attempt, check_settled_transfer FROM PUBLIC;
