"""The figures of a device, in Prometheus' terms."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
VOTES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """All figures of one device process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.token_calls = Counter(
            "hsm_endorser_device_token_calls",
            "Calls to the token worker",
            ["operation", "result"],
            registry=self.registry,
        )
        self.token_seconds = Histogram(
            "hsm_endorser_device_token_seconds",
            "Time of a call to the token worker",
            ["operation"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.token_restarts = Counter(
            "hsm_endorser_device_token_restarts", "Token workers started after the first", registry=self.registry
        )
        self.token_failures = Counter(
            "hsm_endorser_device_token_failures",
            "Failures of the token, by what was done about them",
            ["failure", "reaction"],
            registry=self.registry,
        )
        self.token_quarantined = Gauge(
            "hsm_endorser_device_token_quarantined",
            "1 while the token is quarantined: an operator must look (alarm)",
            registry=self.registry,
        )
        self.wrong_signatures = Counter(
            "hsm_endorser_device_wrong_signatures",
            "Signatures of the token that did not verify, and did not leave",
            registry=self.registry,
        )
        self.signatures = Counter(
            "hsm_endorser_device_signatures", "Signatures made on the token (C_Sign)", registry=self.registry
        )
        self.votes = Counter("hsm_endorser_device_votes", "Votes signed", ["verdict"], registry=self.registry)
        self.failures = Counter(
            "hsm_endorser_device_failures", "Proposals without a vote", ["code"], registry=self.registry
        )
        self.batch_votes = Histogram(
            "hsm_endorser_device_batch_votes", "Votes in one tree", buckets=VOTES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "hsm_endorser_device_batch_seconds",
            "From taking a batch to its answers",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queued = Gauge("hsm_endorser_device_queued", "Proposals that wait", registry=self.registry)
        self.height = Gauge("hsm_endorser_device_height", "Height of the replica", registry=self.registry)
        self.ready = Gauge("hsm_endorser_device_ready", "1 when the device can sign", registry=self.registry)
