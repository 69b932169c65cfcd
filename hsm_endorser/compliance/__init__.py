"""The compliance run: what any PKCS#11 module can do of what a device needs, measured on a token (requirement K-7)."""
