-- What a reconciliation lays side by side: what was received, what it was credited for, what was posted. Of USDC, at the
-- treasury and at deposit addresses; other tokens are proven by their balances (services/deposits/balances.py). Each is read
-- by itself, such as SELECT * FROM received_transfers() WHERE tx_hash = '0x…'; the planner takes them for part of the query
-- that calls them, so that nothing is read but what it asks for.

-- The attempt that a ledger entry's reference names; NULL where it names something else. A reference is any text, and the
-- cast of one that is not an id must not fail; a comparison with the id's own text would use no index.
CREATE OR REPLACE FUNCTION public.attempt_of_reference(p_reference text)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN p_reference ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN p_reference::uuid END
$function$;

-- Whether entries of a reason come of a transfer to the treasury: what else is posted, such as usage, is no part of this.
CREATE OR REPLACE FUNCTION public.is_reason_of_payment(p_reason text)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT p_reason IN ('credits_purchase', 'platform_revenue_share', 'system_donation', 'payment_reversal', 'operator_credit')
$function$;

-- Each ledger entry with the attempt that it names and what it moved on the treasury's account, NULL where nothing.
CREATE OR REPLACE FUNCTION public.ledger_entries_with_cash()
 RETURNS TABLE(entry_id uuid, entry_seq bigint, created_at timestamp with time zone, reason text, reference text, attempt_id uuid, billing_account_id text, amount_credits bigint, cash_debit_credits numeric, cash_credit_credits numeric)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT e.id, e.entry_seq, e.created_at, e.reason, e.reference, attempt_of_reference(e.reference),
           e.billing_account_id, e.amount, l.debits, l.credits
      FROM credit_ledger e
      LEFT JOIN LATERAL (
           SELECT sum(l.amount) FILTER (WHERE l.side = 'debit') AS debits,
                  sum(l.amount) FILTER (WHERE l.side = 'credit') AS credits
             FROM journal_lines l WHERE l.entry_id = e.id AND l.account_code IN ('cash:usdc', 'cash:usdc:deposits')) l ON true
$function$;

-- Entries that a transfer should explain, and none does: of payments, and others that moved the treasury's account.
CREATE OR REPLACE FUNCTION public.unexplained_entries()
 RETURNS TABLE(entry_id uuid, entry_seq bigint, created_at timestamp with time zone, reason text, reference text, attempt_id uuid, billing_account_id text, amount_credits bigint, cash_debit_credits numeric, cash_credit_credits numeric)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT e.*
      FROM ledger_entries_with_cash() e
      LEFT JOIN settled_transfers s ON s.attempt_id = e.attempt_id AND is_reason_of_payment(e.reason)
      LEFT JOIN transfer_credits c ON c.reference = e.reference AND is_reason_of_payment(e.reason)
     WHERE s.attempt_id IS NULL AND c.reference IS NULL
       AND (is_reason_of_payment(e.reason) OR e.cash_debit_credits IS NOT NULL OR e.cash_credit_credits IS NOT NULL)
$function$;

-- Findings by what they are about, each as a comparison knows it.
CREATE OR REPLACE FUNCTION public.known_findings()
 RETURNS TABLE(key text, resolved_at timestamp with time zone, finding jsonb)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT f.key, f.resolved_at,
           jsonb_build_object('finding_id', f.id, 'kind', f.kind, 'resolution', f.resolution, 'detail', f.detail)
      FROM findings f
$function$;

-- The transactions that touched the treasury in a period, on the chain or in the ledger. All transfers of a transaction
-- lie in one block, and so in one period.
CREATE OR REPLACE FUNCTION public.transactions_between(p_chain_id bigint, p_from_time timestamp with time zone, p_to_time timestamp with time zone)
 RETURNS TABLE(tx_hash text)
 LANGUAGE sql
 STABLE
