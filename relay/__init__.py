"""`settle relay`: broadcasts what payers have signed. The one process that holds a key, which pays gas only."""
