"""Service keys and usage of the session's account."""
