"""Which centers may sign a header, proven without the chain: from a set that is trusted, one handover after another.

The block that changes the set of centers is signed by the set before it, and its registry root commits the set after
it. So the headers of those blocks alone, each with the entries that make up the new set, lead from block 0 to any
later header. A verifier needs none of the blocks in between.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from ledger.proof import Count, ProvenEntries, ProvenEntry, UnprovenError
from ledger.registry_lookup import decode_envelope
from ledger.registry_view import RegistryView
from protocol import block as blocks
from protocol import custody, merkle
from protocol.block import RULES_VERSION, Header
from protocol.canonical import Digest, Height
from protocol.envelope import Envelope
from protocol.keys import PublicKey, key_id
from protocol.tier import Tier
from protocol.transaction import Transaction

MOST_HANDOVERS: Final = 4096

Transactions = tuple[msgspec.Raw, ...]


class Handover(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a block that changed what decides who the centers are, and the entries that decide after it."""

    header: Envelope
    transactions: Transactions
    """All transactions of the block where its centers had expired (see `repair_kinds`), else none."""
    trees_root: Digest | None
    """The root of its trees of votes where its transactions are shown."""
    registry_count: Count
    registry: tuple[ProvenEntry, ...]


Handovers = Annotated[tuple[Handover, ...], msgspec.Meta(max_length=MOST_HANDOVERS)]


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header that its holder trusts, and the entries that say who the centers are after it.

    `header` is the canonical payload; nobody's signature is on it: whoever starts from it has verified it before.
    """

    header: bytes
    registry_count: Count
    registry: tuple[ProvenEntry, ...]


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header that the handovers start from: block 0's, or a later one that the reader trusts."""

    height: Height
    authentication: Digest


class UsedKey(msgspec.Struct, frozen=True):
    """A key that something rests on: whose it is, where it lives, and how much is known of that."""

    holder: str
    """The registry entry: `node/A`, `center/center-1`, `client/alice`, `device/device-a`, …"""
    id: str
    scheme: str
    device: str = ""
    """On whose token it lives; empty for keys of clients and administrators."""
    tier: Tier | None = None
    """None where it lives on no token of the network's."""


class Trust(msgspec.Struct, frozen=True, eq=False):
    """A header that is believed, and the registry after it: all of it, or what was shown of it."""

    height: int
    time: int
    authentication: str
    registry: RegistryView

    @staticmethod
    def of(header: Header, registry: RegistryView) -> "Trust":
        """The trust in a header that was verified."""
        return Trust(header.height, header.time, header.authentication, registry)

    def follow(self, envelope: Envelope, kinds: Iterable[str] = ()) -> tuple[Header, tuple[UsedKey, ...]]:
        """A later header and the centers' keys that signed it, when this set of centers may sign it.

        `kinds` are those of all transactions of its block, where they are proven. Raises `UnprovenError`,
        `BadSignatureError` or `MalformedError`.
        """
        header = blocks.decode_header(envelope)
        network = self.registry.channel.network
        if header.network != network:
            raise UnprovenError(f"the header is of network {header.network}, trusted is {network}")
        if header.height <= self.height:
            raise UnprovenError(f"block {header.height} does not come after block {self.height}")
        if header.time < self.time:
            raise UnprovenError(f"the time of block {header.height} is before that of block {self.height}")
        if header.height == self.height + 1 and header.previous != self.authentication:
            raise UnprovenError(f"block {header.height} does not follow the block {self.height} that was shown")
        if header.rules_version > RULES_VERSION:
            raise UnprovenError(
                f"block {header.height} follows rules {header.rules_version}, this release knows rules "
                f"{RULES_VERSION}; install a newer one"
            )
        in_force = self.registry.channel.rules_version
        if header.rules_version != in_force:
            raise UnprovenError(
                f"block {header.height} follows rules {header.rules_version} where rules {in_force} are in force"
            )
        return header, signers(envelope, header, self.registry, kinds)

    def hand_over(self, handover: Handover) -> "Trust":
        """The trust after a handover; raises as `follow` does, and `BadProofError`."""
        header, _ = self.follow(handover.header, repair_kinds(handover))
        shown = ProvenEntries(handover.registry_count, handover.registry, header.registry_root)
        return Trust.of(header, RegistryView(shown))


