-- Tables of this migration: closed to everybody, then opened to workers and operators' commands.

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['transfer_finality', 'observed_transfers', 'orphaned_transfers', 'chain_cursors',
                                   'watched_blocks', 'findings', 'governance_heartbeats',
                                   'books_checkpoints', 'books_checks', 'books_violations',
                                   'operator_actions', 'transfer_credits', 'balance_assertions'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
        EXECUTE format('REVOKE ALL ON %I FROM PUBLIC', v_table);
        EXECUTE format('GRANT SELECT ON %I TO settle_service', v_table);
    END LOOP;
END $$;

GRANT INSERT ON transfer_finality, orphaned_transfers TO settle_service;
GRANT INSERT, UPDATE, DELETE ON observed_transfers, chain_cursors, watched_blocks TO settle_service;
GRANT INSERT, UPDATE ON findings, governance_heartbeats TO settle_service;
GRANT INSERT ON operator_actions, transfer_credits, balance_assertions TO settle_service;
GRANT UPDATE ON books_checkpoints, books_checks TO settle_service;
GRANT INSERT, UPDATE ON books_violations TO settle_service;

-- When a transfer that a payer names was mined, as far as the watcher has seen it: he may name it after his intent has
-- expired, and was in time all the same. Tells of an own attempt's payer only.
CREATE FUNCTION observed_payment_time(p_attempt_id uuid, p_tx_hash text) RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT min(t.block_time)
      FROM payment_attempts a
      JOIN billing_accounts b ON b.id = a.billing_account_id
      JOIN observed_transfers t ON t.chain_id = a.chain_id AND t.tx_hash = p_tx_hash
     WHERE a.id = p_attempt_id AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND lower(t.from_address) = lower(a.from_address) AND lower(t.to_address) = lower(a.to_address)
       AND lower(t.token) = lower(a.token) AND t.value_raw >= a.amount_raw
$$;
REVOKE ALL ON FUNCTION observed_payment_time FROM PUBLIC;
GRANT EXECUTE ON FUNCTION observed_payment_time TO settle_app;
