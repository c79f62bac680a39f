-- After the credit: a payment that the chain takes back is reversed, one that was mined before its intent expired was
-- paid in time, however late that is seen.

-- In the order in which a settlement takes them: a worker that runs meanwhile waits, and neither waits for the other.
LOCK TABLE payment_attempts, settled_transfers, credit_ledger IN ACCESS EXCLUSIVE MODE;

ALTER TABLE payment_attempts
    DROP CONSTRAINT payment_attempts_status_check,
    DROP CONSTRAINT payment_attempts_submitted_has_hash,
    DROP CONSTRAINT payment_attempts_purchase_has_share,
    ADD CONSTRAINT payment_attempts_status_check CHECK (
        status IN ('CREATED_INTENT', 'PENDING_UNVERIFIED', 'CREDITED', 'REJECTED', 'FAILED', 'REVERSED')),
    ADD CONSTRAINT payment_attempts_submitted_has_hash CHECK (
        status NOT IN ('PENDING_UNVERIFIED', 'CREDITED', 'REVERSED')
        OR (tx_hash IS NOT NULL AND submitted_at IS NOT NULL AND expires_at IS NULL)),
    ADD CONSTRAINT payment_attempts_purchase_has_share CHECK (
        (revenue_share IS NOT NULL) = (status IN ('CREDITED', 'REVERSED') AND purpose = 'self'));

-- The watcher looks for the intents of whoever sent a transfer.
CREATE INDEX payment_attempts_by_payer ON payment_attempts (lower(from_address), amount_raw, created_at);
-- Housekeeping expires intents by the time at which they end.
CREATE INDEX payment_attempts_by_expiry ON payment_attempts (expires_at) WHERE status = 'CREATED_INTENT';

ALTER TABLE credit_ledger
    ADD CONSTRAINT credit_ledger_reversal_takes CHECK (
        reason <> 'payment_reversal' OR (amount < 0 AND reference IS NOT NULL)),
    ADD CONSTRAINT credit_ledger_operator_credit_gives CHECK (
        reason <> 'operator_credit' OR (amount > 0 AND reference IS NOT NULL));
CREATE UNIQUE INDEX credit_ledger_one_reversal_per_reference
    ON credit_ledger (billing_account_id, reference) WHERE reason = 'payment_reversal';
-- Of a transfer, not of an account: an operator credits a transfer to one account.
CREATE UNIQUE INDEX credit_ledger_one_operator_credit_per_reference
    ON credit_ledger (reference) WHERE reason = 'operator_credit';

