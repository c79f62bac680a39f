"""The client for APIs and scripts. Callers need no Temporal names."""
