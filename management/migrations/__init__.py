"""Schema versions of the record pool's tables, applied when the service opens its database."""
