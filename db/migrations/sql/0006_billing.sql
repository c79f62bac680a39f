-- Prices, holds, receipts, and the sums that limits and reports read.

-- Prices ----------------------------------------------------------------------------------------------------------

CREATE TABLE price_versions (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    source text NOT NULL CHECK (source <> ''),
    -- When the version takes effect; the newest that is in effect counts.
    counts_from timestamptz NOT NULL,
    created_by text NOT NULL CHECK (created_by <> ''),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE model_prices (
    version_id bigint NOT NULL REFERENCES price_versions (id),
    model text NOT NULL CHECK (model <> ''),
    provider text NOT NULL CHECK (provider <> ''),
    -- A rate for each unit that is priced: {"input_tokens": {"usd": "2.5", "tiers": [...]}, ...}, decimals as text.
    rates jsonb NOT NULL,
    -- The rule that other names of the model are matched by, and the order in which the models are tried.
    names jsonb NOT NULL,
    position integer NOT NULL,
    PRIMARY KEY (version_id, model)
);

-- Holds -----------------------------------------------------------------------------------------------------------

-- What a call may cost, set aside before it is made. A row, not an entry of the ledger: nothing has been spent yet.
CREATE TABLE credit_holds (
    id uuid PRIMARY KEY,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    virtual_key_id uuid NOT NULL REFERENCES virtual_keys (id),
    request_id text NOT NULL CHECK (request_id <> ''),
    amount_credits bigint NOT NULL CHECK (amount_credits >= 0),
    state text NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'captured', 'voided')),
    dialect text NOT NULL,
    model text NOT NULL CHECK (model <> ''),
    upstream text NOT NULL,
    is_streamed boolean NOT NULL,
    attributed_to text REFERENCES billing_accounts (id),
    -- The process that makes the call, and until when it is assumed to be alive.
    owner text NOT NULL,
    lease_until timestamptz NOT NULL,
    -- What the price is computed from when the owner has died.
    markup_factor numeric NOT NULL CHECK (markup_factor >= 1),
    price_version text,
    rates jsonb,
    input_tokens_estimate bigint NOT NULL CHECK (input_tokens_estimate >= 0),
    output_tokens_limit bigint CHECK (output_tokens_limit >= 0),
    -- What was produced until the last heartbeat, and the upstream's own id of the call where it has given one.
    output_bytes bigint NOT NULL DEFAULT 0 CHECK (output_bytes >= 0),
    upstream_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    CONSTRAINT credit_holds_resolved_has_time CHECK ((state = 'held') = (resolved_at IS NULL))
);
CREATE INDEX credit_holds_open_by_account ON credit_holds (billing_account_id) WHERE state = 'held';
CREATE INDEX credit_holds_open_by_key ON credit_holds (virtual_key_id) WHERE state = 'held';
CREATE INDEX credit_holds_lapsing ON credit_holds (lease_until) WHERE state = 'held';
CREATE INDEX credit_holds_by_request ON credit_holds (request_id);

CREATE TRIGGER credit_holds_guard BEFORE UPDATE ON credit_holds FOR EACH ROW EXECUTE FUNCTION guard_hold();
CREATE TRIGGER credit_holds_kept BEFORE DELETE OR TRUNCATE ON credit_holds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Receipts --------------------------------------------------------------------------------------------------------

