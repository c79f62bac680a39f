"""Domain rules as pure functions and values: no clock, network or database. The domain decides; other layers act."""
