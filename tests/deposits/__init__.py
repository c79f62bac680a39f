"""Deposit addresses: verification, sweeps."""
