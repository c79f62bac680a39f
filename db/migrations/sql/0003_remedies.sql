-- What operators do about findings, whom they credit a transfer to, and what reconciliations found.

-- A finding that is looked at anew and found again is open again, and may be resolved again.
ALTER TABLE findings
    ADD COLUMN times_opened bigint NOT NULL DEFAULT 1 CHECK (times_opened > 0),
    ADD COLUMN opened_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX findings_by_kind ON findings (kind, created_at);

CREATE INDEX observed_transfers_by_time ON observed_transfers (chain_id, block_time);
-- Rows come in the order of time, or nearly: a few kilobytes tell where a day begins.
CREATE INDEX settled_transfers_by_time ON settled_transfers USING brin (created_at);
CREATE INDEX payment_attempts_by_change ON payment_attempts USING brin (updated_at);

-- The audit trail of operators' remedies.
CREATE TABLE operator_actions (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    action text NOT NULL CHECK (action IN ('retry', 'credit', 'refund_recorded', 'write_off')),
    operator text NOT NULL CHECK (btrim(operator) <> '' AND length(operator) <= 100),
    reason text NOT NULL CHECK (btrim(reason) <> '' AND length(reason) <= 2000),
    finding_id uuid REFERENCES findings (id),
    -- Which of the times that the finding was open it ended.
    opening bigint,
    attempt_id uuid REFERENCES payment_attempts (id),
    outcome jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((finding_id IS NULL) = (opening IS NULL)),
    CHECK (finding_id IS NOT NULL OR attempt_id IS NOT NULL),
    CONSTRAINT operator_actions_one_per_opening UNIQUE (finding_id, opening)
);
CREATE INDEX operator_actions_by_attempt ON operator_actions (attempt_id) WHERE attempt_id IS NOT NULL;

-- A transfer, or the surplus of one that paid an attempt, that an operator credited to an account; or a transfer that
-- was sent back: that, too, is what it was used for, and it pays nothing any more.
CREATE TABLE transfer_credits (
    chain_id bigint NOT NULL,
    tx_hash text NOT NULL,
    log_index bigint NOT NULL,
    part text NOT NULL CHECK (part IN ('whole', 'surplus', 'refund')),
    -- Where the transfer was then: with it, one can tell whether its transaction has moved since.
    block_number bigint NOT NULL,
    block_hash text NOT NULL,
    from_address text NOT NULL,
    finding_id uuid NOT NULL UNIQUE REFERENCES findings (id),
    billing_account_id text REFERENCES billing_accounts (id) CHECK (billing_account_id <> 'cogni_system'),
    value_raw numeric(78, 0) NOT NULL CHECK (value_raw > 0),
    amount_credits bigint NOT NULL,
    -- The bonus's share: decided with the credit, so that a later setting does not change it.
    revenue_share numeric NOT NULL CHECK (revenue_share BETWEEN 0 AND 1),
    -- Of the ledger's entries; what was sent back has none.
    reference text UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (chain_id, tx_hash, log_index),
    CONSTRAINT transfer_credits_amounts_agree
        CHECK (amount_credits = CASE part WHEN 'refund' THEN 0 ELSE value_raw * 10 END),
    CONSTRAINT transfer_credits_refund_credits_nobody CHECK (
        (part = 'refund') = (billing_account_id IS NULL) AND (part = 'refund') = (reference IS NULL)),
    CONSTRAINT transfer_credits_reference_is_transfer
        CHECK (reference = 'transfer:' || chain_id::text || ':' || tx_hash || ':' || log_index::text)
);
CREATE INDEX transfer_credits_by_time ON transfer_credits (created_at);