-- Partitioned by month of booking. A unique index over all months is not possible, so the identity of a charge is in a
-- table of its own, written by a trigger of this one.
CREATE TABLE charge_receipts (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    request_id text NOT NULL CHECK (request_id <> ''),
    hold_id uuid,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    virtual_key_id uuid NOT NULL REFERENCES virtual_keys (id),
    charged_credits bigint NOT NULL CHECK (charged_credits >= 0),
    -- What the price would have been beyond what the account could pay: the platform bears it.
    uncollected_credits bigint NOT NULL DEFAULT 0 CHECK (uncollected_credits >= 0),
    provider_cost_usd numeric NOT NULL CHECK (provider_cost_usd >= 0),
    user_cost_usd numeric NOT NULL CHECK (user_cost_usd >= 0),
    absorbed_cost_usd numeric NOT NULL CHECK (absorbed_cost_usd BETWEEN 0 AND provider_cost_usd),
    source_system text NOT NULL CHECK (source_system <> ''),
    source_reference text NOT NULL CHECK (source_reference <> ''),
    charge_reason text NOT NULL CHECK (charge_reason <> ''),
    model text NOT NULL CHECK (model <> ''),
    provider text NOT NULL CHECK (provider <> ''),
    input_tokens bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    cached_input_tokens bigint NOT NULL DEFAULT 0 CHECK (cached_input_tokens BETWEEN 0 AND input_tokens),
    cache_write_tokens bigint NOT NULL DEFAULT 0 CHECK (cache_write_tokens BETWEEN 0 AND input_tokens),
    output_tokens bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    reasoning_tokens bigint NOT NULL DEFAULT 0 CHECK (reasoning_tokens BETWEEN 0 AND output_tokens),
    estimated boolean NOT NULL DEFAULT false,
    -- Why the charge is not what the provider reported; each becomes a finding.
    doubt text,
    doubt_detail text,
    price_version text,
    -- The lines that the cost is the sum of, and the factor of the price: all that is needed to compute it again.
    unit_prices jsonb NOT NULL,
    attributed_to text REFERENCES billing_accounts (id),
    entry_id uuid,
    upstream_id text,
    -- Of a charge that was ingested: the same body again has the same answer, another is refused.
    body_hash bytea,
    -- When the call was made; `created_at` is when it was booked.
    called_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
-- What no month's partition takes: nothing, as long as months are opened ahead.
CREATE TABLE charge_receipts_other PARTITION OF charge_receipts DEFAULT;
CREATE INDEX charge_receipts_by_account ON charge_receipts (billing_account_id, created_at);
CREATE INDEX charge_receipts_by_request ON charge_receipts (request_id);
CREATE INDEX charge_receipts_doubtful ON charge_receipts (created_at)
    WHERE doubt IS NOT NULL OR uncollected_credits > 0;

CREATE TABLE charge_references (
    source_system text NOT NULL,
    source_reference text NOT NULL,
    receipt_id uuid NOT NULL,
    receipt_created_at timestamptz NOT NULL,
    CONSTRAINT charge_references_once PRIMARY KEY (source_system, source_reference)
);

CREATE TRIGGER charge_receipts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON charge_receipts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER charge_receipts_once AFTER INSERT ON charge_receipts
    FOR EACH ROW EXECUTE FUNCTION note_charge_reference();
CREATE TRIGGER charge_references_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON charge_references
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Sums of receipts by UTC day of booking, kept by the transaction that writes them: limits and reports read these.
CREATE TABLE usage_by_day (
    day date NOT NULL,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    virtual_key_id uuid NOT NULL REFERENCES virtual_keys (id),
    model text NOT NULL,
    -- '' where a call is attributed to no other account.
    attributed_to text NOT NULL DEFAULT '',
    calls bigint NOT NULL DEFAULT 0,
    charged_credits bigint NOT NULL DEFAULT 0,
    provider_cost_usd numeric NOT NULL DEFAULT 0,
    absorbed_cost_usd numeric NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    cached_input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (billing_account_id, day, virtual_key_id, model, attributed_to)
);
CREATE INDEX usage_by_day_of_key ON usage_by_day (virtual_key_id, day);

-- Crossings of thresholds, noted by the charge that crosses and published once.
CREATE TABLE billing_alerts (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL CHECK (kind IN ('balance_exhausted', 'account_limit', 'key_limit')),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    virtual_key_id uuid REFERENCES virtual_keys (id),
    period text CHECK (period IN ('day', 'month')),
    period_start date,
    threshold_percent integer,
    balance_credits bigint NOT NULL,
    spent_credits bigint,
    limit_credits bigint,
    -- The charge that crossed.
    reference text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    announced_at timestamptz,
    CONSTRAINT billing_alerts_of_limit CHECK ((kind = 'balance_exhausted') = (period IS NULL))
);
CREATE UNIQUE INDEX billing_alerts_once ON billing_alerts
    (billing_account_id, coalesce(virtual_key_id, '00000000-0000-0000-0000-000000000000'), period, period_start,
     threshold_percent) WHERE period IS NOT NULL;
CREATE INDEX billing_alerts_to_announce ON billing_alerts (id) WHERE announced_at IS NULL;

-- Calls that carry an Idempotency-Key: claimed before the call is made, answered again with what was answered.
CREATE TABLE call_claims (
    virtual_key_id uuid NOT NULL REFERENCES virtual_keys (id),
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash bytea NOT NULL,
    request_id text NOT NULL,
    -- NULL until the call has its hold.
    hold_id uuid,
    status integer,
    headers jsonb,
    body bytea,
    lease_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (virtual_key_id, key)
);
CREATE INDEX call_claims_by_age ON call_claims (created_at);

-- Up to when something has been checked.
CREATE TABLE billing_cursors (
    name text PRIMARY KEY,
    seen_to timestamptz NOT NULL
);
INSERT INTO billing_cursors (name, seen_to) VALUES ('doubtful_receipts', now());

-- Row-level security ------------------------------------------------------------------------------------------------

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['price_versions', 'model_prices', 'credit_holds', 'charge_receipts',
                                   'charge_receipts_other', 'charge_references', 'usage_by_day', 'billing_alerts',
                                   'call_claims', 'billing_cursors'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
    FOREACH v_table IN ARRAY ARRAY['credit_holds', 'charge_receipts', 'usage_by_day', 'billing_alerts'] LOOP
        EXECUTE format('CREATE POLICY own_rows ON %I FOR SELECT TO settle_app
                            USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))', v_table);
    END LOOP;
    -- Prices are public.
    FOREACH v_table IN ARRAY ARRAY['price_versions', 'model_prices'] LOOP
        EXECUTE format('CREATE POLICY all_see ON %I FOR SELECT TO settle_app USING (true)', v_table);
    END LOOP;
END $$;

-- Of this month and the next three; housekeeping opens those that follow.
SELECT open_receipt_months(3);
