"""The gateway: calls to AI providers, held before they are made and captured exactly once."""
