"""The peer: follows a chain, verifies and executes every block with public keys alone, answers queries.

It holds no private key and trusts no source: what it cannot accept makes it halt and say why.
"""