-- What a reconciliation found: the books as they stood against the chain. `differences` are counted by kind.
CREATE TABLE balance_assertions (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    chain_id bigint NOT NULL,
    period_from timestamptz NOT NULL,
    period_to timestamptz NOT NULL,
    transfers bigint NOT NULL,
    inflow_raw numeric(78, 0) NOT NULL,
    purchases_credits numeric(78, 0) NOT NULL,
    donations_credits numeric(78, 0) NOT NULL,
    operator_credits numeric(78, 0) NOT NULL,
    unapplied_raw numeric(78, 0) NOT NULL,
    reversed_credits numeric(78, 0) NOT NULL,
    ledger_debit_credits numeric(78, 0) NOT NULL,
    ledger_credit_credits numeric(78, 0) NOT NULL,
    differences jsonb NOT NULL,
    totals jsonb NOT NULL,
    closes boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (period_from < period_to)
);
CREATE INDEX balance_assertions_by_period ON balance_assertions (chain_id, period_to);

CREATE TRIGGER operator_actions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER transfer_credits_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer_credits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER balance_assertions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON balance_assertions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A transfer pays once, whoever credits it. Both sides take turns by transaction, not by log: logs are renumbered when
-- their transaction moves to another block. What is read after the lock must not be older than the lock.
CREATE FUNCTION lock_transfers_of(p_chain_id bigint, p_tx_hash text) RETURNS void
LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') = 'repeatable read' THEN
        RAISE EXCEPTION 'a transfer is applied in READ COMMITTED: an older snapshot does not show what was just applied'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('transfers:' || p_chain_id || ':' || p_tx_hash, 0));
END $$;

