"""What Temporal runs: the story of a payment, and the names by which it is found."""
