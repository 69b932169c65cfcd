"""The contract `evidence`: a digest is put once under a subject, and can be looked up for ever."""

from typing import Annotated, Final

import msgspec

from ledger.contracts.contract import Call, Contract, Operation, Reads, Writes
from ledger.errors import RejectedError
from protocol import canonical
from protocol.canonical import Digest

NAME: Final = "evidence"
PREFIX: Final = "evidence/"

Text = Annotated[str, msgspec.Meta(max_length=1024)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `record`: whose evidence it is, the SHA-256 of the evidence, and what else to keep of it.

    A subject is text without control characters: not every database keeps those.
    """

    subject: Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,256}\Z")]
    digest: Digest
    attributes: Annotated[dict[str, Text], msgspec.Meta(max_length=32)] = {}


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands under a subject."""

    digest: str
    attributes: dict[str, str]
    client: str
    transaction: str


def evidence_key(subject: str) -> str:
    """The state key of a subject."""
    return PREFIX + subject


def _record(arguments: Record, call: Call, reads: Reads) -> Writes:
    key = evidence_key(arguments.subject)
    data = reads[key]
    if data is not None:
        first = msgspec.json.decode(data, type=Evidence)
        raise RejectedError(
            "already-recorded", f"{arguments.subject} was recorded by {first.client} in transaction {first.transaction}"
        )
    return {key: canonical.encode(Evidence(arguments.digest, arguments.attributes, call.client, call.transaction))}


CONTRACT: Final[Contract] = {
    "record": Operation(Record, lambda arguments, _call: (evidence_key(arguments.subject),), _record),
}