AS $function$
    WITH posted AS MATERIALIZED (
        SELECT e.reference, e.attempt_id FROM ledger_entries_with_cash() e
         WHERE e.created_at >= p_from_time AND e.created_at < p_to_time AND is_reason_of_payment(e.reason)
    )
    SELECT o.tx_hash FROM observed_transfers o
     WHERE o.chain_id = p_chain_id AND o.block_time >= p_from_time AND o.block_time < p_to_time
     UNION
    SELECT s.tx_hash FROM settled_transfers s
     WHERE s.chain_id = p_chain_id AND s.created_at >= p_from_time AND s.created_at < p_to_time
     UNION
    SELECT s.tx_hash FROM posted p JOIN settled_transfers s ON s.attempt_id = p.attempt_id
     WHERE s.chain_id = p_chain_id
     UNION
    SELECT c.tx_hash FROM posted p JOIN transfer_credits c ON c.reference = p.reference
     WHERE c.chain_id = p_chain_id
$function$;

-- What the watcher saw arrive, with the finding about it. `undecided_since` is when the watcher was
-- last given it to decide about: as it saw it, or as an operator resolved the finding.
CREATE OR REPLACE FUNCTION public.received_transfers()
 RETURNS TABLE(chain_id bigint, tx_hash text, log_index bigint, block_number bigint, block_time timestamp with time zone, from_address text, value_raw numeric, undecided_since timestamp with time zone, is_income boolean, is_too_old boolean, finding jsonb)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT o.chain_id, o.tx_hash, o.log_index, o.block_number, o.block_time, o.from_address, o.value_raw,
           CASE WHEN d.id IS NULL OR d.has_enough THEN greatest(o.observed_at, f.resolved_at) ELSE now() END,
           lower(o.from_address) <> lower(o.to_address) AND lower(o.from_address) NOT IN (SELECT d.to_address FROM treasuries() d)
           AND NOT EXISTS (SELECT FROM deposit_addresses own JOIN deposits came ON came.address_id = own.id
                            WHERE lower(own.address) = lower(o.from_address)),
           o.block_number < coalesce(a.first_block, 0),
           f.finding
      FROM observed_transfers o
      LEFT JOIN answered_blocks() a
        ON a.chain_id = o.chain_id AND a.token = lower(o.token) AND a.to_address = lower(o.to_address)
      LEFT JOIN known_findings() f
        ON f.key = 'transfer:' || o.chain_id::text || ':' || o.tx_hash || ':' || o.log_index::text
      LEFT JOIN LATERAL (
           SELECT t.id, m.token,
                  -- Less than the method's minimum is credited once the sum is enough.
                  t.attempt_id IS NOT NULL
                  OR m.min_amount_raw <= (SELECT sum(x.value_raw) FROM deposits x
                                           WHERE x.address_id = t.address_id AND x.method_id = t.method_id
                                             AND x.attempt_id IS NULL) AS has_enough
             FROM deposits t JOIN payment_methods m ON m.id = t.method_id
            WHERE t.chain_id = o.chain_id AND t.tx_hash = o.tx_hash AND t.log_index = o.log_index) d ON true
     -- Of a chain's own coin what is no deposit is a sweep.
     WHERE CASE WHEN d.id IS NULL THEN o.token <> '0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE' ELSE lower(d.token) = 'usdc' END
$function$;

