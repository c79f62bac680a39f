"""Temporal workflows, and their names: a payment, the chain watch, operators' remedies, scheduled jobs."""
