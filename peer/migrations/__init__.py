"""The history of the peer's own tables; run by `peer.activity`."""
