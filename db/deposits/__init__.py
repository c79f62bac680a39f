"""Payment methods, deposit addresses, charges, and what has come to them."""
