"""What the command line does, one module for each command. `cli` imports them only when they are called."""
