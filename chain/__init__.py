"""Reading the chain: several JSON-RPC nodes, none of which is trusted alone."""