def signers(envelope: Envelope, header: Header, registry: RegistryView, kinds: Iterable[str]) -> tuple[UsedKey, ...]:
    """The keys that signed a header, when the centers of this registry may sign it, each once and nobody else.

    Raises `UnprovenError` or `BadSignatureError`.
    """
    centers = registry.centers_for(height=header.height, time=header.time, kinds=kinds)
    blocks.verify_header(envelope, tuple(centers.values()), registry.channel.centers_needed)
    signed = [signature.keyid for signature in envelope.signatures]
    if len(set(signed)) != len(signed):
        raise UnprovenError(f"a center signed the header of block {header.height} twice")
    return tuple(used_center(registry, name, key) for name, key in sorted(centers.items()) if key.id in signed)


def used_center(registry: RegistryView, name: str, key: PublicKey) -> UsedKey:
    """A center's key as something rests on it."""
    entry = registry.center(name)
    return UsedKey(f"center/{name}", key.id, key.scheme, entry.device if entry else "")


def repair_kinds(shown: Handover) -> tuple[str, ...]:
    """The kinds of all transactions of a block whose centers had expired; none where they had not.

    Such a block counts when it holds registry transactions and nothing else, so all of them must be shown.
    Raises `UnprovenError`.
    """
    if shown.trees_root is None:
        if shown.transactions:
            raise UnprovenError("transactions are shown without the root of the trees beside them")
        return ()
    header = blocks.decode_header(shown.header)
    return kinds_of(header, shown.transactions, shown.trees_root)


def kinds_of(header: Header, transactions: Sequence[msgspec.Raw], trees_root: str) -> tuple[str, ...]:
    """The kinds of transactions, when they are all of the header's block; raises `UnprovenError`."""
    decoded = [Transaction.decode(bytes(raw)) for raw in transactions]
    root = merkle.root([blocks.transaction_leaf(each) for each in decoded])
    if (len(decoded), merkle.node_hash(root, bytes.fromhex(trees_root)).hex()) != (
        header.transaction_count,
        header.transaction_root,
    ):
        raise UnprovenError(f"these are not the transactions of block {header.height}")
    return tuple(each.kind for each in decoded)


def check_not_revoked(registry: RegistryView, used: UsedKey) -> None:
    """Check that neither a key nor its device was revoked, also where nothing else asks; raises `UnprovenError`."""
    if registry.revocation(used.id) is not None:
        raise UnprovenError(f"key {used.id[:16]}… of {used.holder} was revoked")
    if used.device:
        device = registry.device(used.device)
        if device is None:
            raise UnprovenError(f"the registry has no device/{used.device}")
        if registry.revocation(key_id(device.identity)) is not None:
            raise UnprovenError(f"device {used.device}, where key {used.id[:16]}… lives, was revoked")


def custody_of(registry: RegistryView, device: str) -> custody.Statement | None:
    """A device's latest custody statement, verified again by its identity key; None when there is none.

    Raises `UnprovenError`, `BadSignatureError` or `MalformedError`.
    """
    entry, found = registry.custody(device), registry.device(device)
    statement = registry.statement(device)
    if entry is None or statement is None:
        return None
    if found is None:
        raise UnprovenError(f"the registry has no device/{device}")
    custody.verify(decode_envelope(entry.statement), PublicKey.load(found.identity))
    said = (statement.predicate.network, statement.predicate.device)
    if said != (registry.channel.network, device):
        raise UnprovenError(f"the custody statement of {device} is one of device {said[1]!r} of network {said[0]!r}")
    return statement
