-- A payment belongs to one chain, and only a worker of that chain looks after it. That a settled transfer and a record of
-- its finality are of the attempt's own chain is checked already (check_settled_transfer, check_finality); here is the rest
-- of what rows can say. Processes of the revision before write nothing else.

-- What an operator credits or sends back is the transfer that the finding is about, on the finding's own chain.
CREATE FUNCTION check_transfer_credit_finding() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM findings f
         WHERE f.id = NEW.finding_id AND f.chain_id = NEW.chain_id AND f.tx_hash = NEW.tx_hash
    ) THEN
        RAISE EXCEPTION 'transfer % of transaction % on chain % is not what finding % is about',
            NEW.log_index, NEW.tx_hash, NEW.chain_id, NEW.finding_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'transfer_credits_of_its_finding';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER transfer_credits_of_its_finding AFTER INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION check_transfer_credit_finding();

-- A transfer is handed to attempts of its own chain.
CREATE FUNCTION check_observed_attempt() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM payment_attempts a WHERE a.id = NEW.attempt_id AND a.chain_id = NEW.chain_id) THEN
        RAISE EXCEPTION 'transaction % on chain % cannot pay attempt %, which is of another chain',
            NEW.tx_hash, NEW.chain_id, NEW.attempt_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'observed_transfers_pays_attempt_of_its_chain';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER observed_transfers_pays_attempt_of_its_chain AFTER INSERT OR UPDATE OF attempt_id ON observed_transfers
    FOR EACH ROW WHEN (NEW.attempt_id IS NOT NULL) EXECUTE FUNCTION check_observed_attempt();

REVOKE ALL ON FUNCTION check_transfer_credit_finding, check_observed_attempt FROM PUBLIC;
