"""Deposit addresses and charges."""
