"""What a call through the gateway costs: usage as providers report it, prices, and who pays for what went wrong."""
