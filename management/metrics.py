"""The figures of the management service, for Prometheus. Counted for each batch, never for each transaction."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from management.pace import Figures

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One registry for one service; nothing is global."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.admitted = Counter(
            "hsm_endorser_management_admitted", "Transactions durably in the record pool", registry=registry
        )
        self.refused_at_intake = Counter(
            "hsm_endorser_management_refused_at_intake", "Transactions refused at intake", ["code"], registry=registry
        )
        self.settled = Counter(
            "hsm_endorser_management_settled", "Transactions that ended outside the chain", ["code"], registry=registry
        )
        self.committed = Counter(
            "hsm_endorser_management_committed", "Transactions in blocks of this center", registry=registry
        )
        self.blocks = Counter("hsm_endorser_management_blocks", "Blocks appended", registry=registry)
        self.height = Gauge("hsm_endorser_management_height", "Height of the last block", registry=registry)
        self.pooled = Gauge("hsm_endorser_management_pooled", "Transactions in the record pool", registry=registry)
        self.ready = Gauge(
            "hsm_endorser_management_ready", "Endorsed transactions that wait for a cut", registry=registry
        )
        self.requests = Counter(
            "hsm_endorser_management_device_requests", "Endorsement requests", ["device"], registry=registry
        )
        self.votes = Counter(
            "hsm_endorser_management_votes", "Verified votes", ["device", "verdict"], registry=registry
        )
        self.bad_answers = Counter(
            "hsm_endorser_management_bad_answers", "Answers of a device that do not hold", ["device"], registry=registry
        )
        self.unreachable = Counter(
            "hsm_endorser_management_device_unreachable",
            "Requests that a device did not answer",
            ["device"],
            registry=registry,
        )
        self.late_rejects = Counter(
            "hsm_endorser_management_late_rejects",
            "Signed rejects that came after the decision",
            ["device"],
            registry=registry,
        )
        self.group_commit = Histogram(
            "hsm_endorser_management_group_commit_seconds",
            "One commit of the record pool",
            registry=registry,
            buckets=SECONDS,
        )
        self.endorse = Histogram(
            "hsm_endorser_management_endorse_seconds",
            "One endorsement request",
            ["device"],
            registry=registry,
            buckets=SECONDS,
        )
        self.cut = Histogram(
            "hsm_endorser_management_cut_seconds",
            "From the cut of a block to its append",
            registry=registry,
            buckets=SECONDS,
        )
        self.time_to_endorse = Histogram(
            "hsm_endorser_management_time_to_endorse_seconds",
            "From intake until the policy of a transaction was satisfied",
            registry=registry,
            buckets=SECONDS,
        )
        self.chosen = Counter(
            "hsm_endorser_management_device_chosen", "Transactions given to a device", ["device"], registry=registry
        )
        self.hedged = Counter(
            "hsm_endorser_management_device_silent",
            "Transactions for which others were asked because a device was silent",
            ["device"],
            registry=registry,
        )
        self.discarded = Counter(
            "hsm_endorser_management_discarded_answers",
            "Answers that came when nobody waited for them any more",
            ["device"],
            registry=registry,
        )
        self.outstanding = Gauge(
            "hsm_endorser_management_device_outstanding",
            "Proposals that wait for a device, sent or not",
            ["device"],
            registry=registry,
        )
        self.device_seconds = Gauge(
            "hsm_endorser_management_device_batch_seconds",
            "Time of a device for a request, exponentially weighted",
            ["device"],
            registry=registry,
        )
        self.network_seconds = Gauge(
            "hsm_endorser_management_device_network_seconds",
            "The way to a device and back",
            ["device"],
            registry=registry,
        )
        self.error_rate = Gauge(
            "hsm_endorser_management_device_error_rate",
            "Share of requests to a device that failed lately",
            ["device"],
            registry=registry,
        )
        self.alarms = Counter("hsm_endorser_management_alarms", "Alarms", ["kind"], registry=registry)
        self.sign_failures = Counter(
            "hsm_endorser_management_sign_failures", "Headers that the center's device did not sign", registry=registry
        )

    def show(self, device: str, figures: Figures) -> None:
        """What routing knows of a device."""
        self.outstanding.labels(device).set(figures.waiting + figures.in_flight)
        self.device_seconds.labels(device).set(figures.batch_ms / 1000)
        self.network_seconds.labels(device).set(figures.network_ms / 1000)
        self.error_rate.labels(device).set(figures.error_rate)
