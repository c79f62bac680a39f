-- The invariants that span rows, kept even against a buggy caller who owns the tables.
-- Trigger functions are SECURITY DEFINER: a check must see what it checks, whatever the caller may see.

-- Append-only: a correction is a new row.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER credit_ledger_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credit_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER journal_lines_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_lines
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER settled_transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON settled_transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A journal entry balances, moves its billing account's liability by exactly the header's amount and nobody else's,
-- and is written at once: a line that came in another transaction than its header would change an old entry.
CREATE FUNCTION check_entry_balanced() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_entry_id uuid;
    v_imbalance numeric;
    v_liability numeric;
    v_amount bigint;
    v_foreign boolean;
    v_late boolean;
BEGIN
    IF TG_TABLE_NAME = 'credit_ledger' THEN v_entry_id := NEW.id; ELSE v_entry_id := NEW.entry_id; END IF;
    SELECT e.amount,
           coalesce(sum(CASE l.side WHEN 'debit' THEN l.amount ELSE -l.amount END), 0),
           coalesce(sum(CASE l.side WHEN 'credit' THEN l.amount ELSE -l.amount END)
                    FILTER (WHERE a.billing_account_id = e.billing_account_id AND a.type = 'liability'), 0),
           coalesce(bool_or(a.billing_account_id <> e.billing_account_id), false),
           coalesce(bool_or(l.xmin <> e.xmin), false)
      INTO v_amount, v_imbalance, v_liability, v_foreign, v_late
      FROM credit_ledger e
      LEFT JOIN journal_lines l ON l.entry_id = e.id
      LEFT JOIN ledger_accounts a ON a.code = l.account_code
     WHERE e.id = v_entry_id
     GROUP BY e.id, e.amount;
    IF v_imbalance <> 0 THEN
        RAISE EXCEPTION 'journal entry % is not balanced: debits - credits = %', v_entry_id, v_imbalance
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_balanced';
    END IF;
    IF v_liability <> v_amount THEN
        RAISE EXCEPTION 'journal entry % moves its account by %, its header says %', v_entry_id, v_liability, v_amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_matches_header';
    END IF;
    IF v_foreign THEN
        RAISE EXCEPTION 'journal entry % moves the credits of another billing account', v_entry_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_of_one_account';
    END IF;
    IF v_late THEN
        RAISE EXCEPTION 'journal entry % is posted: a correction is a new entry, not a new line', v_entry_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entry_written_at_once';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER credit_ledger_balanced AFTER INSERT ON credit_ledger
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_entry_balanced();
CREATE CONSTRAINT TRIGGER journal_lines_balanced AFTER INSERT ON journal_lines
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_entry_balanced();

-- balance_after continues the account's previous entry, and balance_credits is the last balance_after:
-- together, by induction, balance_credits is the sum of the account's entries.
CREATE FUNCTION check_running_balance() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_before bigint;
    v_balance bigint;
    v_last bigint;
BEGIN
    SELECT balance_after INTO v_before FROM credit_ledger
     WHERE billing_account_id = NEW.billing_account_id AND entry_seq < NEW.entry_seq
     ORDER BY entry_seq DESC LIMIT 1;
    IF NEW.balance_after <> coalesce(v_before, 0) + NEW.amount THEN
        RAISE EXCEPTION 'ledger entry % says balance %, previous % and amount % make %',
            NEW.id, NEW.balance_after, coalesce(v_before, 0), NEW.amount, coalesce(v_before, 0) + NEW.amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_running_balance';
    END IF;
    SELECT balance_credits INTO v_balance FROM billing_accounts WHERE id = NEW.billing_account_id;
    SELECT balance_after INTO v_last FROM credit_ledger
     WHERE billing_account_id = NEW.billing_account_id ORDER BY entry_seq DESC LIMIT 1;
    IF v_balance <> v_last THEN
        RAISE EXCEPTION 'balance of % is %, its ledger says %', NEW.billing_account_id, v_balance, v_last
            USING ERRCODE = 'check_violation', CONSTRAINT = 'billing_accounts_balance_is_ledger_sum';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER credit_ledger_running_balance AFTER INSERT ON credit_ledger
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_running_balance();

CREATE FUNCTION check_account_balance() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_balance bigint;
    v_last bigint;
