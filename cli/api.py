"""What the command says to services, over the one place of connections; every wait has a deadline."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cli.answers import BatchItem, NetworkInfo, PeerStatus, Simulation, TransactionStatus
from cli.errors import UnreachableError
from protocol import canonical, trace
from protocol.envelope import Envelope
from protocol.messages import Answer, CommitEvent, EndorseRequest, Proposal
from transport.address import Address
from transport.connect import connect_blocking
from transport.problem import raise_for_problem
from transport.stream import MEDIA_TYPE as NDJSON
from transport.stream import SILENCE_SECONDS

TIMEOUT_SECONDS: Final = 30.0
PROBE_SECONDS: Final = 3.0
JSON: Final = {"Content-Type": "application/json"}


class Service:
    """Any service: health and figures. A context manager that closes its connection.

    Raises `UnreachableError` when nobody listens at its Unix socket.
    """

    def __init__(self, address: Address, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.address = address
        _require_listening(address)
        self._http = connect_blocking(address, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether it is ready, and its checks; raises `httpx2.HTTPError` when it does not answer."""
        response = self._http.get("/health/ready")
        try:
            state = msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            return False, {"answer": response.text[:200]}
        return bool(state.get("ready")), dict(state.get("checks", {}))

    def height(self) -> int:
        """The height of the last block that a device or a peer has applied."""
        return msgspec.json.decode(self._get("/v1/status"), type=_Standing).height

    def figure(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric that carry `labels`; zero when there is none."""
        response = self._http.get("/metrics")
        raise_for_problem(response.status_code, response.content)
        return sum(
            sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def _get(self, path: str, timeout: float | None = None) -> bytes:
        response = self._http.get(path, timeout=timeout or httpx2.USE_CLIENT_DEFAULT)
        raise_for_problem(response.status_code, response.content)
        return response.content

    def _post(self, path: str, body: bytes, headers: dict[str, str] = JSON, timeout: float | None = None) -> bytes:
        response = self._http.post(path, content=body, headers=headers, timeout=timeout or httpx2.USE_CLIENT_DEFAULT)
        raise_for_problem(response.status_code, response.content)
        return response.content


class Management(Service):
    """A management service's public listener."""

    def network(self) -> NetworkInfo:
        """What chain it keeps."""
        return msgspec.json.decode(self._get("/v1/network"), type=NetworkInfo)

    def devices(self) -> list[dict[str, Any]]:
        """The live state of its endorsement devices."""
        found: list[dict[str, Any]] = msgspec.json.decode(self._get("/v1/devices"))["devices"]
        return found

    def simulation(self, kind: str, *, without: str | None = None) -> Simulation:
        """Whether a transaction of this type would be endorsed now, or without a device. Raises `ProblemError`."""
        query = f"?without={quote(without, safe='')}" if without else ""
        return msgspec.json.decode(self._get(f"/v1/policies/{quote(kind, safe='')}/simulation{query}"), type=Simulation)

    def route(self, kind: str) -> dict[str, Any]:
        """Whom the next transaction of this type goes to, and why. Raises `ProblemError`."""
        told: dict[str, Any] = msgspec.json.decode(self._get(f"/v1/routes/{quote(kind, safe='')}"))
        return told

    def alarms(self) -> list[dict[str, Any]]:
        """What an operator must look into, newest first."""
        found: list[dict[str, Any]] = msgspec.json.decode(self._get("/v1/alarms"))["alarms"]
        return found

    def submit(self, transaction: bytes, *, wait: float = 0) -> TransactionStatus:
        """Hand in one transaction; waits up to `wait` seconds for its end. Raises `ProblemError` when refused."""
        query = f"?wait={wait:g}" if wait else ""
        answer = self._post(f"/v1/transactions{query}", transaction, timeout=TIMEOUT_SECONDS + wait)
        return msgspec.json.decode(answer, type=TransactionStatus)

    def submit_batch(self, transactions: Sequence[bytes]) -> list[BatchItem]:
        """Hand in transactions, one a line; the answers stand in their order."""
        answer = self._post("/v1/transactions:batch", b"\n".join(transactions) + b"\n", {"Content-Type": NDJSON})
        return _batch_decoder.decode(answer).results

    def status(self, transaction: str, *, wait: float = 0) -> TransactionStatus:
        """What became of a transaction; waits up to `wait` seconds for its end."""
        query = f"?wait={wait:g}" if wait else ""
        answer = self._get(f"/v1/transactions/{transaction}{query}", timeout=TIMEOUT_SECONDS + wait)
        return msgspec.json.decode(answer, type=TransactionStatus)

    def follow(self, transaction: str, *, seconds: float) -> TransactionStatus:
        """The status at its end, or the last one before `seconds` have gone."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(transaction, wait=max(0.1, min(10.0, deadline - time.monotonic())))
            if status.final or time.monotonic() >= deadline:
                return status

    def block(self, height: int) -> bytes:
        """The canonical bytes of a block."""
        return self._get(f"/v1/blocks/{height}")

    def events(self, start: int, stopped: Callable[[], bool]) -> Iterator[CommitEvent]:
        """Commit events from height `start` on, over breaks of the connection, until `stopped()`."""
        height = start
        while not stopped():
            with contextlib.suppress(httpx2.HTTPError):
                for event in self._events(height, stopped):
                    yield event
                    height = event.height + 1
            time.sleep(0.1)

    def _events(self, start: int, stopped: Callable[[], bool]) -> Iterator[CommitEvent]:
        with self._http.stream("GET", f"/v1/events?from={start}", timeout=SILENCE_SECONDS) as response:
            if response.is_error:
                raise_for_problem(response.status_code, response.read())
            pending = b""
            for chunk in response.iter_raw():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in filter(None, lines):
                    yield _event_decoder.decode(line)
                if stopped():
                    return

    def enrol(self, name: str, request: str, secret: str | None) -> dict[str, Any]:
        """Ask the CA for a certificate; the answer has one, or none while an operator must approve."""
        body = msgspec.json.encode({"name": name, "csr": request, "secret": secret})
        answer: dict[str, Any] = msgspec.json.decode(self._post("/v1/enrol", body))
        return answer

    def certify_key(self, name: str, request: str, proof: Envelope) -> dict[str, Any]:
        """A certificate for a client's new key, and what the old key and the new one are to sign (requirement K-12)."""
        body = canonical.encode({"csr": request, "proof": proof})
        answer: dict[str, Any] = msgspec.json.decode(self._post(f"/v1/clients/{quote(name)}/certificate", body))
        return answer

    def announce_key(self, name: str, announcement: Envelope) -> dict[str, Any]:
        """Put a client's new key in the place of the old one, which both have announced (requirement K-12)."""
        body = canonical.encode({"announcement": announcement})
        answer: dict[str, Any] = msgspec.json.decode(
            self._post(f"/v1/clients/{quote(name)}/key", body, timeout=2 * TIMEOUT_SECONDS)
        )
        return answer

    def ca_certificate(self) -> bytes:
        """The CA's certificate (PEM), and those of its earlier keys that still last."""
        return self._get("/v1/ca/certificate")

    def crl(self, issuer: str = "") -> bytes:
        """The CA's list of revoked certificates (DER), or that of one of its earlier keys."""
        return self._get("/v1/ca/crl" + (f"?issuer={quote(issuer, safe='')}" if issuer else ""))


class Control(Service):
    """A management service's control listener: the operator's, a Unix socket."""

    def invite(self, name: str, seconds: int) -> dict[str, Any]:
        """A one-time enrolment secret for `name`."""
        body = msgspec.json.encode({"name": name, "seconds": seconds})
        answer: dict[str, Any] = msgspec.json.decode(self._post("/v1/enrolments", body))
        return answer

    def enrolments(self) -> list[dict[str, Any]]:
        """The requests that wait for an operator."""
        found: list[dict[str, Any]] = msgspec.json.decode(self._get("/v1/enrolments"))["enrolments"]
        return found

    def decide(self, name: str, decision: str) -> dict[str, Any]:
        """Approve or refuse a request; `decision` is "approve" or "refuse"."""
        answer: dict[str, Any] = msgspec.json.decode(self._post(f"/v1/enrolments/{quote(name)}:{decision}", b""))
        return answer

    def certificates(self, kind: str = "") -> list[dict[str, Any]]:
        """What the CA has issued, with states and days left."""
        answer = self._get("/v1/certificates" + (f"?kind={quote(kind)}" if kind else ""))
        found: list[dict[str, Any]] = msgspec.json.decode(answer)["certificates"]
        return found

    def certify_node(self, node: str, device: str) -> list[dict[str, Any]]:
        """Certificates for a node's keys that count now, or for the one on a device."""
        body = msgspec.json.encode({"node": node, "device": device or None})
        found: list[dict[str, Any]] = msgspec.json.decode(self._post("/v1/certificates/node", body))["certificates"]
        return found

    def certify_service(self, name: str, request: str, dns: list[str], addresses: list[str]) -> dict[str, Any]:
        """A certificate for a service's TLS key."""
        body = msgspec.json.encode({"name": name, "csr": request, "dns": dns, "addresses": addresses})
        answer: dict[str, Any] = msgspec.json.decode(self._post("/v1/certificates/service", body))
        return answer

    def revoke_service(self, name: str, reason: str, certificate: str | None = None) -> list[str]:
        """Put the certificates of a service on the list, also one (PEM) that the CA has forgotten; their serials."""
        body = msgspec.json.encode({"reason": reason, "certificate": certificate})
        answer = self._post(f"/v1/certificates/service/{quote(name)}:revoke", body)
        found: list[str] = msgspec.json.decode(answer)["revoked"]
        return found


class Device(Service):
    """An endorsement device."""

    def endorse(self, transaction: bytes, nodes: tuple[str, ...]) -> Answer:
        """What it says to one transaction when it is asked directly."""
        request = EndorseRequest(least_height=0, proposals=(Proposal(msgspec.Raw(transaction), nodes),))
        (answer,) = msgspec.json.decode(self._post("/v1/endorse", canonical.encode(request)), type=_Answers).answers
        return answer


class _Standing(msgspec.Struct, frozen=True):
    height: int


class _BatchAnswer(msgspec.Struct, frozen=True):
    results: list[BatchItem]


class _Answers(msgspec.Struct, frozen=True):
    answers: tuple[Answer, ...]


class Peer(Service):
    """A peer."""

    def status(self) -> PeerStatus:
        """What it has applied, and whether it halted."""
        return msgspec.json.decode(self._get("/v1/status"), type=PeerStatus)

    def digest(self) -> tuple[int, str]:
        """A height and the SHA-256 over the whole state there."""
        answer = msgspec.json.decode(self._get("/v1/digest", timeout=4 * TIMEOUT_SECONDS))
        return answer["height"], answer["digest"]

    def state(self, key: str) -> bytes:
        """What stands under a key of the state."""
        return self._get(f"/v1/state/{quote(key)}")

    def trace(self, key: str, start: int) -> trace.Page:
        """What a key signed in blocks from `start` on; one page."""
        answer = self._get(f"/v1/trace/{key}?from={start}", timeout=4 * TIMEOUT_SECONDS)
        return msgspec.json.decode(answer, type=trace.Page)

    def receipt(self, transaction: str) -> bytes:
        """The receipt of a committed transaction."""
        return self._get(f"/v1/receipts/{transaction}")

    def evidence(self, transaction: str, start: int = 0) -> bytes:
        """The evidence of a committed transaction, with the handovers of the centers after block `start`."""
        return self._get(f"/v1/evidence/{transaction}?from={start}", timeout=4 * TIMEOUT_SECONDS)


def _require_listening(address: Address) -> None:
    """Raise `UnreachableError` where nobody listens at a Unix socket: clearer than the first request's failure."""
    if address.path is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(address.socket_path())
        except OSError:
            raise UnreachableError(
                f"no service listens at {address}", advice="start the network: hsm-endorser network up DIR"
            ) from None


_batch_decoder = msgspec.json.Decoder(_BatchAnswer)
_event_decoder = msgspec.json.Decoder(CommitEvent)
