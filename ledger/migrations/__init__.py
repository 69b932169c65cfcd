"""Schema versions of the chain's tables, applied when a chain is opened."""
