-- Transfers on chains of Bitcoin's family: addresses there are Base58 or Bech32.

-- The token of a chain's own coin is EIP-7528's address; the sender of an output is one that no one has.
ALTER TABLE observed_transfers
    DROP CONSTRAINT observed_transfers_to_address_check,
    ADD CONSTRAINT observed_transfers_to_address_check
        CHECK (to_address ~ '^0x[0-9a-fA-F]{40}$' OR to_address ~ '^[1-9A-HJ-NP-Za-km-z]{26,64}$'
               OR to_address ~ '^[a-z]{1,16}1[02-9ac-hj-np-z]{11,87}$') NOT VALID;
ALTER TABLE payment_attempts
    DROP CONSTRAINT payment_attempts_to_address_check,
    ADD CONSTRAINT payment_attempts_to_address_check
        CHECK (to_address ~ '^0x[0-9a-fA-F]{40}$'
               OR kind = 'deposit' AND (to_address ~ '^[1-9A-HJ-NP-Za-km-z]{26,64}$'
                                        OR to_address ~ '^[a-z]{1,16}1[02-9ac-hj-np-z]{11,87}$')) NOT VALID;
