"""The gateway before a real upstream, over real sockets and a real PostgreSQL."""