-- An attempt is not paid by a transfer that an operator has credited. In another block than it was then, its log may
-- have another index: it is known by its sender and value.
CREATE FUNCTION refuse_credited_transfer() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM lock_transfers_of(NEW.chain_id, NEW.tx_hash);
    IF EXISTS (
        SELECT 1 FROM transfer_credits c
         WHERE c.chain_id = NEW.chain_id AND c.tx_hash = NEW.tx_hash AND c.part <> 'surplus'
           AND CASE WHEN c.block_hash = NEW.block_hash THEN c.log_index = NEW.log_index
                    ELSE lower(c.from_address) = lower(NEW.from_address) AND c.value_raw = NEW.value_raw END
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % was credited by an operator', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'settled_transfers_not_credited_by_operator';
    END IF;
    -- What comes back after its reversal is for an operator, whatever index its log has in its new block.
    IF EXISTS (
        SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND a.status = 'REVERSED'
           AND lower(s.from_address) = lower(NEW.from_address) AND s.value_raw = NEW.value_raw
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % has paid an attempt that was reversed', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'settled_transfers_one_attempt_per_transfer';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER settled_transfers_not_credited_by_operator BEFORE INSERT ON settled_transfers
    FOR EACH ROW EXECUTE FUNCTION refuse_credited_transfer();

-- The other way round: an operator credits, or sends back, what the canonical chain shows and no attempt was paid with;
-- or credits the surplus of what an attempt was paid with, once that is final.
CREATE FUNCTION check_transfer_credit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_free bigint;
BEGIN
    PERFORM lock_transfers_of(NEW.chain_id, NEW.tx_hash);
    IF NEW.part = 'surplus' THEN
        PERFORM 1 FROM payment_attempts a JOIN settled_transfers s ON s.attempt_id = a.id
          WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND s.log_index = NEW.log_index
            AND s.surplus_raw = NEW.value_raw AND lower(s.from_address) = lower(NEW.from_address)
            AND a.status = 'CREDITED'
            AND EXISTS (SELECT 1 FROM transfer_finality f WHERE f.attempt_id = a.id AND f.outcome = 'final')
            FOR SHARE OF a;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'transfer % of transaction % has no such surplus', NEW.log_index, NEW.tx_hash
                USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_surplus';
        END IF;
        RETURN NEW;
    END IF;
    PERFORM 1 FROM observed_transfers o
      WHERE o.chain_id = NEW.chain_id AND o.tx_hash = NEW.tx_hash AND o.log_index = NEW.log_index
        AND o.block_number = NEW.block_number AND o.block_hash = NEW.block_hash AND o.value_raw = NEW.value_raw
        AND lower(o.from_address) = lower(NEW.from_address)
        FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'transfer % of transaction % is not on the chain like that', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_transfer_on_chain';
    END IF;
    -- Alike are those of one sender and value in one transaction: each is there once, and pays once.
    SELECT (SELECT count(*) FROM observed_transfers o
             WHERE o.chain_id = NEW.chain_id AND o.tx_hash = NEW.tx_hash AND o.value_raw = NEW.value_raw
               AND lower(o.from_address) = lower(NEW.from_address))
         - (SELECT count(*) FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
             WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND s.value_raw = NEW.value_raw
               AND lower(s.from_address) = lower(NEW.from_address) AND a.status <> 'REVERSED')
         - (SELECT count(*) FROM transfer_credits c
             WHERE c.chain_id = NEW.chain_id AND c.tx_hash = NEW.tx_hash AND c.value_raw = NEW.value_raw
               AND lower(c.from_address) = lower(NEW.from_address) AND c.part <> 'surplus')
      INTO v_free;
    IF v_free < 1 OR EXISTS (
        SELECT 1 FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
          LEFT JOIN transfer_finality f ON f.attempt_id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND a.status <> 'REVERSED'
           AND coalesce(f.log_index, s.log_index) = NEW.log_index
           AND coalesce(f.block_hash, s.block_hash) = NEW.block_hash
    ) OR EXISTS (
        -- Credited by this transaction, and what it was paid with has been removed: nobody knows that it was not this.
        SELECT 1 FROM payment_attempts a
         WHERE a.tx_hash = NEW.tx_hash AND a.chain_id = NEW.chain_id AND a.status = 'CREDITED'
           AND lower(a.from_address) = lower(NEW.from_address)
           AND NOT EXISTS (SELECT 1 FROM settled_transfers s WHERE s.attempt_id = a.id)
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % has paid already', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'transfer_credits_not_settled';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER transfer_credits_not_settled BEFORE INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION check_transfer_credit();

-- A credited transfer and its ledger entry come in one commit, each because of the other.
CREATE FUNCTION check_transfer_credit_posted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NEW.part <> 'refund' AND NOT EXISTS (
        SELECT 1 FROM credit_ledger e JOIN journal_lines l ON l.entry_id = e.id
         WHERE e.reference = NEW.reference AND e.reason = 'operator_credit' AND e.amount = NEW.amount_credits
           AND e.billing_account_id = NEW.billing_account_id AND l.account_code = 'cash:usdc' AND l.side = 'debit'
    ) THEN
        RAISE EXCEPTION '% is credited to % without a ledger entry', NEW.reference, NEW.billing_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_in_ledger';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER transfer_credits_in_ledger AFTER INSERT ON transfer_credits
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_transfer_credit_posted();

CREATE FUNCTION check_operator_credit_entry() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM transfer_credits c
         WHERE c.reference = NEW.reference
           AND CASE NEW.reason
               WHEN 'operator_credit'
               THEN c.billing_account_id = NEW.billing_account_id AND c.amount_credits = NEW.amount
               ELSE NEW.billing_account_id = 'cogni_system' AND NEW.amount = floor(c.amount_credits * c.revenue_share)
               END
    ) THEN
        RAISE EXCEPTION 'ledger entry % (% of %) has no transfer that an operator credited', NEW.id, NEW.reason, NEW.amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_operator_credit_has_transfer';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER credit_ledger_operator_credit_has_transfer AFTER INSERT ON credit_ledger
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.reason = 'operator_credit'
          OR (NEW.reason = 'platform_revenue_share' AND starts_with(NEW.reference, 'transfer:')))
    EXECUTE FUNCTION check_operator_credit_entry();

REVOKE ALL ON FUNCTION lock_transfers_of, refuse_credited_transfer, check_transfer_credit, check_transfer_credit_posted,
    check_operator_credit_entry FROM PUBLIC;