-- The transfers that paid attempts, at their final position where that is known, with what was agreed and what is known of
-- them. One is covered when the watcher has read its block, or when that cannot hold a payment: below the cursor's first
-- block, though settled since, or above its last, though settled longer than `p_grace` ago.
CREATE OR REPLACE FUNCTION public.settled_payments(p_grace interval)
 RETURNS TABLE(chain_id bigint, tx_hash text, log_index bigint, block_number bigint, from_address text, value_raw numeric, surplus_raw numeric, attempt_id uuid, reference text, status text, purpose text, billing_account_id text, amount_raw numeric, bonus_credits bigint, outcome text, is_covered boolean, was_orphaned boolean, surplus_reference text, surplus_finding jsonb, disagreement_finding jsonb, alarm_finding jsonb)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT s.chain_id, s.tx_hash, coalesce(f.log_index, s.log_index), coalesce(f.block_number, s.block_number),
           s.from_address, s.value_raw, s.surplus_raw, a.id, a.id::text, a.status, a.purpose, a.billing_account_id,
           coalesce(a.value_raw, a.amount_raw), coalesce(bonus_of_credits(credits_of_attempt(a.amount_credits, a.amount_usd_cents), a.revenue_share), 0), f.outcome,
           EXISTS (SELECT FROM chain_cursors c
                    WHERE c.chain_id = s.chain_id AND is_scope_of(c.token, c.to_address, a.kind, a.token, a.to_address)
                      AND CASE
                          WHEN coalesce(f.block_number, s.block_number) < c.first_block
                          THEN s.created_at >= c.created_at
                          WHEN coalesce(f.block_number, s.block_number) > c.block_number
                          THEN s.created_at < c.updated_at - p_grace
                            OR coalesce(f.block_number, s.block_number) > c.head_number + 1000
                          ELSE true END)
           AND NOT EXISTS (SELECT FROM chain_gaps g
                            WHERE g.read_at IS NULL AND g.chain_id = s.chain_id
                              AND is_scope_of(g.token, g.to_address, a.kind, a.token, a.to_address)
                              AND coalesce(f.block_number, s.block_number) BETWEEN g.first_block AND g.last_block),
           EXISTS (SELECT FROM orphaned_transfers o
                    WHERE o.chain_id = s.chain_id AND o.tx_hash = s.tx_hash
                      AND is_alike(o.from_address, o.value_raw, s.from_address, s.value_raw)),
           c.reference, of_surplus.finding, of_ledger.finding, of_transfer.finding
      FROM settled_transfers s
      JOIN payment_attempts a ON a.id = s.attempt_id
      LEFT JOIN transfer_finality f ON f.attempt_id = s.attempt_id
      LEFT JOIN transfer_credits c
        ON c.chain_id = s.chain_id AND c.tx_hash = s.tx_hash AND c.log_index = s.log_index AND c.part = 'surplus'
      LEFT JOIN known_findings() of_surplus ON of_surplus.key = 'surplus:' || s.attempt_id
      LEFT JOIN known_findings() of_ledger ON of_ledger.key = 'ledger_disagrees:' || s.attempt_id
      LEFT JOIN known_findings() of_transfer ON of_transfer.key = 'ledger_without_transfer:' || s.attempt_id
     WHERE a.cash_account IS NULL OR a.cash_account = 'cash:usdc:deposits'
$function$;

-- What operators credited: whole transfers that pay no attempt, and surpluses of those that do.
CREATE OR REPLACE FUNCTION public.operator_credits()
 RETURNS TABLE(chain_id bigint, tx_hash text, log_index bigint, block_number bigint, from_address text, value_raw numeric, part text, finding_id uuid, billing_account_id text, bonus_credits bigint, reference text, is_covered boolean, disagreement_finding jsonb, alarm_finding jsonb)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT c.chain_id, c.tx_hash, c.log_index, c.block_number, c.from_address, c.value_raw, c.part, c.finding_id,
           c.billing_account_id, bonus_of_credits(c.amount_credits, c.revenue_share), c.reference,
           EXISTS (SELECT FROM chain_cursors k
                    WHERE k.chain_id = c.chain_id AND c.block_number BETWEEN k.first_block AND k.block_number),
           of_ledger.finding, of_transfer.finding
      FROM transfer_credits c
      LEFT JOIN known_findings() of_ledger ON of_ledger.key = 'ledger_disagrees:' || c.reference
      LEFT JOIN known_findings() of_transfer ON of_transfer.key = 'ledger_without_transfer:' || c.reference
     WHERE c.part <> 'refund'
       AND NOT EXISTS (SELECT FROM deposits d JOIN payment_methods m ON m.id = d.method_id
                        WHERE d.chain_id = c.chain_id AND d.tx_hash = c.tx_hash AND d.log_index = c.log_index
                          AND lower(m.token) <> 'usdc')
$function$;
