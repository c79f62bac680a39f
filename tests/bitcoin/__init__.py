"""A chain of Bitcoin's family, on a regtest node."""
