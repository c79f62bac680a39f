"""Bitcoin: blocks as they are on the wire, and the questions to a node that has them."""
