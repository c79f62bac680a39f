-- settle_app sees its own user's rows, inside a scope set for the transaction, and without a scope nothing.
-- settle_service bypasses row-level security. Neither may change the ledger except through the doors.

CREATE FUNCTION current_tenant() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('settle.user_id', true), '')
$$;

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['users', 'billing_accounts', 'virtual_keys', 'ledger_accounts', 'credit_ledger',
                                   'journal_lines', 'payment_attempts', 'payment_events', 'settled_transfers'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        -- FORCE binds the owner too; the doors and the checks run as the owner and need a policy of their own.
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', v_table);
        EXECUTE format('GRANT SELECT ON %I TO settle_service', v_table);
    END LOOP;
END $$;

CREATE POLICY own_user ON users FOR SELECT TO settle_app USING (id = (SELECT current_tenant()));
CREATE POLICY own_accounts ON billing_accounts FOR SELECT TO settle_app
    USING (owner_user_id = (SELECT current_tenant()));
-- Inner queries are themselves under row-level security: they yield the tenant's own accounts and attempts.
-- = ANY (ARRAY(...)) is computed once and can use an index; EXISTS is one look by primary key. With IN the planner
-- reads the whole inner table.
CREATE POLICY own_keys ON virtual_keys FOR SELECT TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
CREATE POLICY own_ledger ON credit_ledger FOR SELECT TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
CREATE POLICY own_attempts ON payment_attempts FOR ALL TO settle_app
    USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))
    WITH CHECK (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
CREATE POLICY own_events ON payment_events FOR ALL TO settle_app
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id))
    WITH CHECK (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));
CREATE POLICY own_transfers ON settled_transfers FOR ALL TO settle_app
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id))
    WITH CHECK (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));

GRANT USAGE ON SCHEMA public TO settle_app, settle_service;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT SELECT ON users, billing_accounts, virtual_keys, credit_ledger, payment_attempts, payment_events, settled_transfers
    TO settle_app;
GRANT INSERT (id, billing_account_id, from_address, chain_id, token, to_address, amount_raw, amount_usd_cents, purpose,
              status, expires_at, created_at) ON payment_attempts TO settle_app, settle_service;
GRANT UPDATE (status, tx_hash, error_code, expires_at, submitted_at, submission_count, revenue_share)
    ON payment_attempts TO settle_app, settle_service;
GRANT INSERT ON payment_events, settled_transfers TO settle_app, settle_service;
GRANT SELECT ON alembic_version TO settle_app, settle_service;
