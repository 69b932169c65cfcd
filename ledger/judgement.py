"""A transaction in its block, judged by the registry in force: what every peer did, and where the keys are besides.

Who makes an exhibit judges over the whole registry, to learn what must be shown; who reads it, over what is shown.
"""

from collections.abc import Iterable, Sequence

import msgspec

from ledger import handover
from ledger.authority import authorize
from ledger.contracts.registry import NAME as REGISTRY
from ledger.endorsement_rule import EndorsementRule
from ledger.handover import UsedKey
from ledger.memory import SignatureMemory
from ledger.proof import UnprovenError
from ledger.registry_view import RegistryView
from protocol import endorsement
from protocol.block import Header
from protocol.custody import Statement
from protocol.endorsement import Endorsement, TreeHead
from protocol.envelope import Envelope
from protocol.keys import PublicKey, key_id
from protocol.registry import EndorsementPolicy, decode_entry
from protocol.transaction import Transaction


class CastVote(msgspec.Struct, frozen=True):
    """A node's word for the transaction, and the key that gave it."""

    node: str
    key: UsedKey
    counts: bool
    """Whether the key's tier suffices for the policy."""
    height: int
    """Up to which height the device had applied the chain when it voted."""
    sequence: int
    """The number of the device's tree of votes."""


class Decision(msgspec.Struct, frozen=True):
    """A policy that is satisfied: its entry, what it asks for in words, and the nodes that satisfy it."""

    entry: EndorsementPolicy
    meaning: str
    nodes: tuple[str, ...]


