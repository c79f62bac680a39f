-- What only processes of revision 0003 needed.

DROP TRIGGER payment_attempts_guard_by_role ON payment_attempts;
CREATE TRIGGER payment_attempts_guard_by_role BEFORE UPDATE ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_attempt_by_role();

DROP POLICY own_transfers ON settled_transfers;
CREATE POLICY own_transfers ON settled_transfers FOR SELECT TO settle_app, settle_settlement
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));
CREATE POLICY own_transfers_written ON settled_transfers FOR INSERT TO settle_settlement
    WITH CHECK (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));

-- The audit trail is complete: an event is written in the transaction of its step, by a role that may take that step.
DROP POLICY own_events ON payment_events;
CREATE POLICY own_events ON payment_events FOR SELECT TO settle_app, settle_settlement
    USING (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id));
CREATE POLICY own_events_of_workers ON payment_events FOR INSERT TO settle_settlement
    WITH CHECK (EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = attempt_id AND a.status = to_status));
CREATE POLICY own_events_of_payers ON payment_events FOR INSERT TO settle_app
    WITH CHECK (EXISTS (
        SELECT 1 FROM payment_attempts a
         WHERE a.id = attempt_id AND a.status = to_status AND a.error_code IS NOT DISTINCT FROM payment_events.error_code
           AND CASE event_type
               WHEN 'intent_created' THEN from_status IS NULL AND to_status = 'CREATED_INTENT'
               WHEN 'submitted' THEN from_status IN ('CREATED_INTENT', 'FAILED') AND to_status = 'PENDING_UNVERIFIED'
                                     AND metadata ->> 'txHash' = a.tx_hash
               WHEN 'hash_replaced' THEN from_status = 'PENDING_UNVERIFIED' AND to_status = 'PENDING_UNVERIFIED'
                                         AND metadata ->> 'txHash' = a.tx_hash
               WHEN 'failed' THEN from_status = 'CREATED_INTENT' AND to_status = 'FAILED'
                                  AND payment_events.error_code = 'INTENT_EXPIRED'
               ELSE false
               END));
