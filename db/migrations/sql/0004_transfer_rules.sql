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

INSERT INTO non_payers (address, kind) VALUES ('0x' || repeat('0', 40), 'nobody');
-- What was ever followed or paid to. Not what an intent merely names: processes that people reach write intents, and would
-- say of anybody's wallet that it is a treasury.
INSERT INTO non_payers (address, kind)
SELECT lower(to_address), 'treasury' FROM chain_cursors
 UNION SELECT lower(to_address), 'treasury' FROM payment_attempts WHERE status IN ('CREDITED', 'REVERSED')
ON CONFLICT (address) DO NOTHING;
INSERT INTO non_payers (address, kind)
SELECT DISTINCT lower(token), 'token' FROM chain_cursors ON CONFLICT (address) DO NOTHING;

-- The first block that settle answers for, where a setting says so (CHAIN_WATCH_FROM_BLOCK). Without one it is first_block,
-- as soon as a block has been read: one node's word of the chain's height alone makes nobody's payment too old.
ALTER TABLE chain_cursors ADD COLUMN answers_from bigint CHECK (answers_from >= 0);

CREATE TRIGGER settled_transfers_is_income BEFORE INSERT ON settled_transfers
    FOR EACH ROW EXECUTE FUNCTION check_settled_income();

CREATE TRIGGER transfer_credits_is_income BEFORE INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION check_credited_income();

CREATE TRIGGER users_wallet_is_somebodys BEFORE INSERT OR UPDATE OF wallet_address ON users
    FOR EACH ROW EXECUTE FUNCTION check_wallet_is_somebodys();

-- Until when a transfer would have paid the intent in time. `expires_at` says it only as long as nothing was submitted, and
-- an attempt that was submitted with a wrong hash may be paid in time all the same.
ALTER TABLE payment_attempts ADD COLUMN payable_until timestamptz;

CREATE TRIGGER payment_attempts_payable_until BEFORE INSERT OR UPDATE ON payment_attempts
    FOR EACH ROW EXECUTE FUNCTION keep_payable_until();
