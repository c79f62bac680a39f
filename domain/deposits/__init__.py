"""Addresses that are paid to: methods, rings of an extended public key, deposit addresses."""
