-- Which transfers are income, and from which block on: the rules of domain/transfers/income.py, kept by the database too. And until
-- when an attempt could be paid in time, which its submission used to wipe out.

-- Addresses whose transfers are no payment of anybody's: the zero address (it sends what is minted), tokens, treasuries of
-- now and before. In lower case.
CREATE TABLE non_payers (
    address text PRIMARY KEY CHECK (address ~ '^0x[0-9a-f]{40}$'),
    kind text NOT NULL CHECK (kind IN ('treasury', 'nobody', 'token')),
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE non_payers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_sees_all ON non_payers TO CURRENT_USER USING (true) WITH CHECK (true);
REVOKE ALL ON non_payers FROM PUBLIC;
-- Workers write down what their settings name.
GRANT SELECT, INSERT ON non_payers TO settle_service;

INSERT INTO non_payers (address, kind) VALUES ('0x' || repeat('0', 40), 'nobody');
-- What was ever followed or paid to. Not what an intent merely names: processes that people reach write intents, and would
-- say of anybody's wallet that it is a treasury.
INSERT INTO non_payers (address, kind)
SELECT lower(to_address), 'treasury' FROM chain_cursors
 UNION SELECT lower(to_address), 'treasury' FROM payment_attempts WHERE status IN ('CREDITED', 'REVERSED')
ON CONFLICT (address) DO NOTHING;
INSERT INTO non_payers (address, kind)
SELECT DISTINCT lower(token), 'token' FROM chain_cursors ON CONFLICT (address) DO NOTHING;

-- Why an address pays for nobody; NULL for a payer. Says nothing that the chain does not show everybody.
CREATE FUNCTION non_payer_kind(p_address text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT kind FROM non_payers WHERE address = lower(p_address)
$$;
REVOKE ALL ON FUNCTION non_payer_kind FROM PUBLIC;
GRANT EXECUTE ON FUNCTION non_payer_kind TO settle_app, settle_service;

-- The first block that settle answers for, where a setting says so (CHAIN_WATCH_FROM_BLOCK). Without one it is first_block,
-- as soon as a block has been read: one node's word of the chain's height alone makes nobody's payment too old.
ALTER TABLE chain_cursors ADD COLUMN answers_from bigint CHECK (answers_from >= 0);

CREATE FUNCTION first_block_answered_for(p_chain_id bigint, p_token text, p_to_address text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT coalesce(answers_from, CASE WHEN block_hash IS NOT NULL THEN first_block END) FROM chain_cursors
     WHERE chain_id = p_chain_id AND lower(token) = lower(p_token) AND lower(to_address) = lower(p_to_address)
     ORDER BY 1 LIMIT 1
$$;
REVOKE ALL ON FUNCTION first_block_answered_for FROM PUBLIC;
GRANT EXECUTE ON FUNCTION first_block_answered_for TO settle_service;

-- An attempt is paid by money that came in, in a block that settle answers for.
CREATE FUNCTION check_settled_income() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_treasury text;
    v_first_block bigint;
BEGIN
    SELECT a.to_address, first_block_answered_for(a.chain_id, a.token, a.to_address) INTO v_treasury, v_first_block
      FROM payment_attempts a WHERE a.id = NEW.attempt_id;
    IF lower(v_treasury) = lower(NEW.from_address) OR non_payer_kind(NEW.from_address) IS NOT NULL THEN
        RAISE EXCEPTION 'transfer % of transaction % is from %, which pays for nobody',
            NEW.log_index, NEW.tx_hash, NEW.from_address
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_from_a_payer';
    END IF;
    IF NEW.block_number < v_first_block THEN
        RAISE EXCEPTION 'transfer % of transaction % is of block %, payments are taken from block % on',
            NEW.log_index, NEW.tx_hash, NEW.block_number, v_first_block
            USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_transfers_not_too_old';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER settled_transfers_is_income BEFORE INSERT ON settled_transfers
    FOR EACH ROW EXECUTE FUNCTION check_settled_income();

-- Nor does an operator credit anything else. What the treasury sent itself cannot be sent back either: nothing came. What
-- nobody sent is credited to an account that somebody owns.
CREATE FUNCTION check_credited_income() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_treasury text;
    v_first_block bigint;
BEGIN
    IF NEW.part = 'surplus' THEN
        -- Of a payment that was answered for when it was credited.
        SELECT a.to_address, NULL INTO v_treasury, v_first_block
          FROM settled_transfers s JOIN payment_attempts a ON a.id = s.attempt_id
         WHERE s.chain_id = NEW.chain_id AND s.tx_hash = NEW.tx_hash AND s.log_index = NEW.log_index;
    ELSE
        SELECT o.to_address, first_block_answered_for(o.chain_id, o.token, o.to_address) INTO v_treasury, v_first_block
          FROM observed_transfers o
         WHERE o.chain_id = NEW.chain_id AND o.tx_hash = NEW.tx_hash AND o.log_index = NEW.log_index;
    END IF;
    IF lower(v_treasury) = lower(NEW.from_address) OR non_payer_kind(NEW.from_address) = 'treasury' THEN
        RAISE EXCEPTION 'transfer % of transaction % is from the treasury itself', NEW.log_index, NEW.tx_hash
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_is_income';
    END IF;
    IF NEW.part = 'whole' AND NEW.block_number < v_first_block THEN
        RAISE EXCEPTION 'transfer % of transaction % is of block %, payments are taken from block % on',
            NEW.log_index, NEW.tx_hash, NEW.block_number, v_first_block
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_not_too_old';
    END IF;
    IF EXISTS (
        SELECT 1 FROM billing_accounts b JOIN users u ON u.id = b.owner_user_id
         WHERE b.id = NEW.billing_account_id AND non_payer_kind(u.wallet_address) IN ('nobody', 'token')
    ) THEN
        RAISE EXCEPTION 'billing account % is nobody''s', NEW.billing_account_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_to_somebody';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER transfer_credits_is_income BEFORE INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION check_credited_income();

-- Nobody's address opens no account, whoever asks (`provision_wallet`, `open_session`): its credits would be nobody's.
CREATE FUNCTION check_wallet_is_somebodys() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF non_payer_kind(NEW.wallet_address) IN ('nobody', 'token') THEN
        RAISE EXCEPTION '% is nobody''s wallet: an account is opened for a payer', NEW.wallet_address
            USING ERRCODE = 'check_violation', CONSTRAINT = 'users_wallet_is_somebodys';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER users_wallet_is_somebodys BEFORE INSERT OR UPDATE OF wallet_address ON users
    FOR EACH ROW EXECUTE FUNCTION check_wallet_is_somebodys();

-- Until when a transfer would have paid the intent in time. `expires_at` says it only as long as nothing was submitted, and
-- an attempt that was submitted with a wrong hash may be paid in time all the same.
ALTER TABLE payment_attempts ADD COLUMN payable_until timestamptz;

CREATE FUNCTION keep_payable_until() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.payable_until := CASE TG_OP WHEN 'INSERT' THEN NEW.expires_at
                         ELSE coalesce(OLD.payable_until, OLD.expires_at) END;
    RETURN NEW;
END $$;
CREATE TRIGGER payment_attempts_payable_until BEFORE INSERT OR UPDATE ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION keep_payable_until();

REVOKE ALL ON FUNCTION check_settled_income, check_credited_income, check_wallet_is_somebodys FROM PUBLIC;
