"""The token on the bench: the worker of the run, further workers beside it, and the keys that were made."""

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from hsm_endorser import failures
from hsm_endorser.compliance.made import Algorithm, Key, Maker, fresh_id, fresh_label, half
from hsm_endorser.compliance.result import Rows
from hsm_endorser.custody.challenge import verifies
from hsm_endorser.custody.cryptoki import ObjectClass, code
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.inventory import find, items, public_key
from hsm_endorser.custody.probe import CALL_SECONDS, Probe, expect
from hsm_endorser.custody.probe_messages import MechanismInfo, Several, SignEach, TokenInfo
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Failed, Pin

MOST_VERIFIED: Final = 64
"""Of one burst, so many signatures are verified."""


class Effort(msgspec.Struct, frozen=True):
    """How long is measured, and how much is made; all bounds on one run."""

    rate_seconds: float = 0.4
    """For each algorithm, one by one and in lists."""
    process_seconds: float = 0.6
    """For one, two and four processes each."""
    keys: tuple[int, ...] = (1, 10, 100)
    """Among how many keys one is looked for."""
    making_seconds: float = 20.0
    """How long keys are made for that; a slow token has fewer in the end."""
    sessions: int = 256
    """Where the search for the session limit ends."""
    run_seconds: float = 180.0
    """No check begins later than this after the start: a slow token has fewer."""
    call_seconds: float = CALL_SECONDS
    """The deadline of one call; the making of a key has a longer one."""


QUICK: Final = Effort(rate_seconds=0.1, process_seconds=0.1, keys=(1, 10), making_seconds=5.0, sessions=32)
"""A look at a module between two changes of its settings."""


class Burst(msgspec.Struct):
    """Signatures made for a while: how many, in which time, the slowest call, what was refused, what was wrong."""

    signatures: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    median: float = 0.0
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: int = 0

    @property
    def rate(self) -> float:
        """Signatures a second."""
        return self.signatures / self.seconds if self.seconds else 0.0

    @property
    def trouble(self) -> str:
        """What went wrong, in words; empty when nothing did."""
        words = [f"{count} times {name}" for name, count in self.refused.most_common(4)]
        words += [f"{self.wrong} signatures that do not verify"] if self.wrong else []
        return ", ".join(words)


class Bench:
    """One token under test."""

    def __init__(self, config: TokenConfig, pin: Pin | None, probe: Probe, effort: Effort) -> None:
        self.config = config
        self.pin = pin
        self.probe = probe
        self.effort = effort
        self.rows = Rows()
        self.maker = Maker()
        self.keys: dict[str, Key] = {}
        """The keys that work, by the name of their algorithm, the ones that a device prefers first."""
        self.offered: dict[int, MechanismInfo] = {}
        self.logged_in = False
        self.pin_refused = False
        self.single_seconds: dict[str, float] = {}
        """How long one signature takes, by algorithm."""

    @property
    def best(self) -> Key | None:
        """The key with which everything else is tried."""
        for name in ("ecdsa-p256", "ed25519", "rsa-2048"):
            if name in self.keys:
                return self.keys[name]
        return None

    async def begin(self, probe: Probe | None = None) -> TokenInfo:
        """Start the worker (of the run), and log in. A PIN that was refused once is never given again."""
        probe = probe or self.probe
        if self.pin_refused:
            raise ProbeRefusedError("PinRefused", "the token refused the PIN; it is not given again")
        info = await probe.start()
        try:
            await probe.login()
        except ProbeRefusedError as error:
            self.pin_refused = error.ckr in failures.PIN_WORDS or error.ckr in {failures.UNKNOWN, "PinRefused"}
            raise
        self.logged_in = True
        return info

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[Probe]:
        """A further worker, logged in: another process for the token."""
        async with Probe.open(self.config, pin=self.pin, seconds=self.effort.call_seconds) as probe:
            await self.begin(probe)
            yield probe

    async def make(self, algorithm: Algorithm, *, probe: Probe | None = None) -> Key | Failed:
        """A pair of the run's; raises `BadPublicKeyError` when its public half holds no key."""
        label, id_ = fresh_label(), fresh_id()
        made = await self.maker.pair(probe or self.probe, algorithm, label=label, id_=id_)
        if isinstance(made, Failed):
            return made
        public = await items(probe or self.probe, made.numbers[:1])
        if not public:
            return Failed("NoSuchObject", "the public half is gone as soon as it is made")
        return Key(algorithm, label, id_, public_key(public[0]))

    async def private(self, key: Key, probe: Probe | None = None) -> int | None:
        """The number of a key's private half in a worker; None when it is not found there."""
        found = await find(probe or self.probe, half(ObjectClass.PRIVATE_KEY, key.id))
        return found[0] if found else None

    async def sign(
        self, key: Key, messages: list[bytes], *, number: int | None, probe: Probe | None = None
    ) -> list[bytes] | Failed:
        """Signatures of some messages, or the module's refusal."""
        if number is None:
            return Failed("NoSuchKey", "the key is not found")
        request = SignEach(key.algorithm.signs_by, number, [key.input(each) for each in messages])
        reply = expect(await (probe or self.probe).call(request), Several)
        return reply if isinstance(reply, Failed) else reply.values

    async def burst(self, key: Key, *, seconds: float, size: int = 1, probe: Probe | None = None) -> Burst:
        """Sign in lists of `size` for a while, at least once; a sample of the signatures is verified afterwards."""
        number = await self.private(key, probe)
        burst = Burst()
        times: list[float] = []
        kept: list[tuple[bytes, bytes]] = []
        messages = [secrets.token_bytes(32) for _ in range(size)]
        start = now = time.monotonic()
        while now - start < seconds or not times:
            reply = await self.sign(key, messages, number=number, probe=probe)
            times.append(time.monotonic() - now)
            now = time.monotonic()
            if isinstance(reply, Failed):
                burst.refused[code(reply)] += 1
                if number is None or burst.refused.total() > burst.signatures:
                    break
                continue
            burst.signatures += len(reply)
            if len(kept) < MOST_VERIFIED:
                kept.extend(zip(reply, messages, strict=True))
        burst.seconds, burst.slowest = now - start, max(times)
        burst.median = sorted(times)[len(times) // 2]
        burst.wrong = sum(not verifies(key.public, signature, message) for signature, message in kept[:MOST_VERIFIED])
        return burst
