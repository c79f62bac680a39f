-- The ledger: how entries are posted, and what every entry must satisfy. No role may write the ledger's tables: post_entry
-- and post_own_purchase run with the rights of the tables' owner and check what their caller may do.
-- Checks run with the owner's rights too: a check must see what it checks, whatever the caller may see.

-- The credits that an amount buys: domain.money.CREDITS_PER_USD_CENT, a protocol constant.
CREATE OR REPLACE FUNCTION public.credits_of_cents(p_amount_usd_cents bigint)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT p_amount_usd_cents * 100000
$function$;

-- The credits of an attempt: of a deposit what it is worth, else what its amount buys (PaymentAttempt.credits).
CREATE OR REPLACE FUNCTION public.credits_of_attempt(p_amount_credits bigint, p_amount_usd_cents bigint)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT coalesce(p_amount_credits, credits_of_cents(p_amount_usd_cents))
$function$;

-- The bonus on credits that were bought, rounded down: domain.money.revenue_share_credits. Only where it is positive is
-- there an entry.
CREATE OR REPLACE FUNCTION public.bonus_of_credits(p_credits bigint, p_revenue_share numeric)
 RETURNS numeric
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT floor(p_credits * p_revenue_share)
$function$;

-- Credits for a cost in US dollars, rounded up: domain.billing.pricing.credits_for_usd with a factor of 1.
CREATE OR REPLACE FUNCTION public.credits_of_usd(p_usd numeric)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT ceil(p_usd * 10000000)::bigint
$function$;

-- The worth of credits in US dollars, exactly.
CREATE OR REPLACE FUNCTION public.usd_of_credits(p_credits bigint)
 RETURNS numeric
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT trim_scale(p_credits * 0.0000001)
$function$;

-- Post one two-line journal entry, or report the one that is already there (posted = false).
-- One short call, because every purchase hits the system tenant's row: the lock on the account's row is taken
-- by the UPDATE and held until the caller commits.
CREATE OR REPLACE FUNCTION public.post_entry(p_billing_account_id text, p_amount bigint, p_reason text, p_reference text, p_contra_account text, p_metadata jsonb)
 RETURNS TABLE(entry_id uuid, amount bigint, balance_after bigint, posted boolean)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
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
END $function$;

-- The same for a payer's own purchase: credits the attempt with exactly its amount, and nothing else.
-- The transfer that pays it must be recorded first; a constraint checked at commit requires the attempt to be CREDITED.
CREATE OR REPLACE FUNCTION public.post_own_purchase(p_attempt_id uuid, p_amount bigint, p_contra_account text, p_metadata jsonb)
 RETURNS TABLE(entry_id uuid, amount bigint, balance_after bigint, posted boolean)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_account text;
BEGIN
    SELECT a.billing_account_id INTO v_account
      FROM payment_attempts a JOIN billing_accounts b ON b.id = a.billing_account_id
     WHERE a.id = p_attempt_id AND a.purpose = 'self' AND a.status IN ('PENDING_UNVERIFIED', 'CREDITED')
       AND b.owner_user_id = nullif(current_setting('settle.user_id', true), '')
       AND p_amount = credits_of_attempt(a.amount_credits, a.amount_usd_cents)
       AND p_contra_account = coalesce(a.cash_account, 'cash:usdc')
       AND EXISTS (SELECT 1 FROM settled_transfers s WHERE s.attempt_id = a.id);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % is not an own purchase of % credits, submitted and paid', p_attempt_id, p_amount
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN QUERY SELECT * FROM post_entry(
        v_account, p_amount, 'credits_purchase', p_attempt_id::text, p_contra_account, p_metadata);
END $function$;

-- Append-only: a correction is a new row.
CREATE OR REPLACE FUNCTION public.refuse_change()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $function$;

-- A journal entry balances, moves its billing account's liability by exactly the header's amount and no other account's,
-- and is complete in one transaction: a line added in a later transaction would change an old entry.
-- Its header is a row of credit_ledger, or of general_entries where no account's credits change.
--
-- An entry is read once for each statement that writes lines of it, not once for each of its rows. Of the lines that one
-- statement wrote (same transaction, same command) the last checks the entry, at the end of the statement at the earliest:
-- it sees them all, and what was written before. The last such statement's check sees the whole entry. A header relies on
-- lines of its own transaction, whose check requires it; without any it is checked itself.
CREATE OR REPLACE FUNCTION public.check_entry_balanced()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_entry_id uuid;
    v_account text;
    v_amount bigint;
    v_written xid;
    v_debits numeric;
    v_imbalance numeric;
    v_liability numeric;
    v_foreign boolean;
    v_late boolean;
