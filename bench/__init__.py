"""`settle bench`: the product against the least that the same work can cost, side by side, as ratios."""
