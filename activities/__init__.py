"""What a settlement does to the world: one transaction or one look at the chain in each activity."""