BEGIN
    SELECT balance_credits INTO v_balance FROM billing_accounts WHERE id = NEW.id;
    SELECT balance_after INTO v_last FROM credit_ledger
     WHERE billing_account_id = NEW.id ORDER BY entry_seq DESC LIMIT 1;
    IF v_balance <> coalesce(v_last, 0) THEN
        RAISE EXCEPTION 'balance of % is %, its ledger says %', NEW.id, v_balance, coalesce(v_last, 0)
            USING ERRCODE = 'check_violation', CONSTRAINT = 'billing_accounts_balance_is_ledger_sum';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER billing_accounts_balance_is_ledger_sum
    AFTER INSERT OR UPDATE OF balance_credits ON billing_accounts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_account_balance();

-- Every billing account has its liability account in the chart.
CREATE FUNCTION open_liability_account() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO ledger_accounts (code, name, type, normal_side, billing_account_id)
    VALUES ('credits:' || NEW.id, 'Credits owed to ' || NEW.id, 'liability', 'credit', NEW.id)
    ON CONFLICT (code) DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER billing_accounts_open_liability AFTER INSERT ON billing_accounts
    FOR EACH ROW EXECUTE FUNCTION open_liability_account();

-- What was agreed is write-once; a status only takes the legal steps (domain.attempt.LEGAL_TRANSITIONS).
CREATE FUNCTION guard_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
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
    IF OLD.status IN ('CREDITED', 'REJECTED', 'FAILED')
       OR NOT (
           NEW.status = OLD.status
           OR (OLD.status = 'CREATED_INTENT' AND NEW.status IN ('PENDING_UNVERIFIED', 'FAILED'))
           OR (OLD.status = 'PENDING_UNVERIFIED' AND NEW.status IN ('CREDITED', 'REJECTED', 'FAILED'))
       ) THEN
        RAISE EXCEPTION 'payment attempt % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'payment_attempts_legal_transition';
    END IF;
    NEW.updated_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER payment_attempts_guard BEFORE INSERT OR UPDATE ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION guard_attempt();

-- The payer is the wallet that signed in: nobody makes an attempt that somebody else's transfer would pay.
CREATE FUNCTION check_own_wallet() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id
         WHERE b.id = NEW.billing_account_id AND lower(u.wallet_address) = lower(NEW.from_address)
    ) THEN
        RAISE EXCEPTION 'payment attempt % is not from the wallet of the account that makes it', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_from_own_wallet';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER payment_attempts_own_wallet AFTER INSERT ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION check_own_wallet();

-- CREDITED means: a settled transfer and the ledger entry that it paid for are there, in the same commit.
CREATE FUNCTION check_credited_attempt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM settled_transfers WHERE attempt_id = NEW.id) THEN
        RAISE EXCEPTION 'payment attempt % is CREDITED without a settled transfer', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_credited_by_transfer';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM credit_ledger e
         WHERE e.reference = NEW.id::text AND e.amount = NEW.amount_usd_cents * 100000
           AND e.billing_account_id = CASE NEW.purpose WHEN 'self' THEN NEW.billing_account_id ELSE 'cogni_system' END
           AND e.reason = CASE NEW.purpose WHEN 'self' THEN 'credits_purchase' ELSE 'system_donation' END
    ) THEN
        RAISE EXCEPTION 'payment attempt % is CREDITED without its ledger entry', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_attempts_credited_in_ledger';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER payment_attempts_credited AFTER UPDATE OF status ON payment_attempts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.status = 'CREDITED')
    EXECUTE FUNCTION check_credited_attempt();

-- The other way round: a settled transfer is there only for an attempt that the same commit credits.
CREATE FUNCTION check_settled_transfer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts WHERE id = NEW.attempt_id AND status = 'CREDITED') THEN
        RAISE EXCEPTION 'payment attempt % has a settled transfer and is not CREDITED', NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_pays_credited_attempt';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM payment_attempts a
         WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id AND a.tx_hash = NEW.tx_hash
           AND lower(a.from_address) = lower(NEW.from_address)
           AND NEW.value_raw >= a.amount_raw AND NEW.surplus_raw = NEW.value_raw - a.amount_raw
    ) THEN
        RAISE EXCEPTION 'the settled transfer of payment attempt % is not what was agreed', NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_pays_what_was_agreed';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER settled_transfers_pays_credited_attempt AFTER INSERT ON settled_transfers
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_settled_transfer();
