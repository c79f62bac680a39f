-- The governance loop: calls that the platform's own automation made, each once for its run.

CREATE TABLE governance_calls (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    -- The run of the workflow that the call belongs to.
    key text NOT NULL UNIQUE,
    scheduled_at timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('answered', 'refused')),
    model text NOT NULL,
    request_id text,
    charged_credits bigint NOT NULL CHECK (charged_credits >= 0),
    answer text,
    limit_source text,
    detail text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT governance_calls_refused_is_free CHECK (outcome = 'answered' OR charged_credits = 0)
);

ALTER TABLE governance_calls ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON governance_calls TO CURRENT_USER USING (true) WITH CHECK (true);
