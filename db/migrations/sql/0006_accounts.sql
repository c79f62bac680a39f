-- Accounts of organizations and of the platform's services, their members, service keys, and grants to bill an account.

ALTER TABLE billing_accounts
    ADD COLUMN kind text NOT NULL DEFAULT 'personal',
    ADD COLUMN tier text,
    ADD COLUMN name text,
    -- The sum of the open holds, changed in the transaction that changes them. Available is balance - held.
    ADD COLUMN held_credits bigint NOT NULL DEFAULT 0,
    ADD COLUMN limit_day_credits bigint,
    ADD COLUMN limit_month_credits bigint,
    ADD CONSTRAINT billing_accounts_kind CHECK (kind IN ('personal', 'organization', 'platform_service')) NOT VALID,
    ADD CONSTRAINT billing_accounts_tier CHECK (tier IN ('internal', 'demo', 'testing')) NOT VALID,
    ADD CONSTRAINT billing_accounts_tier_of_service
        CHECK ((tier IS NOT NULL) = (kind = 'platform_service')) NOT VALID,
    ADD CONSTRAINT billing_accounts_held_from_zero CHECK (held_credits >= 0) NOT VALID,
    ADD CONSTRAINT billing_accounts_limit_day CHECK (limit_day_credits >= 0) NOT VALID,
    ADD CONSTRAINT billing_accounts_limit_month CHECK (limit_month_credits >= 0) NOT VALID;

CREATE TABLE account_members (
    billing_account_id text NOT NULL REFERENCES billing_accounts (id),
    user_id text NOT NULL REFERENCES users (id),
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (billing_account_id, user_id)
);
CREATE INDEX account_members_by_user ON account_members (user_id);

-- A service key is a virtual key with a secret, of which only the hash is kept. A key without one only marks the ledger
-- entries of its account; no caller can use it.
ALTER TABLE virtual_keys
    ADD COLUMN key_hash text,
    ADD COLUMN key_hint text,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN revoked_at timestamptz,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN models text[],
    ADD COLUMN limit_day_credits bigint,
    ADD COLUMN limit_month_credits bigint,
    ADD COLUMN may_attribute boolean NOT NULL DEFAULT false,
    ADD COLUMN created_by_user_id text REFERENCES users (id),
    -- The key that replaces it: until `expires_at` both are accepted.
    ADD COLUMN rotated_to uuid REFERENCES virtual_keys (id),
    ADD CONSTRAINT virtual_keys_hash_has_hint CHECK ((key_hash IS NULL) = (key_hint IS NULL)) NOT VALID,
    ADD CONSTRAINT virtual_keys_key_hash CHECK (key_hash ~ '^[0-9a-f]{64}$') NOT VALID,
    ADD CONSTRAINT virtual_keys_limit_day CHECK (limit_day_credits >= 0) NOT VALID,
    ADD CONSTRAINT virtual_keys_limit_month CHECK (limit_month_credits >= 0) NOT VALID;
-- Not built concurrently: no row has a hash yet, so it reads one row for each account and writes none.
CREATE UNIQUE INDEX virtual_keys_one_per_hash ON virtual_keys (key_hash) WHERE key_hash IS NOT NULL;

-- Which account may have calls billed to another (X-Bill-To).
CREATE TABLE billing_grants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    payer_account_id text NOT NULL REFERENCES billing_accounts (id),
    grantee_account_id text NOT NULL REFERENCES billing_accounts (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    CONSTRAINT billing_grants_between_two CHECK (payer_account_id <> grantee_account_id)
);
CREATE UNIQUE INDEX billing_grants_one_in_force ON billing_grants (payer_account_id, grantee_account_id)
    WHERE revoked_at IS NULL;
CREATE INDEX billing_grants_by_grantee ON billing_grants (grantee_account_id);

DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['account_members', 'billing_grants'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format('CREATE POLICY owner_sees_all ON %I TO CURRENT_USER USING (true) WITH CHECK (true)', v_table);
    END LOOP;
END $$;

-- A user's own memberships, never another's: the policy of accounts reads this one, so it must not read accounts.
CREATE POLICY own_memberships ON account_members FOR SELECT TO settle_app, settle_settlement
    USING (user_id = (SELECT current_tenant()));
-- Granted here and not only from db/rights.py: from this transaction on the next policy reads it for every role.
GRANT SELECT ON account_members TO settle_app, settle_settlement;
-- An organization's owners and admins see its account as their own. Its members use its keys.
ALTER POLICY own_accounts ON billing_accounts
    USING (owner_user_id = (SELECT current_tenant())
           OR id = ANY (ARRAY(SELECT m.billing_account_id FROM account_members m WHERE m.role IN ('owner', 'admin'))));
CREATE POLICY own_grants ON billing_grants FOR SELECT TO settle_app
    USING (payer_account_id = ANY (ARRAY(SELECT id FROM billing_accounts))
           OR grantee_account_id = ANY (ARRAY(SELECT id FROM billing_accounts)));