class Judgement(msgspec.Struct, frozen=True, eq=False):
    """All questions to one registry about one transaction. Each raises an error of the ledger or the protocol."""

    transaction: Transaction
    header: Header
    endorsements: Sequence[Endorsement]
    registry: RegistryView
    with_custody: bool
    """Whether custody statements are shown where no tier is demanded either."""

    @property
    def is_registry(self) -> bool:
        """Whether administrators stand in for endorsement."""
        return self.transaction.payload.contract == REGISTRY

    @property
    def shows_custody(self) -> bool:
        """Whether the tiers of keys are told: always in evidence, else where one is demanded."""
        rule = self._rule
        demanded = {self.registry.channel.least_tier, rule.least_tier if rule else "claimed"}
        return self.with_custody or demanded != {"claimed"}

    def authors(self) -> tuple[UsedKey, ...]:
        """The keys of those who made the transaction, when they might."""
        height, time = self.header.height, self.header.time
        authorize(self.transaction, self.registry, SignatureMemory(), height=height, time=time)
        payload, longest = self.transaction.payload, self.registry.channel.longest_validity
        if not (payload.valid_from <= height and time < payload.valid_until <= time + longest):
            raise UnprovenError("it was not valid at that height and time")
        if not self.is_registry:
            key = self.registry.client(payload.client)
            return (UsedKey(f"client/{payload.client}", key.id, key.scheme),) if key else ()
        holders = {f"registrar/{name}": key for name, key in self.registry.registrars.items()}
        holders |= {f"administrator/{name}": key for name, key in self.registry.administrators.items()}
        return tuple(
            UsedKey(holder, key.id, key.scheme)
            for holder, key in sorted(holders.items())
            if key.id in self.transaction.signers
        )

    def votes(self) -> tuple[CastVote, ...]:
        """The votes, each one of a key in force for this transaction, and none against it."""
        if self.is_registry and self.endorsements:
            raise UnprovenError("registry transactions have no votes")
        cast: list[CastVote] = []
        refused: dict[str, set[str]] = {}
        seen: set[Endorsement] = set()
        for each in self.endorsements:
            if each in seen:
                raise UnprovenError(f"the vote of node {each.vote.node} stands there twice")
            seen.add(each)
            head = self._head(each)
            if each.vote.verdict == "approve":
                cast.append(self._approval(each, head))
            else:
                each.verify(self._any_key(head))
                refused.setdefault(head.node, set()).add(head.device)
        if refused:
            raise UnprovenError("; ".join(_no(node, refused, cast) for node in sorted(refused)))
        return tuple(cast)

    def decision(self, votes: Iterable[CastVote]) -> Decision:
        """The policy in force, when the votes satisfy it."""
        rule, key = self._rule, self.registry.policy_key(self.transaction.kind)
        if rule is None or key is None:
            raise UnprovenError(f"there is no policy for {self.transaction.kind}")
        approved: dict[str, set[str]] = {}
        for vote in votes:
            if vote.counts:
                approved.setdefault(vote.node, set()).add(vote.key.device)
        result = rule.evaluate(approved)
        if not result.satisfied:
            raise UnprovenError(rule.shortfall(approved, result))
        entry = decode_entry(key, self.registry.entries[key])
        assert isinstance(entry, EndorsementPolicy)  # noqa: S101  the rule was made of it
        return Decision(entry, rule.meaning, result.approved)

    def signers(self, envelope: Envelope, kinds: Iterable[str]) -> tuple[UsedKey, ...]:
        """The centers' keys that signed the header, by this registry; `kinds` as in `Trust.follow`."""
        return handover.signers(envelope, self.header, self.registry, kinds)

    def with_tiers(self, used: Iterable[UsedKey]) -> tuple[UsedKey, ...]:
        """The same keys, each on a token with its tier, where tiers are told."""
        if not self.shows_custody:
            return tuple(used)
        return tuple(
            msgspec.structs.replace(each, tier=self.registry.tier(each.device, each.id)) if each.device else each
            for each in used
        )

    def statements(self, used: Iterable[UsedKey]) -> tuple[Statement, ...]:
        """The custody statements of the devices that keys live on, each verified by the device's identity key."""
        if not self.shows_custody:
            return ()
        devices = sorted({each.device for each in used if each.device})
        found = (handover.custody_of(self.registry, device) for device in devices)
        return tuple(statement for statement in found if statement is not None)

    def check_not_revoked(self, used: Iterable[UsedKey]) -> None:
        """Check that no key stood revoked, nor the identity key of its device."""
        for each in used:
            handover.check_not_revoked(self.registry, each)

    @property
    def _rule(self) -> EndorsementRule | None:
        return None if self.is_registry else self.registry.rule(self.transaction.kind)

    def _head(self, given: Endorsement) -> TreeHead:
        vote = given.vote
        if (vote.transaction, vote.network) != (self.transaction.id, self.header.network):
            raise UnprovenError(f"the vote of node {vote.node} is not about this transaction")
        head = endorsement.decode_head(given.head)
        if head.node != vote.node:
            raise UnprovenError(f"the vote of node {vote.node} stands under a head of node {head.node}")
        if head.height >= self.header.height:
            raise UnprovenError(f"node {vote.node} voted at height {head.height}, in block {self.header.height}")
        return head

    def _approval(self, given: Endorsement, head: TreeHead) -> CastVote:
        height, time = self.header.height, self.header.time
        key = self.registry.node_key(head.node, head.key, device=head.device, height=height, time=time)
        given.verify(key)
        (used,) = self.with_tiers([UsedKey(f"node/{head.node}", key.id, key.scheme, head.device)])
        rule = self._rule
        return CastVote(head.node, used, rule is not None and rule.counts(key.id), head.height, head.sequence)

    def _any_key(self, head: TreeHead) -> PublicKey:
        """The key of a head, whether it counts or not: for a no, it is enough that the node holds it."""
        entry = self.registry.node(head.node)
        for each in entry.keys if entry else ():
            if (key_id(each.key), each.device) == (head.key, head.device):
                return PublicKey.load(each.key)
        raise UnprovenError(f"node {head.node} has no key {head.key[:16]}… on {head.device}")


def _no(node: str, refused: dict[str, set[str]], approved: Iterable[CastVote]) -> str:
    """What a node's no means: also one of two words of it, as it has only one (requirement E-22)."""
    places = ", ".join(sorted(refused[node]))
    yes = sorted({vote.key.device for vote in approved if vote.node == node})
    if yes:
        both = f"node {node} approved it on {', '.join(yes)} and rejected it on {places}"
        return f"{both}: it counts as refusing"
    return f"node {node} rejected it on {places}"
