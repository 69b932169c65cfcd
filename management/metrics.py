"""The figures of the management service, for Prometheus. Counted for each batch, never for each transaction."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One registry for one service; nothing is global."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.admitted = Counter("management_admitted", "Transactions durably in the record pool", registry=registry)
        self.refused_at_intake = Counter(
            "management_refused_at_intake", "Transactions refused at intake", ["code"], registry=registry
        )
        self.settled = Counter(
            "management_settled", "Transactions that ended outside the chain", ["code"], registry=registry
        )
        self.committed = Counter("management_committed", "Transactions in blocks of this center", registry=registry)
        self.blocks = Counter("management_blocks", "Blocks appended", registry=registry)
        self.height = Gauge("management_height", "Height of the last block", registry=registry)
        self.pooled = Gauge("management_pooled", "Transactions in the record pool", registry=registry)
        self.ready = Gauge("management_ready", "Endorsed transactions that wait for a cut", registry=registry)
        self.requests = Counter("management_device_requests", "Endorsement requests", ["device"], registry=registry)
        self.votes = Counter("management_votes", "Verified votes", ["device", "verdict"], registry=registry)
        self.bad_answers = Counter(
            "management_bad_answers", "Answers of a device that do not hold", ["device"], registry=registry
        )
        self.unreachable = Counter(
            "management_device_unreachable", "Requests that a device did not answer", ["device"], registry=registry
        )
        self.late_rejects = Counter(
            "management_late_rejects", "Signed rejects that came after the decision", ["device"], registry=registry
        )
        self.group_commit = Histogram(
            "management_group_commit_seconds", "One commit of the record pool", registry=registry, buckets=SECONDS
        )
        self.endorse = Histogram(
            "management_endorse_seconds", "One endorsement request", ["device"], registry=registry, buckets=SECONDS
        )
        self.cut = Histogram(
            "management_cut_seconds", "From the cut of a block to its append", registry=registry, buckets=SECONDS
        )
        self.sign_failures = Counter(
            "management_sign_failures", "Headers that the center's device did not sign", registry=registry
        )