BEGIN
    IF TG_TABLE_NAME = 'journal_lines' THEN
        IF EXISTS (SELECT FROM journal_lines l
                     JOIN journal_lines later ON later.entry_id = l.entry_id AND later.id > l.id
                                             AND later.xmin = l.xmin AND later.cmin = l.cmin
                    WHERE l.id = NEW.id) THEN
            RETURN NULL;
        END IF;
        v_entry_id := NEW.entry_id;
    ELSE
        v_entry_id := NEW.id;
        IF TG_TABLE_NAME = 'credit_ledger' AND EXISTS (
            SELECT FROM credit_ledger e JOIN journal_lines l ON l.entry_id = e.id AND l.xmin = e.xmin
             WHERE e.id = v_entry_id) THEN
            RETURN NULL;
        END IF;
    END IF;
    SELECT e.billing_account_id, e.amount, e.xmin INTO v_account, v_amount, v_written FROM credit_ledger e
     WHERE e.id = v_entry_id;
    IF NOT FOUND THEN
        v_amount := 0;
        SELECT e.xmin INTO v_written FROM general_entries e WHERE e.id = v_entry_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'journal line % names no entry', NEW.id
                USING ERRCODE = 'foreign_key_violation', CONSTRAINT = 'journal_lines_entry_exists';
        END IF;
    ELSIF TG_TABLE_NAME = 'general_entries' THEN
        RAISE EXCEPTION 'general entry % has the id of a ledger entry', v_entry_id
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'general_entries_id_is_its_own';
    END IF;
    SELECT coalesce(sum(l.amount) FILTER (WHERE l.side = 'debit'), 0),
           coalesce(sum(CASE l.side WHEN 'debit' THEN l.amount ELSE -l.amount END), 0),
           coalesce(sum(CASE l.side WHEN 'credit' THEN l.amount ELSE -l.amount END)
                    FILTER (WHERE a.billing_account_id = v_account AND a.type = 'liability'), 0),
           coalesce(bool_or(a.billing_account_id IS NOT NULL AND a.billing_account_id IS DISTINCT FROM v_account), false),
           coalesce(bool_or(l.xmin <> v_written), false)
      INTO v_debits, v_imbalance, v_liability, v_foreign, v_late
      FROM journal_lines l
      JOIN ledger_accounts a ON a.code = l.account_code
     WHERE l.entry_id = v_entry_id;
    IF v_imbalance <> 0 OR (v_account IS NULL AND v_debits = 0) THEN
        RAISE EXCEPTION 'journal entry % is not balanced: debits %, debits - credits %', v_entry_id, v_debits, v_imbalance
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
END $function$;

-- balance_after continues the account's previous entry, and balance_credits is the last balance_after:
-- together, by induction, balance_credits is the sum of the account's entries.
CREATE OR REPLACE FUNCTION public.check_running_balance()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_before bigint;
    v_balance bigint;
    v_last bigint;
BEGIN
    SELECT b.balance_credits,
           (SELECT e.balance_after FROM credit_ledger e
             WHERE e.billing_account_id = b.id AND e.entry_seq < NEW.entry_seq ORDER BY e.entry_seq DESC LIMIT 1),
           (SELECT e.balance_after FROM credit_ledger e
             WHERE e.billing_account_id = b.id ORDER BY e.entry_seq DESC LIMIT 1)
      INTO v_balance, v_before, v_last
      FROM billing_accounts b WHERE b.id = NEW.billing_account_id;
    IF NEW.balance_after <> coalesce(v_before, 0) + NEW.amount THEN
        RAISE EXCEPTION 'ledger entry % says balance %, previous % and amount % make %',
            NEW.id, NEW.balance_after, coalesce(v_before, 0), NEW.amount, coalesce(v_before, 0) + NEW.amount
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_ledger_running_balance';
    END IF;
    IF v_balance <> v_last THEN
        RAISE EXCEPTION 'balance of % is %, its ledger says %', NEW.billing_account_id, v_balance, v_last
            USING ERRCODE = 'check_violation', CONSTRAINT = 'billing_accounts_balance_is_ledger_sum';
    END IF;
    RETURN NULL;
END $function$;

-- The same from the account's side: no balance without the entries that make it.
CREATE OR REPLACE FUNCTION public.check_account_balance()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_balance bigint;
    v_last bigint;
BEGIN
    SELECT b.balance_credits,
           (SELECT e.balance_after FROM credit_ledger e
             WHERE e.billing_account_id = b.id ORDER BY e.entry_seq DESC LIMIT 1)
      INTO v_balance, v_last FROM billing_accounts b WHERE b.id = NEW.id;
    IF v_balance <> coalesce(v_last, 0) THEN
        RAISE EXCEPTION 'balance of % is %, its ledger says %', NEW.id, v_balance, coalesce(v_last, 0)
            USING ERRCODE = 'check_violation', CONSTRAINT = 'billing_accounts_balance_is_ledger_sum';
    END IF;
    RETURN NULL;
END $function$;

-- Every billing account has its liability account in the chart.
CREATE OR REPLACE FUNCTION public.open_liability_account()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO ledger_accounts (code, name, type, normal_side, billing_account_id)
    VALUES ('credits:' || NEW.id, 'Credits owed to ' || NEW.id, 'liability', 'credit', NEW.id)
    ON CONFLICT (code) DO NOTHING;
    RETURN NULL;
END $function$;
