"""One verified copy of a chain: verify, execute, append. Imports `protocol` alone.

Devices simulate on it, the management service keeps its record with it, peers answer from it.
"""