-- What became of a transfer after the credit: final in the block where it is now, or gone. Its log's index changes when
-- its transaction moves to another block, so this says where it is.
CREATE TABLE transfer_finality (
    attempt_id uuid PRIMARY KEY REFERENCES payment_attempts (id),
    outcome text NOT NULL CHECK (outcome IN ('final', 'reversed')),
    chain_id bigint NOT NULL,
    tx_hash text NOT NULL,
    -- Where it is now; where it was, of one that is gone.
    log_index bigint NOT NULL CHECK (log_index >= 0),
    block_number bigint NOT NULL CHECK (block_number >= 0),
    block_hash text NOT NULL CHECK (block_hash ~ '^0x[0-9a-f]{64}$'),
    level text NOT NULL CHECK (level IN ('confirmations', 'safe', 'finalized')),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX transfer_finality_by_transfer ON transfer_finality (chain_id, tx_hash);
CREATE TRIGGER transfer_finality_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer_finality
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE OR REPLACE FUNCTION guard_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'CREATED_INTENT' THEN
            RAISE EXCEPTION 'a payment attempt begins as CREATED_INTENT, not %', NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_first_status';
        END IF;
        RETURN NEW;
    END IF;
    IF (NEW.id, NEW.billing_account_id, NEW.from_address, NEW.chain_id, NEW.token, NEW.to_address,
        NEW.amount_raw, NEW.amount_usd_cents, NEW.purpose, NEW.created_at)
       IS DISTINCT FROM
       (OLD.id, OLD.billing_account_id, OLD.from_address, OLD.chain_id, OLD.token, OLD.to_address,
        OLD.amount_raw, OLD.amount_usd_cents, OLD.purpose, OLD.created_at) THEN
        RAISE EXCEPTION 'what was agreed in payment attempt % is write-once', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_write_once';
    END IF;
    IF OLD.status IN ('REJECTED', 'REVERSED')
       OR NOT (
           (NEW.status = OLD.status AND OLD.status NOT IN ('CREDITED', 'FAILED'))
           OR (OLD.status = 'CREATED_INTENT' AND NEW.status IN ('PENDING_UNVERIFIED', 'FAILED'))
           OR (OLD.status = 'PENDING_UNVERIFIED' AND NEW.status IN ('CREDITED', 'REJECTED', 'FAILED'))
           OR (OLD.status = 'CREDITED' AND NEW.status = 'REVERSED')
           -- It expired unpaid, as far as anybody knew, and was paid in time.
           OR (OLD.status = 'FAILED' AND OLD.error_code = 'INTENT_EXPIRED' AND NEW.status = 'PENDING_UNVERIFIED')
       ) THEN
        RAISE EXCEPTION 'payment attempt % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_legal_transition';
    END IF;
    -- A credited attempt keeps what it was credited with.
    IF OLD.status = 'CREDITED' AND (NEW.tx_hash, NEW.submitted_at, NEW.submission_count, NEW.revenue_share)
       IS DISTINCT FROM (OLD.tx_hash, OLD.submitted_at, OLD.submission_count, OLD.revenue_share) THEN
        RAISE EXCEPTION 'what payment attempt % was credited with is write-once', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_write_once';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;

-- REVERSED means, in the same commit: the buyer's (of a donation, the system tenant's) entry is taken back in full, and
-- it is on record that the transfer is gone.
CREATE FUNCTION check_reversed_attempt() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = NEW.id AND f.outcome = 'reversed') THEN
        RAISE EXCEPTION 'payment attempt % is REVERSED and its transfer is not on record as gone', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_reversed_transfer_is_gone';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.id::text AND e.reason = 'payment_reversal'
           AND e.amount = -NEW.amount_usd_cents * 100000
           AND e.billing_account_id = CASE NEW.purpose WHEN 'self' THEN NEW.billing_account_id ELSE 'cogni_system' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is REVERSED without its ledger entry', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_reversed_in_ledger';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER payment_attempts_reversed AFTER UPDATE OF status ON payment_attempts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.status = 'REVERSED')
    EXECUTE FUNCTION check_reversed_attempt();

-- The other way round: an outcome agrees with the attempt that it is about, and nothing is taken back of one that stands.
CREATE FUNCTION check_finality() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM payment_attempts a JOIN settled_transfers s ON s.attempt_id = a.id
         WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id AND a.tx_hash = NEW.tx_hash
           AND a.status = CASE NEW.outcome WHEN 'final' THEN 'CREDITED' ELSE 'REVERSED' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is not what its transfer''s outcome "%" says', NEW.attempt_id, NEW.outcome
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_finality_agrees_with_attempt';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER transfer_finality_agrees_with_attempt AFTER INSERT ON transfer_finality
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_finality();

CREATE FUNCTION check_reversal_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id::text = NEW.reference AND a.status = 'REVERSED') THEN
        RAISE EXCEPTION 'ledger entry % reverses a payment that stands', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_reverses_reversed_payment';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.reference AND e.billing_account_id = NEW.billing_account_id
           AND e.reason IN ('credits_purchase', 'platform_revenue_share', 'system_donation')
           AND e.amount = -NEW.amount
    ) THEN
        RAISE EXCEPTION 'ledger entry % takes back what was not given', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_reverses_what_was_given';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER credit_ledger_reversal AFTER INSERT ON credit_ledger
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.reason = 'payment_reversal')
    EXECUTE FUNCTION check_reversal_entry();
REVOKE ALL ON FUNCTION check_reversed_attempt, check_finality, check_reversal_entry FROM PUBLIC;
