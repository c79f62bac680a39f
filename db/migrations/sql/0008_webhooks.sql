-- Webhooks: endpoints of accounts, the events that are sent to them, and what became of each delivery.

CREATE TABLE webhook_endpoints (
    id uuid PRIMARY KEY,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    url text NOT NULL CHECK (length(url) BETWEEN 1 AND 2000),
    -- Types, and groups as 'payment.*'; NULL takes all.
    events text[] CHECK (cardinality(events) > 0),
    created_by_user_id text REFERENCES users (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz,
    -- A receiver stops its endpoint with status 410.
    disabled_reason text CHECK (disabled_reason IN ('deleted', 'stopped_by_receiver')),
    CONSTRAINT webhook_endpoints_disabled_has_reason CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
);
CREATE INDEX webhook_endpoints_by_account ON webhook_endpoints (billing_account_id, created_at);

-- Workers sign with them, so they are kept as they are; no process that people reach may read them.
CREATE TABLE webhook_secrets (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id),
    secret bytea NOT NULL CHECK (length(secret) BETWEEN 24 AND 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- NULL until it is replaced; until then both sign.
    expires_at timestamptz
);
CREATE UNIQUE INDEX webhook_secrets_one_newest ON webhook_secrets (endpoint_id) WHERE expires_at IS NULL;
CREATE INDEX webhook_secrets_by_endpoint ON webhook_secrets (endpoint_id);

CREATE TABLE webhook_events (
    id uuid PRIMARY KEY,
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    type text NOT NULL CHECK (type <> ''),
    -- What it is about, as 'payment:<id>': events of one subject are ordered by their sequence.
    subject text NOT NULL CHECK (subject <> ''),
    sequence bigint NOT NULL,
    -- What is sent, byte for byte.
    body text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX webhook_events_in_order ON webhook_events (subject, sequence);
CREATE INDEX webhook_events_by_account ON webhook_events (billing_account_id, created_at);
CREATE INDEX webhook_events_by_age ON webhook_events (created_at);
CREATE TRIGGER webhook_events_frozen BEFORE UPDATE ON webhook_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    event_id uuid NOT NULL REFERENCES webhook_events (id),
    endpoint_id uuid NOT NULL REFERENCES webhook_endpoints (id),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed', 'stopped')),
    -- How often it was asked for. Failures, and the time since which it has been tried, are of this round.
    round integer NOT NULL DEFAULT 1,
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    tried_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When the next try is due.
    due_at timestamptz DEFAULT clock_timestamp(),
    -- When a workflow was started for this round.
    started_at timestamptz,
    ended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT webhook_deliveries_once UNIQUE (event_id, endpoint_id),
    CONSTRAINT webhook_deliveries_pending_is_due CHECK ((state = 'pending') = (due_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_ended_has_time CHECK ((state = 'pending') = (ended_at IS NULL))
);
CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, created_at, id);
CREATE INDEX webhook_deliveries_open_by_endpoint ON webhook_deliveries (endpoint_id)
    WHERE state IN ('pending', 'failed');
CREATE INDEX webhook_deliveries_to_start ON webhook_deliveries (due_at) WHERE state = 'pending' AND started_at IS NULL;
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (due_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE ended_at IS NOT NULL;

-- Every time that an event was sent to an endpoint. Without a status there was no answer.
CREATE TABLE webhook_tries (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    delivery_id uuid NOT NULL REFERENCES webhook_deliveries (id),
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    sent_at timestamptz NOT NULL,
    duration_ms bigint NOT NULL CHECK (duration_ms >= 0),
    status_code integer,
    -- The beginning of the answer's body.
    response_head text CHECK (length(response_head) <= 512),
    error text,
    CONSTRAINT webhook_tries_answer_or_error CHECK ((status_code IS NULL) = (error IS NOT NULL))
);
CREATE INDEX webhook_tries_by_delivery ON webhook_tries (delivery_id, id);

-- What causes events ---------------------------------------------------------------------------------------------------

CREATE TRIGGER payment_attempts_record_webhook AFTER UPDATE OF status ON payment_attempts
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION record_webhook_of_payment();
CREATE TRIGGER deposits_record_webhook AFTER INSERT OR DELETE OR UPDATE OF log_index ON deposits
    FOR EACH ROW EXECUTE FUNCTION record_webhook_of_transfer();
CREATE TRIGGER charges_record_webhook AFTER UPDATE OF status ON charges
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION record_webhook_of_charge();
CREATE TRIGGER billing_alerts_record_webhook AFTER INSERT ON billing_alerts
    FOR EACH ROW EXECUTE FUNCTION record_webhook_of_alert();

-- Row-level security ---------------------------------------------------------------------------------------------------

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['webhook_endpoints', 'webhook_secrets', 'webhook_events', 'webhook_deliveries',
                                   'webhook_tries'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
    FOREACH v_table IN ARRAY ARRAY['webhook_endpoints', 'webhook_events', 'webhook_deliveries', 'webhook_tries'] LOOP
        EXECUTE format('CREATE POLICY own_rows ON %I FOR SELECT TO settle_app
                            USING (billing_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)))', v_table);
    END LOOP;
END $$;
