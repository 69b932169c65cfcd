"""The order to start the guard of a device anew, signed by the administrators (requirement K-10).

A guard that was lost cannot say any more what its device has signed. The order says from where the device may sign
again without a second word: transactions that were valid for nobody yet, headers of heights that nobody has.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import MAX_INTEGER, Height, Milliseconds, Name
from protocol.envelope import PREFIX, Envelope, pae, pae_digest
from protocol.errors import BadSignatureError, MalformedError
from protocol.keys import PublicKey

PAYLOAD_TYPE: Final = PREFIX + "guard-order.v1+json"
SEQUENCE_MARGIN: Final = 1_000_000
"""How many trees a lost guard may have signed that the chain does not show."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What administrators sign.

    A device that has applied height h votes on transactions that are valid from h + 1: so `valid_from` is two above
    `height` or more. Where the device's own copy of the chain is higher by then, it goes by that.
    """

    network: Name
    device: Name
    height: Height
    """The greatest height of the chain that they know; no header up to it is signed any more."""
    valid_from: Height
    """The least `valid_from` of transactions that the device will vote on."""
    sequence: Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
    """A number that none of the device's trees has reached; the next one is above it."""
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    time: Milliseconds
    """When it was drawn up, by the clock of whoever did."""
    nonce: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    version: Literal[1] = 1


def draft(
    *,
    network: str,
    device: str,
    height: int,
    sequence: int,
    reason: str,
    time: int,
    nonce: str,
    valid_from: int | None = None,
) -> Order:
    """An order for a chain at `height` that shows `sequence` as the last tree of the device."""
    return Order(
        network=network,
        device=device,
        height=height,
        valid_from=least_valid_from(height) if valid_from is None else valid_from,
        sequence=sequence + SEQUENCE_MARGIN,
        reason=reason,
        time=time,
        nonce=nonce,
    )


def least_valid_from(height: int) -> int:
    """From where transactions were valid for no device yet that had applied `height`."""
    return height + 2


def decode(envelope: Envelope) -> Order:
    """The order in an envelope, not yet verified; raises `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    order = canonical.decode(envelope.payload, _order_decoder)
    if order.valid_from < least_valid_from(order.height):
        raise MalformedError(
            f"the order lets the device vote from {order.valid_from} on; at height {order.height} of the chain it can "
            f"have voted on what is valid from {order.height + 1}, so {least_valid_from(order.height)} is the least"
        )
    return order


def digest_of(envelope: Envelope) -> str:
    """What names an order: SHA-256 over the PAE, hexadecimal; it does not cover the signatures."""
    return pae_digest(PAYLOAD_TYPE, envelope.payload)


def verify(envelope: Envelope, administrators: Mapping[str, PublicKey], needed: int) -> tuple[str, ...]:
    """The names of the administrators who signed; raises `BadSignatureError` unless there are `needed` of them.

    Nobody else may have signed, and one administrator counts once.
    """
    name_of: dict[str, str] = {key.id: name for name, key in administrators.items()}
    message = pae(PAYLOAD_TYPE, envelope.payload)
    signed: dict[str, None] = {}
    for signature in envelope.signatures:
        name = name_of.get(signature.keyid)
        if name is None:
            raise BadSignatureError(f"the order is signed by key {signature.keyid[:16]}…, which is no administrator's")
        administrators[name].verify(signature.sig, message)
        signed[name] = None
    if len(signed) < needed:
        who = ", ".join(signed) or "nobody"
        raise BadSignatureError(f"the order is signed by {who} alone where {needed} administrators are needed")
    return tuple(signed)


_order_decoder = msgspec.json.Decoder(Order)
