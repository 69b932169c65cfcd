"""Verifies a ceremony offline: the transcript alone, then against block 0. No token, no network, no PKCS#11 (K-11).

1. every step: signatures, links, quorum, order, proofs of possession (`protocol.transcript`)
2. the transcript is complete
3. block 0 is a genesis block, and its centers' signatures hold
4. it holds the first set that the transcript proposed, byte for byte, and names its digest
5. it is the block that the last step names
"""

from typing import Any

import msgspec

from cli.ceremony import record, words
from cli.errors import VerificationFailedError
from ledger.errors import LedgerError
from ledger.genesis import check_genesis
from protocol import canonical, custody
from protocol.block import Block
from protocol.ceremony import Audited, Declaration, Founded, Generated, Proposed
from protocol.envelope import Envelope
from protocol.errors import BadTranscriptError, ProtocolError
from protocol.keys import key_id
from protocol.transcript import Transcript


class Verified(msgspec.Struct, frozen=True):
    """A ceremony that holds, and its block 0."""

    transcript: Transcript
    block: Block
    digest: str
    """What the channel's entry in block 0 names."""

    @property
    def declaration(self) -> Declaration:
        """What was declared."""
        return self.transcript.declaration


def verify(transcript_bytes: bytes, genesis_bytes: bytes) -> Verified:
    """Raises `VerificationFailedError` that names the step, or says what of block 0 is wrong."""
    transcript = record.parse(transcript_bytes)
    try:
        transcript.require_complete()
    except BadTranscriptError as error:
        raise VerificationFailedError(f"the transcript does not hold at {error}", code="bad-transcript") from None
    try:
        block = Block.decode(genesis_bytes)
        channel = check_genesis(block).registry.channel
    except (ProtocolError, LedgerError) as error:
        raise VerificationFailedError(f"the genesis block does not hold: {error}", code="bad-genesis") from None
    proposed, founded = transcript.act(Proposed), transcript.act(Founded)
    number = len(transcript.steps)
    digest = transcript.steps[-2].previous
    if channel.ceremony == "none":
        raise VerificationFailedError(
            f"network {channel.network} was made without a ceremony: its genesis block says so for ever",
            code="no-ceremony",
        )
    if channel.ceremony != digest:
        raise VerificationFailedError(
            f"block 0 names the ceremony {channel.ceremony[:16]}…, step {number - 2} of this transcript has "
            f"{digest[:16]}…: it is another ceremony's",
            code="other-ceremony",
        )
    if (block.transactions[0].raw, block.header.time) != (proposed.transaction, proposed.time):
        raise VerificationFailedError(
            f"block 0 does not hold what step {number - 1} proposes: the same set, signed or dated otherwise",
            code="other-genesis",
        )
    if block.authentication != founded.genesis:
        raise VerificationFailedError(
            f"step {number} names block 0 with authentication data {founded.genesis[:16]}…, this one has "
            f"{block.authentication[:16]}…",
            code="other-genesis",
        )
    return Verified(transcript, block, digest)


def document(verified: Verified) -> dict[str, Any]:
    """What was verified, for machines."""
    transcript = verified.transcript
    return {
        "verdict": "pass",
        "network": verified.declaration.network,
        "ceremony": verified.digest,
        "genesis": verified.block.authentication,
        "plan": verified.declaration.plan,
        "needed": verified.declaration.needed,
        "holders": [{"name": each.name, "key": key_id(each.key)} for each in verified.declaration.holders],
        "keys": keys(transcript),
        "steps": steps(transcript),
    }


def steps(transcript: Transcript) -> list[dict[str, Any]]:
    """Every step: number, time, kind, what it says, who signed."""
    return [
        {
            "number": step.number,
            "time": words.at(step.time),
            "kind": type(step.act).__name__.lower(),
            "said": words.done(step.act),
            "present": list(step.present),
            "devices": list(step.devices),
            "previous": step.previous,
        }
        for step in transcript.steps
    ]


def audits(transcript: Transcript) -> dict[str, custody.Statement]:
    """The custody statements of the ceremony, by device; each was verified with its step."""
    return {
        step.act.device: custody.decode(canonical.decode(step.act.statement, _envelope_decoder))
        for step in transcript.steps
        if isinstance(step.act, Audited)
    }


def keys(transcript: Transcript) -> list[dict[str, str]]:
    """Every key that was generated: where, what for, its scheme, id, and the tier that its custody statement gives."""
    statements = audits(transcript)

    def tier(device: str, key: str) -> str:
        return custody.tier_of(statements[device], key) if device in statements else "claimed"

    return [
        {
            "device": step.act.device,
            "label": key.label,
            "scheme": transcript.key(step.act.device, key.label).scheme,
            "key": key_id(key.key),
            "tier": tier(step.act.device, key_id(key.key)),
        }
        for step in transcript.steps
        if isinstance(step.act, Generated)
        for key in step.act.keys
    ]


_envelope_decoder = msgspec.json.Decoder(Envelope)
