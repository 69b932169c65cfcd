"""Evidence: one file for an auditor that shows a transaction, who stood behind it, and where their keys were (K-15).

It is a receipt with the custody statements of every device whose keys it rests on. See docs/evidence.md.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ledger.exhibit import CenterSet, Checklist, Exhibit, Found, Step, head_of
from ledger.handover import Start, UsedKey
from ledger.judgement import CastVote
from protocol import canonical, custody
from protocol.canonical import TxId
from protocol.custody import AuditedToken, Statement, Verdict
from protocol.keys import key_id
from protocol.registry import Device
from protocol.tier import Tier

if TYPE_CHECKING:
    from ledger.store import ChainStore


class Evidence(Exhibit, frozen=True, forbid_unknown_fields=True, tag_field="form", tag="evidence"):
    """Everything that proves one transaction, with the custody statements of the keys."""

    WITH_CUSTODY: ClassVar[bool] = True
    CODE: ClassVar[str] = "bad-evidence"


class PolicyInForce(msgspec.Struct, frozen=True):
    """The policy that was satisfied; `meaning` says in words what it asks for."""

    name: str
    expression: str
    meaning: str
    distinct_devices: bool
    least_tier: Tier


class StatementInForce(msgspec.Struct, frozen=True):
    """What a device's latest custody statement before the block says of its token, when it was made, and by what."""

    time: int
    """In milliseconds since the epoch, by the clock of the device."""
    verdict: Verdict
    tool: str
    profile: str
    """The name that the profile gave itself; which one it was, its digest says."""
    profile_digest: str
    """SHA-256 of the profile's file."""
    token: AuditedToken
    read_only: bool
    findings: tuple[str, ...]
    """The checks that failed, each once."""


class UsedDevice(msgspec.Struct, frozen=True):
    """A device that a key lives on: its identity key, the token it is pinned to, and its custody statement."""

    name: str
    identity: str
    """The id of its identity key."""
    manufacturer: str
    model: str
    serial: str
    statement: StatementInForce | None


class EvidenceReport(msgspec.Struct, frozen=True):
    """What a file of evidence proves, with each step in words."""

    network: str
    ceremony: str
    transaction: str
    kind: str
    client: str
    arguments: dict[str, Any]
    height: int
    time: int
    """The block's, in milliseconds since the epoch."""
    authentication: str
    """The authentication data of the block's header."""
    code: str
    policy: PolicyInForce | None
    """None for transactions of the registry, which administrators sign."""
    nodes: tuple[str, ...]
    votes: tuple[CastVote, ...]
    authors: tuple[UsedKey, ...]
    signers: tuple[UsedKey, ...]
    """The centers' keys that signed the block's header."""
    devices: tuple[UsedDevice, ...]
    start: Start
    centers: tuple[CenterSet, ...]
    """The centers at the start, and after each handover."""
    steps: tuple[Step, ...]


def make_evidence(store: "ChainStore", transaction: TxId, *, start: int = 0) -> bytes:
    """The canonical bytes of the evidence of a transaction in the chain, with the handovers after block `start`.

    Raises `LedgerError` (`not-found`).
    """
    from ledger.exhibiting import Exhibits  # noqa: PLC0415  who verifies needs no database

    return canonical.encode(Exhibits(store).make(transaction, Evidence, start))


def verify_evidence(data: bytes, genesis: bytes, head: bytes | None = None) -> EvidenceReport:
    """Check evidence step by step against the network's genesis block, and a later head where the reader trusts one.

    Raises `ExhibitError` that names the step that failed.
    """
    return _report(Checklist(data, genesis, Evidence, head).run())


def trusted_head(data: bytes) -> bytes:
    """The head file that evidence gives, once it was verified: later evidence can start from there."""
    return head_of(msgspec.json.decode(data, type=Evidence))


def _report(found: Found) -> EvidenceReport:
    transaction, header = found.transaction, found.header
    decision = found.decision
    policy = None
    if decision:
        entry = decision.entry
        policy = PolicyInForce(entry.name, entry.expression, decision.meaning, entry.distinct_devices, entry.least_tier)
    return EvidenceReport(
        network=found.network,
        ceremony=found.ceremony,
        transaction=transaction.id,
        kind=transaction.kind,
        client=transaction.payload.client,
        arguments=transaction.payload.arguments,
        height=header.height,
        time=header.time,
        authentication=header.authentication,
        code=found.code,
        policy=policy,
        nodes=decision.nodes if decision else (),
        votes=found.votes,
        authors=found.authors,
        signers=found.signers,
        devices=_devices(found),
        start=found.start,
        centers=found.centers,
        steps=found.steps,
    )


def _devices(found: Found) -> tuple[UsedDevice, ...]:
    statements = {each.predicate.device: each for each in found.statements}
    names = sorted({each.device for each in (*(vote.key for vote in found.votes), *found.signers) if each.device})
    entries = [entry for name in names if (entry := found.registry.device(name))]
    return tuple(_device(entry, statements.get(entry.name)) for entry in entries)


def _device(entry: Device, statement: Statement | None) -> UsedDevice:
    token = entry.token
    said = None if statement is None else _statement(statement.predicate)
    return UsedDevice(entry.name, key_id(entry.identity), token.manufacturer, token.model, token.serial, said)


def _statement(audit: custody.Predicate) -> StatementInForce:
    return StatementInForce(
        time=audit.time,
        verdict=audit.verdict,
        tool=audit.tool,
        profile=audit.profile.name,
        profile_digest=audit.profile.digest,
        token=audit.token,
        read_only=audit.read_only,
        findings=tuple(dict.fromkeys(row.check for row in audit.rows if row.verdict == "fail")),
    )
