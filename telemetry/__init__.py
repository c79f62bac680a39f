"""Observability of a process: logs, metrics, events and health."""
