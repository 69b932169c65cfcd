"""The entries of the registry: the state of the chain from which everything that decides validity comes.

An entry is stored under `kind/name` as its canonical bytes. `registry_root` commits all of them: a node over
the leaf of their count and the RFC 9162 root over the entries sorted by key. The count is in it so that two
neighbouring entries prove that nothing stands between them.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical, merkle
from protocol.canonical import Digest, Height, Milliseconds, Name
from protocol.errors import MalformedError
from protocol.tier import Tier

Spki = Annotated[bytes, msgspec.Meta(min_length=32, max_length=2048)]
"""A DER SubjectPublicKeyInfo."""


class Lifetime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """When a key counts: from height `since` to height `last`, from block time `not_before` until `until` (K-13).

    What is as in the defaults is not written.
    """

    since: Height = 0
    last: Height = canonical.MAX_INTEGER
    """The last height at which it counts; a rotation sets it."""
    not_before: Milliseconds = 0
    until: Milliseconds = canonical.MAX_INTEGER
    """From this block time on it counts no more, in milliseconds since the epoch."""

    def lapse(self, height: int, time: int) -> str:
        """Why the key does not count at this height and block time; empty when it does."""
        if height < self.since:
            return f"counts from height {self.since} on"
        if height > self.last:
            return f"counted up to height {self.last}"
        if time < self.not_before:
            return "is not valid yet"
        return "has expired" if time >= self.until else ""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which token a device is pinned to (requirement K-9)."""

    manufacturer: Annotated[str, msgspec.Meta(max_length=64)]
    model: Annotated[str, msgspec.Meta(max_length=64)]
    serial: Annotated[str, msgspec.Meta(max_length=64)]
    group: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=64)] = ()
    """All serials of a vendor's high-availability group, which is one token; empty for a token alone."""


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="channel"):
    """What holds for the whole network."""

    network: Name
    rules_version: Annotated[int, msgspec.Meta(ge=1, le=canonical.MAX_INTEGER)]
    centers_needed: Annotated[int, msgspec.Meta(ge=1, le=32)]
    administrators_needed: Annotated[int, msgspec.Meta(ge=1, le=32)]
    longest_validity: Milliseconds
    """How far beyond the block's time a transaction's `valid_until` may lie, in milliseconds."""
    ceremony: Annotated[str, msgspec.Meta(pattern=r"\A(none|[0-9a-f]{64})\Z")]
    """Digest of the key ceremony's transcript; "none" says for ever that one person made this network."""
    least_tier: Tier = "claimed"
    """The least assurance tier of a node's or center's key: below it, it is not enrolled and signs nothing (K-5)."""
    longest_lifetime: Annotated[int, msgspec.Meta(ge=1, le=canonical.MAX_INTEGER)] = canonical.MAX_INTEGER
    """How far beyond the block's time the end of a new key may lie, in milliseconds: so every key has one (K-13)."""


class Administrator(Lifetime, frozen=True, forbid_unknown_fields=True, tag="administrator"):
    """One of those of whom `administrators_needed` together may change the registry."""

    name: Name
    key: Spki


class Registrar(Lifetime, frozen=True, forbid_unknown_fields=True, tag="registrar"):
    """The CA: its key may add clients and nothing else. `certificate` is its own, DER."""

    name: Name
    key: Spki
    certificate: bytes


class Center(Lifetime, frozen=True, forbid_unknown_fields=True, tag="center"):
    """A management service whose key signs headers, and the device on whose token that key lives."""

    name: Name
    key: Spki
    device: Name


class Device(Lifetime, frozen=True, forbid_unknown_fields=True, tag="device"):
    """An endorsement device: its identity key and its token (requirements E-20, K-9)."""

    name: Name
    identity: Spki
    token: Token


class NodeKey(Lifetime, frozen=True, forbid_unknown_fields=True):
    """A signing key of a node, on which device it lives, and when it counts."""

    key: Spki
    device: Name


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="node"):
    """A blockchain node and all keys that may sign for it; it counts once (requirement E-22)."""

    name: Name
    keys: tuple[NodeKey, ...]


class Client(Lifetime, frozen=True, forbid_unknown_fields=True, tag="client"):
    """A whitelisted client: its key, and the SHA-256 of its certificate or nothing (requirement E-1)."""

    name: Name
    key: Spki
    certificate: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


