"""Addresses computed from public values only: no key that could spend from one is ever in this code's hands."""
