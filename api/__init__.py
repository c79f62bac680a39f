"""HTTP interface: sign-in with a wallet, payments, and the web pages."""
