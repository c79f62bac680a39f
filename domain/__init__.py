"""The rules of a payment, pure: no clock, no network, no database. It decides; others act."""
