-- What sweeps cost, part by part, and deposits that an operator has credited.

-- Of what is mined. `spent_wei` is the product of the first two, and what the rollup took for publication.
ALTER TABLE sweep_transactions
    ADD COLUMN gas_used bigint CHECK (gas_used > 0),
    ADD COLUMN gas_price_wei numeric(78, 0) CHECK (gas_price_wei >= 0),
    ADD COLUMN l1_fee_wei numeric(78, 0) CHECK (l1_fee_wei >= 0);

-- Credits of a deposit that an operator has credited to the account of its address; empty where none has.
ALTER TABLE deposits ADD COLUMN operator_credits bigint CHECK (operator_credits > 0);

CREATE TRIGGER transfer_credits_note_deposit AFTER INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION note_operator_credit_of_deposit();
