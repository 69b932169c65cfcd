"""The management service: intake, routing, endorsing, the record pool, block cutting, the CA. No private keys.

It decides what is asked of whom and in which order; it never signs. Imports `ledger`, `protocol` and `transport`.
"""
