"""The client that an API or a script uses. No caller needs to know a Temporal name."""
