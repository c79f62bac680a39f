-- Prices of tokens that are no dollars: where a method's price comes from, and the quotes that were taken from there.

-- Append-only: the last row of a method counts, and a quote names the one that it was taken from.
CREATE TABLE price_sources (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE,
    method_id text NOT NULL REFERENCES payment_methods (id),
    -- Of the feeds, which may be another one than the method's.
    chain_id bigint NOT NULL CHECK (chain_id > 0),
    feed text NOT NULL CHECK (feed ~ '^0x[0-9a-fA-F]{40}$'),
    description text NOT NULL CHECK (description <> ''),
    decimals integer NOT NULL CHECK (decimals BETWEEN 0 AND 36),
    max_age_seconds integer NOT NULL CHECK (max_age_seconds > 0),
    second_feed text CHECK (second_feed ~ '^0x[0-9a-fA-F]{40}$'),
    second_decimals integer CHECK (second_decimals BETWEEN 0 AND 36),
    max_divergence_bps integer NOT NULL CHECK (max_divergence_bps BETWEEN 1 AND 10000),
    sequencer_feed text CHECK (sequencer_feed ~ '^0x[0-9a-fA-F]{40}$'),
    sequencer_grace_seconds integer NOT NULL CHECK (sequencer_grace_seconds >= 0),
    min_answer_raw numeric(78, 0) NOT NULL DEFAULT 1 CHECK (min_answer_raw > 0),
    max_answer_raw numeric(78, 0) CHECK (max_answer_raw >= min_answer_raw),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT price_sources_second_has_decimals CHECK ((second_feed IS NOT NULL) = (second_decimals IS NOT NULL))
);
CREATE INDEX price_sources_of_method ON price_sources (method_id, seq);

-- A price that a charge was made at, or a deposit credited at. A worker reads the feed's round again before it honours one
-- that a charge names: who can write rows as the API does is no source of prices.
CREATE TABLE price_quotes (
    id uuid PRIMARY KEY,
    source_id uuid NOT NULL REFERENCES price_sources (id),
    round_id numeric(78, 0) NOT NULL CHECK (round_id > 0),
    answer_raw numeric(78, 0) NOT NULL CHECK (answer_raw > 0),
    decimals integer NOT NULL CHECK (decimals BETWEEN 0 AND 36),
    feed_updated_at timestamptz NOT NULL,
    -- On the feed's chain, where its state was read; NULL where the round was found by the time.
    block_number bigint CHECK (block_number >= 0),
    block_time timestamptz NOT NULL,
    second_round_id numeric(78, 0),
    second_answer_raw numeric(78, 0),
    second_decimals integer,
    second_updated_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT price_quotes_of_the_past CHECK (feed_updated_at <= block_time),
    CONSTRAINT price_quotes_second_whole CHECK (
        num_nulls(second_round_id, second_answer_raw, second_decimals, second_updated_at) IN (0, 4)
    )
);

ALTER TABLE charges ADD COLUMN quote_id uuid REFERENCES price_quotes (id);

-- NULL with no credits: a token that is no dollar, and has no price yet.
ALTER TABLE deposits ADD COLUMN quote_id uuid REFERENCES price_quotes (id);

-- An operator's credit of a deposit that has a price: at that one.
ALTER TABLE transfer_credits
    ADD COLUMN price_raw numeric(78, 0) NOT NULL DEFAULT 1,
    ADD COLUMN price_decimals integer NOT NULL DEFAULT 0,
    DROP CONSTRAINT transfer_credits_amounts_agree,
    ADD CONSTRAINT transfer_credits_amounts_agree CHECK (
        amount_credits = CASE part WHEN 'refund' THEN 0
                         ELSE div(value_raw * price_raw * 10000000, power(10::numeric, token_decimals + price_decimals)) END
    ) NOT VALID;

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['price_sources', 'price_quotes'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
END $$;

-- Prices are no tenant's secret.
CREATE POLICY all_read ON price_sources FOR SELECT TO settle_app USING (true);
CREATE POLICY all_read ON price_quotes FOR SELECT TO settle_app USING (true);
CREATE POLICY all_write ON price_quotes FOR INSERT TO settle_app WITH CHECK (true);
