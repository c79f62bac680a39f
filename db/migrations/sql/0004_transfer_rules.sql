-- Which transfers are income, and from which block on: the rules of domain/transfers/income.py, kept by the database too. And until
-- when an attempt could be paid in time, which its submission used to wipe out.

-- The first block whose transfers are accepted, where a setting gives it (CHAIN_WATCH_FROM_BLOCK). Without one it is first_block,
-- as soon as a block has been read: the chain's height as one node reports it makes no payment too old.
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
