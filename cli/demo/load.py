"""The load part: coins go back and forth between two clients, in batches, for a least number and a least time.

Transfers are signed ahead in processes of their own. Coins are arranged in lanes: the transfer of a lane's next
round spends the coin that its round before made, so it is sent when that one has its commit.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import msgspec

from cli import keys
from cli.keys import SoftwareKey
from cli.submission import Signed, Submission, is_valid

MOST_LANES: Final = 10_240
LANE_BATCH: Final = 512
COINS_PER_ISSUE: Final = 256
SIGNERS: Final = 2
EXPECTED_RATE: Final = 4_000
"""Transfers a second for which enough are signed ahead; beyond that they are signed while the load runs."""
SYMBOL: Final = "DEMO"


class Identity(msgspec.Struct, frozen=True):
    """A client as a signing process needs it: its name and its software key (PEM)."""

    name: str
    pem: bytes


class Job(msgspec.Struct, frozen=True):
    """One round of transfers for a signing process: every coin goes from its owner to the other client."""

    network: str
    owner: Identity
    receiver: str
    coins: tuple[str, ...]
    valid_until: int


class Figures(msgspec.Struct, frozen=True):
    """What the load part measured; times from sending to the commit event, in seconds."""

    sent: int
    committed: int
    seconds: float
    per_second: float
    median: float
    p95: float


class Lanes:
    """The coins, and the rounds of transfers over them."""

    def __init__(self, network: str, clients: Sequence[Identity], transfers: int, valid_until: int) -> None:
        self._network = network
        self._clients = clients
        self._valid_until = valid_until
        self.size = min(MOST_LANES, math.ceil(transfers / 4 / COINS_PER_ISSUE) * COINS_PER_ISSUE)
        self._coins: list[str] = []
        self._rounds: list[list[list[Signed]]] = []

    def issues(self) -> list[Signed]:
        """The transactions that make the coins, owned by the first client; sets up the lanes."""
        owner = self._clients[0]
        key = SoftwareKey.from_pem(owner.pem)
        outputs = [{"owner": owner.name, "amount": 1}] * COINS_PER_ISSUE
        signed = [
            keys.sign(
                keys.payload(
                    self._network,
                    owner.name,
                    "assets.issue",
                    {"symbol": SYMBOL, "outputs": outputs},
                    valid_until=self._valid_until,
                ),
                [key],
            )
            for _ in range(self.size // COINS_PER_ISSUE)
        ]
        self._coins = [f"{identity}:{index}" for identity, _ in signed for index in range(COINS_PER_ISSUE)]
        return signed

    def sign_ahead(self, transfers: int, progress: Callable[[int], None]) -> None:
        """Sign whole rounds until there are `transfers`, in processes of their own."""
        signed = 0
        with ProcessPoolExecutor(SIGNERS, mp_context=get_context("spawn")) as pool:
            for number in range(math.ceil(transfers / self.size)):
                jobs = self._jobs(number)
                batches = list(pool.map(sign_round, jobs))
                self._add(batches)
                signed += self.size
                progress(signed)

    def batches(self, submission: Submission, transfers: int, seconds: float) -> Iterator[list[Signed]]:
        """Batches to send, until there were `transfers` and `seconds` have gone since the first."""
        start = time.monotonic()
        sent, number = 0, 0
        while sent < transfers or time.monotonic() - start < seconds:
            if number == len(self._rounds):
                self._add([sign_round(job) for job in self._jobs(number)])
            for at, batch in enumerate(self._rounds[number]):
                if number and not submission.wait_ended(self._rounds[number - 1][at]):
                    return
                yield batch
                sent += len(batch)
                if sent >= transfers and time.monotonic() - start >= seconds:
                    return
            number += 1

    def spent_coin(self) -> str:
        """A coin of the first client that the first round spent."""
        return self._coins[0]

    def _jobs(self, number: int) -> list[Job]:
        owner, receiver = self._clients[number % 2], self._clients[1 - number % 2]
        if number:
            coins = [f"{identity}:0" for batch in self._rounds[number - 1] for identity, _ in batch]
        else:
            coins = self._coins
        return [
            Job(self._network, owner, receiver.name, tuple(coins[at : at + LANE_BATCH]), self._valid_until)
            for at in range(0, len(coins), LANE_BATCH)
        ]

    def _add(self, batches: list[list[Signed]]) -> None:
        self._rounds.append(batches)


def sign_round(job: Job) -> list[Signed]:
    """Sign a transfer of each coin; runs in a signing process."""
    key = SoftwareKey.from_pem(job.owner.pem)
    outputs = [{"owner": job.receiver, "amount": 1}]
    return [
        keys.sign(
            keys.payload(
                job.network,
                job.owner.name,
                "assets.transfer",
                {"inputs": [coin], "outputs": outputs},
                valid_until=job.valid_until,
            ),
            [key],
        )
        for coin in job.coins
    ]


def figures(submission: Submission) -> Figures:
    """What a finished run measured."""
    times = sorted(end.seconds for end in submission.ends.values() if is_valid(end))
    lasted = (submission.last_end or 0.0) - (submission.first_sent or 0.0)
    return Figures(
        sent=len(submission.ends) + submission.pending,
        committed=len(times),
        seconds=lasted,
        per_second=len(times) / lasted if lasted else 0.0,
        median=_quantile(times, 0.50),
        p95=_quantile(times, 0.95),
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
