"""The custody audit attacks a token and its keys, and says with proof whether a key could leave (K-2 to K-5)."""
