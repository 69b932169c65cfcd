"""The figures of a peer, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Counters and gauges of one peer, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.height = Gauge(
            "hsm_endorser_peer_height", "Height of the last block that was applied", registry=self.registry
        )
        self.halted = Gauge(
            "hsm_endorser_peer_halted", "1 after a block that this peer cannot accept", registry=self.registry
        )
        self.blocks = Counter("hsm_endorser_peer_blocks", "Blocks applied by this process", registry=self.registry)
        self.transactions = Counter(
            "hsm_endorser_peer_transactions", "Transactions executed, by outcome", ["code"], registry=self.registry
        )
        self.breaks = Counter(
            "hsm_endorser_peer_source_breaks",
            "Streams that ended: connection, bad-copy, out-of-step, stalled",
            ["cause"],
            registry=self.registry,
        )
        self.apply_seconds = Histogram(
            "hsm_endorser_peer_apply_seconds", "Verifying, executing and storing one block", registry=self.registry
        )
