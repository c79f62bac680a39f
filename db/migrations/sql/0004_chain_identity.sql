-- A payment belongs to one chain, and only a worker of that chain processes it. That a settled transfer and a record of
-- its finality are of the attempt's own chain is checked already (check_settled_transfer, check_finality); these are the
-- remaining checks. Processes of the revision before write rows that satisfy them.

CREATE TRIGGER transfer_credits_of_its_finding AFTER INSERT ON transfer_credits
    FOR EACH ROW EXECUTE FUNCTION check_transfer_credit_finding();

CREATE TRIGGER observed_transfers_pays_attempt_of_its_chain AFTER INSERT OR UPDATE OF attempt_id ON observed_transfers
    FOR EACH ROW WHEN (NEW.attempt_id IS NOT NULL) EXECUTE FUNCTION check_observed_attempt();
