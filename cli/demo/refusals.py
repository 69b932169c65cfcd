"""What must fail, tried on the running network: each attempt, who refused it, and with which reason."""

import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from cli import keys
from cli.answers import TransactionStatus
from cli.api import Device, Management
from cli.demo.load import Identity
from cli.keys import SoftwareKey
from cli.output import devices_tried
from cli.supervisor import Supervisor
from protocol.block import VALID
from transport.problem import Problem, ProblemError

WAIT_SECONDS: Final = 30.0
READY_SECONDS: Final = 60.0
DIGEST: Final = "0" * 64


class Attempt(msgspec.Struct, frozen=True):
    """Something that must not work: the code that was expected and the one that came, and the reason in words."""

    name: str
    expected: str
    got: str
    reason: str
    devices: tuple[str, ...] = ()


class Refusals:
    """The attempts, in the order in which the demo shows them."""

    def __init__(
        self, management: Management, network: str, clients: list[Identity], now: Callable[[], float] = time.time
    ) -> None:
        self._management = management
        self._network = network
        self._clients = clients
        self._now = now

    def unknown_client(self) -> Attempt:
        """A client that never registered signs with a key of its own."""
        wish = self._evidence("mallory", SoftwareKey.generate())
        return self._attempt("unknown client", "unknown-client", wish)

    def wrong_signature(self) -> Attempt:
        """Somebody signs in a client's name with another key."""
        wish = self._evidence(self._clients[0].name, SoftwareKey.generate())
        return self._attempt("wrong reference signature", "bad-signature", wish)

    def expired(self) -> Attempt:
        """A transaction whose validity ended a minute ago."""
        wish = self._evidence(self._clients[0].name, self._key(0), valid_for=-60)
        return self._attempt("expired", "expired", wish)

    def replay(self, transaction: bytes, device: Device, node: str) -> Attempt:
        """A committed transaction again, put straight before a device: it is executed once."""
        answer = device.endorse(transaction, (node,))
        if answer.failure is not None:
            got, reason = answer.failure.code, answer.failure.detail
        else:
            got = ", ".join(vote.reason or vote.verdict for vote in answer.votes)
            reason = "; ".join(f"node {vote.node} signed: {vote.verdict} {vote.reason}" for vote in answer.votes)
        return Attempt("replay", "already-executed", got, reason)

    def replay_is_harmless(self, transaction: bytes) -> TransactionStatus:
        """The same through the management service: it answers where the transaction stands already."""
        return self._management.submit(transaction, wait=WAIT_SECONDS)

    def double_spending(self, coin: str) -> Attempt:
        """A coin that was spent is spent again by the client that owned it."""
        arguments = {"inputs": [coin], "outputs": [{"owner": self._clients[0].name, "amount": 1}]}
        return self._attempt("double spending", "already-spent", self._sign(0, "assets.transfer", arguments))

    def too_few_endorsements(self, supervisor: Supervisor, device: str) -> list[Attempt]:
        """Issue value, which all nodes must endorse, while one device is stopped; and again when it is back."""
        supervisor.stop(device)
        attempts = [self._attempt("too few endorsements", "endorsement-unavailable", self._issue())]
        supervisor.start(device)
        supervisor.wait_ready(READY_SECONDS, [device])
        attempts.append(self._attempt(f"the same with {device} back", VALID, self._issue()))
        return attempts

    def _issue(self) -> bytes:
        outputs = [{"owner": self._clients[0].name, "amount": 1}]
        return self._sign(0, "assets.issue", {"symbol": "LATE", "outputs": outputs})

    def _attempt(self, name: str, expected: str, transaction: bytes) -> Attempt:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            status = self._management.submit(transaction, wait=WAIT_SECONDS)
            if not status.final:
                status = self._management.follow(status.transaction, seconds=deadline - time.monotonic())
        except ProblemError as error:
            return _refused(name, expected, error.problem)
        if status.problem is not None:
            return _refused(name, expected, status.problem)
        where = f" in block {status.height}" if status.height is not None else ""
        return Attempt(name, expected, status.code or status.status, f"{status.status}{where}")

    def _evidence(self, client: str, key: SoftwareKey, *, valid_for: float = 300) -> bytes:
        arguments = {"subject": f"refusal/{secrets.token_hex(8)}", "digest": DIGEST, "attributes": {}}
        return self._bytes(client, key, "evidence.record", arguments, valid_for)

    def _sign(self, client: int, kind: str, arguments: dict[str, Any]) -> bytes:
        return self._bytes(self._clients[client].name, self._key(client), kind, arguments, 300)

    def _key(self, client: int) -> SoftwareKey:
        return SoftwareKey.from_pem(self._clients[client].pem)

    def _bytes(self, client: str, key: SoftwareKey, kind: str, arguments: dict[str, Any], valid_for: float) -> bytes:
        until = int((self._now() + valid_for) * 1000)
        _, raw = keys.sign(keys.payload(self._network, client, kind, arguments, valid_until=until), [key])
        return raw


def _refused(name: str, expected: str, problem: Problem) -> Attempt:
    return Attempt(
        name, expected, problem.reason or problem.code, problem.detail, tuple(devices_tried(problem.devices))
    )
