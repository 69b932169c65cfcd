"""A client's request for a certificate for its new key, signed by the key that is on the whitelist (requirement K-12).

It comes before the announcement (`protocol.rotation`), which carries the new certificate. Without it anybody could
have a certificate in a client's name; a replay of it gives the same certificate for the same key.
"""

from typing import Final, Literal

import msgspec

from protocol import canonical
from protocol.canonical import Digest, Name
from protocol.envelope import PREFIX, Envelope, pae
from protocol.errors import BadSignatureError
from protocol.keys import PublicKey

PAYLOAD_TYPE: Final = PREFIX + "renewal-request.v1+json"


class RenewalRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which client wants which key in the place of which."""

    network: Name
    client: Name
    old: Digest
    """The id of the key on the whitelist."""
    new: Digest
    """The id of the key that is to be certified."""
    version: Literal[1] = 1


def verify(envelope: Envelope, old: PublicKey) -> RenewalRequest:
    """The request, when the old key signed it, and nobody else; raises `BadSignatureError` or `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    request = canonical.decode(envelope.payload, _decoder)
    if request.old != old.id or [each.keyid for each in envelope.signatures] != [old.id]:
        raise BadSignatureError(f"the renewal is not signed by the client's key in force, {old.id[:16]}…, and it alone")
    old.verify(envelope.signatures[0].sig, pae(PAYLOAD_TYPE, envelope.payload))
    return request


_decoder = msgspec.json.Decoder(RenewalRequest)
