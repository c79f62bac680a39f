"""What several folders of tests share: a database of one's own, payments in one call, the oracle."""
