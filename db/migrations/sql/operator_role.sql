-- What role settle_operator may read; `settle migrate` runs this each time it is given that role's address. The role is
-- bound by row-level security and passes it by these policies, so that no table is open to it that is not named here.

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['users', 'billing_accounts', 'ledger_accounts', 'credit_ledger', 'journal_lines',
                                   'payment_attempts', 'payment_events', 'settled_transfers'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_policies WHERE schemaname = 'public' AND tablename = v_table
                                                   AND policyname = 'operators_read_all') THEN
            EXECUTE format('CREATE POLICY operators_read_all ON %I FOR SELECT TO settle_operator USING (true)', v_table);
        END IF;
        EXECUTE format('GRANT SELECT ON %I TO settle_operator', v_table);
    END LOOP;
END $$;
GRANT USAGE ON SCHEMA public TO settle_operator;
GRANT SELECT ON alembic_version TO settle_operator;
GRANT EXECUTE ON FUNCTION system_tenant_is_flagged, schema_compatible_from, non_payer_kind, first_block_answered_for
    TO settle_operator;
