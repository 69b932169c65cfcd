"""What management and endorsement devices say to each other, and what every service says of itself."""

from typing import Annotated, Final, Literal

import msgspec

from protocol.canonical import Digest, Height, Name
from protocol.endorsement import Tree, Vote
from protocol.envelope import Envelope, Signature

MAX_PROPOSALS: Final = 4096
"""Most proposals in one endorsement request."""
MAX_BATCH_BYTES: Final = 16 << 20
"""Largest batch body, in bytes."""


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transaction (the canonical bytes of its envelope) and the nodes for which the device is asked to vote."""

    transaction: msgspec.Raw
    nodes: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=256)]


class EndorseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch of proposals; the device must have applied `least_height` before it judges them."""

    least_height: Height
    proposals: Annotated[tuple[Proposal, ...], msgspec.Meta(min_length=1, max_length=MAX_PROPOSALS)]


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why there is no vote: unsigned, not final, never to be cached by transaction id."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    detail: str


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the device says to one proposal: its votes, one for each node asked, or why there is none."""

    votes: tuple[Vote, ...] = ()
    failure: Failure | None = None


class EndorseResponse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answers in the order of the proposals, and the trees over all their votes.

    The device may have put votes of other requests into the same trees: leaves are hashes here.
    """

    device: Name
    height: Height
    answers: tuple[Answer, ...]
    trees: tuple[Tree, ...]


class SignCertificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TBSCertificate (DER, RFC 5280, section 4.1) for the CA's key.

    For a client that is on the whitelist with another key, `proof` is that key's request (see `protocol.renewal`).
    """

    tbs: bytes
    proof: Envelope | None = None
    least_height: Height = 0
    """The device must have applied this height before it judges."""


class SignCrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TBSCertList (DER, RFC 5280, section 5.1) for the CA's key, or for one before it."""

    tbs: bytes
    least_height: Height = 0


class SignRegistration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A transaction payload (canonical bytes) of `registry.add_client` or `renew_client`, for the CA as registrar.

    `certificate` is the client's (DER), issued by the same key: the device compares it with the payload.
    """

    payload: bytes
    certificate: bytes
    least_height: Height = 0


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of a typed door: one signature by the key that the door serves."""

    signature: Signature


class DeviceStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live state of a device, as routing and operators see it."""

    device: Name
    nodes: tuple[Name, ...]
    doors: tuple[Literal["sign-header", "sign-certificate", "sign-crl", "sign-registration"], ...]
    height: Height
    ready: bool
    reason: str
    queued: int
    token_restarts: int
    batch_microseconds: int = 0
    """Time of a batch from its taking to its answers, exponentially weighted; zero while there was none."""
    failed_permille: int = 0
    """How many of a thousand batches failed lately, exponentially weighted."""


class CommitEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the event stream: a height and what became of each of its transactions, in order."""

    height: Height
    time: int
    authentication: Digest
    outcomes: tuple[tuple[Digest, str], ...]