class Partitioned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="partitioned", tag_field="strategy"):
    """Every node is asked for at the device that holds its key (requirement E-6)."""


class Replicated(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="replicated", tag_field="strategy"):
    """Every device may sign for every node; the fastest healthy ones are asked (requirement E-7)."""


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="rotation", tag_field="strategy"):
    """Groups of devices take turns; each device of the group gets its share of the nodes (requirement E-8)."""

    sequence: Annotated[
        tuple[Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)], ...],
        msgspec.Meta(min_length=1, max_length=64),
    ]


Routing = Partitioned | Replicated | Rotation


class EndorsementPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="policy"):
    """Which nodes must endorse a transaction type: `contract.operation`, or `contract` for all others of it.

    With `distinct_devices`, a token counts for one node only, whichever nodes it signs for.
    """

    name: Name
    expression: Annotated[str, msgspec.Meta(max_length=4096)]
    routing: Routing = Partitioned()
    distinct_devices: bool = False
    least_tier: Tier = "claimed"
    """The least assurance tier of a key whose vote counts (requirement K-5)."""


class GuardOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="guard-order"):
    """The last order to start a device's guard anew: its digest, and from which `valid_from` the device votes since."""

    name: Name
    """The device's."""
    digest: Digest
    since: Height


Reason = Literal[
    "unspecified", "key-compromise", "ca-compromise", "affiliation-changed", "superseded", "cessation-of-operation"
]
"""Why a key was revoked: the reasons of RFC 5280, section 5.3.1, that are final."""


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="revocation"):
    """A key that is refused from the block after this entry on, for ever (requirement K-14).

    Where it is a device's identity key, every key on that device is refused with it.
    """

    name: Digest
    """The id of the revoked key."""
    holder: Annotated[str, msgspec.Meta(max_length=128)]
    """The registry entry that held it: `node/A`, `device/device-a`, `client/alice`, …"""
    reason: Reason
    suspected: Milliseconds
    """From when on others may have had the key, in milliseconds since the epoch; what it signed before stands."""


class Custody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="custody"):
    """The latest custody statement of a device: the tiers of its keys come from here (requirements K-5, K-6)."""

    name: Name
    """The device's."""
    statement: Annotated[bytes, msgspec.Meta(max_length=700_000)]
    """The canonical bytes of the DSSE envelope (see `protocol.custody`)."""


Entry = (
    Channel
    | Administrator
    | Registrar
    | Center
    | Device
    | Node
    | Client
    | EndorsementPolicy
    | GuardOrder
    | Revocation
    | Custody
)

CHANNEL_KEY: Final = "channel"


def key_of(entry: Entry) -> str:
    """Where an entry stands: `kind/name`; the channel's own entry has no name."""
    if isinstance(entry, Channel):
        return CHANNEL_KEY
    return f"{entry.__struct_config__.tag}/{entry.name}"


def decode_entry(key: str, data: bytes) -> Entry:
    """The entry that stands under `key`; raises `MalformedError`."""
    entry = canonical.decode(data, _entry_decoder)
    if key_of(entry) != key:
        raise MalformedError(f"an entry of {key_of(entry)!r} stands under {key!r}")
    return entry


def spkis_of(entry: Entry) -> tuple[bytes, ...]:
    """The public keys (DER SubjectPublicKeyInfo) that an entry holds."""
    match entry:
        case Administrator(key=key) | Registrar(key=key) | Center(key=key) | Client(key=key) | Device(identity=key):
            return (key,)
        case Node(keys=keys):
            return tuple(each.key for each in keys)
        case _:
            return ()


class _Leaf(msgspec.Struct, frozen=True):
    key: str
    entry: msgspec.Raw


def entry_leaf(key: str, data: bytes) -> bytes:
    """The 32-byte leaf hash of one entry."""
    return merkle.leaf_hash(canonical.encode(_Leaf(key, msgspec.Raw(data))))


def registry_root(entries: Mapping[str, bytes]) -> str:
    """The root over all entries (their canonical bytes by key)."""
    return root_over(len(entries), merkle.root([entry_leaf(key, entries[key]) for key in sorted(entries)]))


def root_over(count: int, entries_root: bytes) -> str:
    """The registry root of `count` entries whose sorted leaves have the root `entries_root`."""
    return merkle.node_hash(merkle.leaf_hash(b"%d" % count), entries_root).hex()


_entry_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
