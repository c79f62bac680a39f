"""Implementation of the command line, one module per command. `cli` imports them only when they are called."""
