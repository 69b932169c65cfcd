"""SoftHSM2 tokens for development and tests, in folders of their own; never the machine's default store."""
