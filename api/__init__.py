"""The HTTP interface: sign-in with a wallet, payments, and the pages that people pay on."""
