"""What is found out about one module: enrol, endorse, audit, and what it cannot do. Tests and the table share it."""

import asyncio
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hsm_endorser.errors import TokenError
from hsm_endorser.token import Token
from protocol.custody import Predicate, Row
from protocol.keys import PublicKey, Scheme
from protocol.registry import Token as TokenInfo
from tests.modules import module_network
from tests.modules.module_token import ModuleToken
from tests.modules.tokens import TOKENS

SCHEMES: Final[tuple[Scheme, ...]] = ("ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519")
LEAKED: Final = "it is the private half of the public key"
"""What the audit says of a key that it got out of the token."""
TRANSACTIONS: Final = 200
AFTERWARDS: Final = 20
RECOVERY_SECONDS: Final = 30.0
MEASURED_SECONDS: Final = 1.0
AT_ONCE: Final = 20
"""Signatures in one call, so that the token is measured and not the calls."""


class Endorsed(msgspec.Struct, frozen=True):
    """A load of transactions, every one endorsed by every node."""

    committed: int
    seconds: float
    peer_height: int
    height: int


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """One module."""

    name: str
    token: TokenInfo
    generated: dict[str, Scheme]
    """The scheme of each key, by label."""
    nodes: dict[Scheme, str]
    """The node of each scheme."""
    rsa_bits: set[int]
    """The sizes of the RSA keys."""
    schemes: dict[Scheme, str]
    """Empty where the module does it, else why not."""
    left_out: tuple[str, ...]
    """What it did not take of the strict template, for any key."""
    endorsed: Endorsed
    endorsed_after: Endorsed
    """A few more when the audit had attacked the token."""
    signatures_per_second: dict[Scheme, float]
    recovered_seconds: float
    """From the death of the token's worker to the next good signature."""
    audit: Predicate
    findings: tuple[Row, ...]
    """Of the audit, by its profile: what failed, and what could not be tested though it must be."""

    @property
    def leaks(self) -> list[Row]:
        """Attacks after which the private key was outside, and known for what it is."""
        return [row for row in self.audit.rows if row.verdict == "fail" and LEAKED in row.reason]

    @property
    def rewritten(self) -> list[Row]:
        """Attributes that could be changed though the key is not MODIFIABLE."""
        return [row for row in self.audit.rows if row.verdict == "fail" and row.check == "attack.flip"]


def examine(name: str, folder: Path) -> Examined:
    """All of it, on a fresh token in `folder`."""
    with TOKENS[name](_made(folder / "token")) as token:
        layout, made = asyncio.run(module_network.enrol(folder / "network", token))
        with module_network.running(layout) as network:
            endorsed = _endorse(network, "before", TRANSACTIONS)
            audit = module_network.audited(layout, made)  # by the device, beside its work
            endorsed_after = _endorse(network, "after", AFTERWARDS)
        measured = asyncio.run(_measured(token))
        return Examined(
            name=name,
            token=made.token,
            generated={label: key.scheme for label, key in made.keys.items()},
            nodes={scheme: module_network.NODES[scheme] for scheme in token.schemes},
            rsa_bits={_rsa_bits(key) for key in made.keys.values() if key.scheme == "rsa-pkcs1-sha256"},
            schemes=dict.fromkeys(token.schemes, "") | measured.refused,
            left_out=tuple(sorted({part for parts in made.left_out.values() for part in parts})),
            endorsed=endorsed,
            endorsed_after=endorsed_after,
            signatures_per_second=measured.rates,
            recovered_seconds=measured.recovered_seconds,
            audit=audit,
            findings=tuple(module_network.PROFILE.findings(audit.rows)),
        )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _rsa_bits(key: PublicKey) -> int:
    public = load_der_public_key(key.spki)
    assert isinstance(public, RSAPublicKey)
    return public.key_size


def _endorse(network: module_network.RunningNetwork, label: str, count: int) -> Endorsed:
    started = time.monotonic()
    batch = [network.evidence(f"{label}-{number}") for number in range(count)]
    with network.management() as management:
        answers = management.submit_batch([each.raw for each in batch])
    ended = [network.ended(answer.transaction) for answer in answers if answer.transaction]
    seconds = time.monotonic() - started
    committed = [each for each in ended if each.status == "committed" and each.code == "valid"]
    height = max(each.height or 0 for each in committed)
    network.wait_level(height)
    with network.peer("peer-1") as peer:
        return Endorsed(len(committed), seconds, peer.status().height, height)


class _Measured(msgspec.Struct, frozen=True):
    rates: dict[Scheme, float]
    recovered_seconds: float
    refused: dict[Scheme, str]


async def _measured(token: ModuleToken) -> _Measured:
    """What the token does without the network; the schemes that are none of its module's are tried last, since a
    module may keep a key that it cannot use.
    """
    opened = await Token.start(msgspec.structs.replace(token.config, seconds=20.0))
    try:
        rates = {scheme: await _rate(opened, scheme) for scheme in token.schemes}
        recovered = await _recovered(opened)
        refused = {scheme: await _refusal(opened, scheme) for scheme in SCHEMES if scheme not in token.schemes}
        return _Measured(rates, recovered, refused)
    finally:
        await opened.close()


async def _rate(opened: Token, scheme: Scheme) -> float:
    """Signatures in a second by one worker, in one session."""
    label = f"node/{module_network.NODES[scheme]}"
    key = next(each for each in opened.keys.values() if each.label == label)
    signed, started = 0, time.monotonic()
    while time.monotonic() - started < MEASURED_SECONDS:
        await opened.sign(key.public_key.id, [secrets.token_bytes(32) for _ in range(AT_ONCE)])
        signed += AT_ONCE
    return signed / (time.monotonic() - started)


async def _recovered(opened: Token) -> float:
    """Seconds until the token signs again when its worker was killed."""
    assert opened.identity
    assert opened.worker_pid
    killed, restarts, started = opened.worker_pid, opened.restarts, time.monotonic()
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(RECOVERY_SECONDS):
        while opened.worker_pid == killed:  # noqa: ASYNC110  its replacement sets no event that can be seen here
            await asyncio.sleep(0.001)
    await opened.usable()
    await opened.challenge(opened.identity.public_key.id)
    assert opened.restarts == restarts + 1
    return time.monotonic() - started


async def _refusal(opened: Token, scheme: Scheme) -> str:
    try:
        await opened.generate(f"tried/{scheme}", scheme)
    except TokenError as error:
        return str(error)
    return ""
