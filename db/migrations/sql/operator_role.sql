-- Whose rows role settle_operator sees; `settle migrate` runs this each time it is given that role's address. The role is
-- bound by row-level security and passes it by these policies, so that no table is open to it that is not named here. What
-- it may do at all is in db/rights.py.

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['users', 'billing_accounts', 'ledger_accounts', 'credit_ledger', 'journal_lines',
                                   'payment_attempts', 'payment_events', 'settled_transfers', 'transfer_finality',
                                   'transfers_awaiting_finality', 'finality_progress', 'observed_transfers',
                                   'chain_cursors'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_policies WHERE schemaname = 'public' AND tablename = v_table
                                                   AND policyname = 'operators_read_all') THEN
            EXECUTE format('CREATE POLICY operators_read_all ON %I FOR SELECT TO settle_operator USING (true)', v_table);
        END IF;
    END LOOP;
END $$;
