"""A running network as a client and a saboteur see it."""

import hashlib
import os
import signal
import threading
import time
from typing import Any

import httpx2

from cli import keys
from cli.answers import BatchItem, TransactionStatus
from cli.api import Management, Peer
from cli.errors import UnreachableError
from cli.keys import SoftwareKey
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from protocol.transaction import Transaction
from transport.problem import ProblemError

VALID_MILLISECONDS = 600_000
PATIENCE_SECONDS = 60.0


class RunningNetwork:
    """The folder, its supervisor, and the clients' keys."""

    def __init__(self, layout: Layout, supervisor: Supervisor) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.name = read_network(layout.folder).network
        self.peers = read_network(layout.folder).peers

    def management(self) -> Management:
        """A connection to the management service."""
        return Management(self.layout.socket("management"))

    def peer(self, name: str) -> Peer:
        """A connection to a peer."""
        return Peer(self.layout.socket(name))

    def sign(self, kind: str, arguments: dict[str, Any], *, client: str = "alice", **options: int) -> Transaction:
        """A transaction by a registered client."""
        key = SoftwareKey.load(self.layout.client_key(client))
        until = options.pop("valid_until", time.time_ns() // 1_000_000 + VALID_MILLISECONDS)
        payload = keys.payload(self.name, client, kind, arguments, valid_until=until, **options)
        return Transaction.decode(keys.sign(payload, [key])[1])

    def evidence(self, subject: str, **options: Any) -> Transaction:
        """An `evidence.record` transaction."""
        digest = hashlib.sha256(subject.encode()).hexdigest()
        return self.sign("evidence.record", {"subject": subject, "digest": digest, "attributes": {}}, **options)

    def kill(self, service: str) -> int:
        """SIGKILL a service's process; the supervisor starts another. Returns the killed process's id."""
        pid = self.supervisor.processes[service].pid
        assert pid is not None, f"{service} does not run"
        os.kill(pid, signal.SIGKILL)
        return pid

    def ended(self, transaction: str, seconds: float = PATIENCE_SECONDS) -> TransactionStatus:
        """The final status of a transaction."""
        with self.management() as management:
            return management.follow(transaction, seconds=seconds)

    def wait_level(self, height: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until every peer has applied `height`."""
        deadline = time.monotonic() + seconds
        for name in self.peers:
            while True:
                try:
                    with self.peer(name) as peer:
                        if peer.status().height >= height:
                            break
                except (UnreachableError, httpx2.HTTPError):
                    pass
                assert time.monotonic() < deadline, f"{name} did not reach height {height}"
                time.sleep(0.1)


class Load(threading.Thread):
    """A client that hands in batches for as long as it is told, and remembers what was acknowledged with 202.

    It sends a batch again after any failure, as clients do: only an answer acknowledges anything.
    """

    def __init__(self, network: RunningNetwork, label: str, *, batch: int = 50, pause: float = 0.05) -> None:
        super().__init__(daemon=True)
        self._network = network
        self._label = label
        self._batch = batch
        self._pause = pause
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        self.refused: list[BatchItem] = []
        self.failures = 0

    def run(self) -> None:
        """Hand in batch after batch."""
        number = 0
        while not self._stopping.is_set():
            number += 1
            batch = [self._network.evidence(f"{self._label}-{number}-{i}") for i in range(self._batch)]
            self._hand_in(batch)
            time.sleep(self._pause)

    def stop(self) -> None:
        """Finish the batch that is under way."""
        self._stopping.set()
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive()

    def _hand_in(self, batch: list[Transaction]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                with self._network.management() as management:
                    answers = management.submit_batch([each.raw for each in batch])
            except (httpx2.HTTPError, UnreachableError, ProblemError):
                self.failures += 1
                time.sleep(0.1)
                continue
            for answer in answers:
                if answer.transaction and answer.problem is None:
                    self.acknowledged.append(answer.transaction)
                else:
                    self.refused.append(answer)
            return
