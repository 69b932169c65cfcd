"""A client's transaction: what it asks for, and the reference signature over it (requirement E-3)."""

import functools
from typing import Annotated, Any, Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import Height, KeyId, Milliseconds, Name, TxId
from protocol.envelope import PREFIX, Envelope, pae, pae_digest
from protocol.errors import BadSignatureError, MalformedError
from protocol.keys import PublicKey

PAYLOAD_TYPE: Final = PREFIX + "transaction.v1+json"
REMEMBERED: Final = 8192
REMEMBERED_BYTES: Final = 2048
"""So many transactions of at most so many bytes are decoded once."""


class TransactionPayload(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a client signs.

    The transaction counts in blocks from height `valid_from` on, and as long as the block's time is before
    `valid_until` (milliseconds since the epoch). The `nonce` tells two equal wishes apart.
    """

    version: Literal[1]
    network: Name
    client: Name
    contract: Name
    operation: Name
    arguments: dict[str, Any]
    nonce: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    valid_from: Height
    valid_until: Milliseconds


class Transaction(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A transaction as it came: complete bytes, envelope, payload, id.

    The id is SHA-256 over the PAE: it names what was signed and does not cover the signatures.
    """

    raw: bytes
    envelope: Envelope
    payload: TransactionPayload
    id: TxId

    @staticmethod
    def decode(raw: bytes) -> "Transaction":
        """The transaction in the canonical bytes of a DSSE envelope; raises `MalformedError`.

        Small ones are remembered for a while: who endorses a transaction meets the same bytes again in a block.
        """
        return _decode_again(raw) if len(raw) <= REMEMBERED_BYTES else _decode(raw)

    @property
    def kind(self) -> str:
        """The transaction type that policies name: `contract.operation`."""
        return f"{self.payload.contract}.{self.payload.operation}"

    def verify(self, key: PublicKey) -> None:
        """Check that the client's `key` made the transaction's only signature; raises `BadSignatureError`."""
        if len(self.envelope.signatures) != 1:
            raise BadSignatureError(f"{len(self.envelope.signatures)} signatures where the client's alone is expected")
        self.verify_by(key)

    def verify_by(self, key: PublicKey) -> None:
        """Check that one of the signatures is made by `key`; raises `BadSignatureError`."""
        for signature in self.envelope.signatures:
            if signature.keyid == key.id:
                if key.scheme == "ed25519":
                    key.verify(signature.sig, pae(PAYLOAD_TYPE, self.envelope.payload))
                else:
                    key.verify_digest(signature.sig, bytes.fromhex(self.id))
                return
        named = ", ".join(f"{signature.keyid[:16]}…" for signature in self.envelope.signatures)
        raise BadSignatureError(f"signed by key {named} where key {key.id[:16]}… is registered")

    @property
    def signers(self) -> tuple[KeyId, ...]:
        """The ids of the keys that the envelope names, verified or not."""
        return tuple(KeyId(signature.keyid) for signature in self.envelope.signatures)


_envelope_decoder = msgspec.json.Decoder(Envelope)
_payload_decoder = msgspec.json.Decoder(TransactionPayload)


def _decode(raw: bytes) -> Transaction:
    envelope = canonical.decode(raw, _envelope_decoder)
    envelope.require_type(PAYLOAD_TYPE)
    if not envelope.signatures:
        raise MalformedError("the transaction carries no reference signature")
    payload = canonical.decode(envelope.payload, _payload_decoder)
    canonical.check_free_form(payload.arguments)
    return Transaction(raw, envelope, payload, TxId(pae_digest(PAYLOAD_TYPE, envelope.payload)))


_decode_again = functools.lru_cache(maxsize=REMEMBERED)(_decode)
