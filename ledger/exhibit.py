"""What proves one transaction to anybody who has genesis.json, and the checklist that says whether it does.

A receipt and a file of evidence are exhibits: evidence shows the custody statements of all keys as well. The check
needs no network, no token and no ledger. It goes from the outside in:

     1. form          the file is canonical and holds one transaction
     2. genesis       the reader's own genesis block, signed by its administrators, names the first centers
     3. handovers     each change of the centers is signed by those before it
     4. header        the centers in force signed the header of the transaction's block
     5. transaction   the header commits the transaction
     6. outcome       and what became of it
     7. registry      the header before commits the registry in force: what is shown of it, and what it has not
     8. client        who made the transaction stood in that registry and signed it
     9. endorsements  keys of that registry signed the votes
    10. policy        the votes satisfy the policy in force
    11. custody       where the keys are, and how much is known of that (where it is shown)
    12. revocations   none of the keys used was revoked
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final, Literal

import msgspec

from ledger import handover
from ledger.errors import LedgerError
from ledger.genesis import check_genesis
from ledger.handover import Handovers, Head, Start, Transactions, Trust, UsedKey
from ledger.judgement import CastVote, Decision, Judgement
from ledger.proof import Count, Path, ProvenEntries, ProvenEntry, UnprovenError, root_of_path
from ledger.registry_view import RegistryView
from protocol import block as blocks
from protocol import canonical, merkle
from protocol.block import Block, Header, Outcome
from protocol.canonical import Digest
from protocol.custody import Statement
from protocol.endorsement import Endorsement
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.transaction import Transaction

MAX_EXHIBIT_BYTES: Final = 64 << 20


class Exhibit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that proves one transaction (see docs/evidence.md, field by field)."""

    WITH_CUSTODY: ClassVar[bool] = False
    CODE: ClassVar[str] = "bad-exhibit"
    """The stable code of a refusal."""

    start: Start
    handovers: Handovers
    header: Envelope
    transactions: Transactions
    """All transactions of the block where its centers had expired, else none."""
    previous: bytes
    """The payload of the header before."""
    transaction: msgspec.Raw
    index: Count
    path: Path
    trees_root: Digest
    outcome: Outcome
    outcome_path: Path
    endorsements: tuple[Endorsement, ...]
    registry_count: Count
    registry: tuple[ProvenEntry, ...]
    version: Literal[2] = 2


class ExhibitError(LedgerError):
    """An exhibit that proves nothing: `step` is the check that failed."""

    def __init__(self, code: str, step: str, reason: str) -> None:
        super().__init__(code, f"{step}: {reason}")
        self.step = step


class Step(msgspec.Struct, frozen=True):
    """A check that held: what was found, and what follows from it."""

    name: str
    found: str
    meaning: str


class CenterSet(msgspec.Struct, frozen=True):
    """The centers of the registry after a height that are not revoked, and how many must sign a header."""

    height: int
    time: int
    needed: int
    centers: tuple[UsedKey, ...]


class Found(msgspec.Struct, frozen=True, eq=False):
    """All that an exhibit proves."""

    network: str
    ceremony: str
    transaction: Transaction
    header: Header
    code: str
    start: Start
    centers: tuple[CenterSet, ...]
    """The centers at the start, and after each handover."""
    authors: tuple[UsedKey, ...]
    votes: tuple[CastVote, ...]
    signers: tuple[UsedKey, ...]
    """The centers' keys that signed the header."""
    decision: Decision | None
    """None for registry transactions."""
    statements: tuple[Statement, ...]
    steps: tuple[Step, ...]
    registry: RegistryView


class Checklist:
    """The check of one exhibit. `step` names the one that is under way."""

    def __init__(self, data: bytes, genesis: bytes, kind: type[Exhibit], head: bytes | None = None) -> None:
        self._data = data
        self._genesis = genesis
        self._head = head
        self._kind = kind
        self._done: list[Step] = []
        self.step = ""

    def run(self) -> Found:
        """Everything that the exhibit proves; raises `ExhibitError` that names the step that failed."""
        try:
            return self._run()
        except (ProtocolError, LedgerError) as error:
            raise ExhibitError(self._kind.CODE, self.step, str(error)) from None

    def _run(self) -> Found:
        exhibit, transaction = self._form()
        founding = self._founding()
        trust, centers = self._handovers(exhibit, founding)
        header, kinds = self._header(exhibit, trust)
        self._transaction(exhibit, transaction, header)
        self._outcome(exhibit, transaction, header)
        registry = self._registry(exhibit, header, trust)
        judgement = Judgement(transaction, header, exhibit.endorsements, registry, self._kind.WITH_CUSTODY)
        signers = judgement.signers(exhibit.header, kinds)
        authors = self._client(judgement)
        votes, decision = self._endorsements(judgement)
        self.step = "custody"
        signers = judgement.with_tiers(signers)
        used = (*authors, *(vote.key for vote in votes), *signers)
        statements = self._custody(judgement, used)
        self._revocations(judgement, used)
        return Found(
            network=founding.registry.channel.network,
            ceremony=founding.registry.channel.ceremony,
            transaction=transaction,
            header=header,
            code=exhibit.outcome.code,
            start=exhibit.start,
            centers=centers,
            authors=authors,
            votes=votes,
            signers=signers,
            decision=decision,
            statements=statements,
            steps=tuple(self._done),
            registry=registry,
        )

    def _form(self) -> tuple[Exhibit, Transaction]:
        self.step = "form"
        exhibit = canonical.decode(self._data, msgspec.json.Decoder(self._kind), limit=MAX_EXHIBIT_BYTES)
        transaction = Transaction.decode(bytes(exhibit.transaction))
        self._say(
            "the file is canonical and holds one transaction",
            "Every value has one encoding alone, so nothing in the file can be put in other words unnoticed.",
        )
        return exhibit, transaction

    def _founding(self) -> Trust:
        self.step = "genesis"
        block = Block.decode(self._genesis)
        founding = Trust.of(block.header, check_genesis(block).registry)
        channel = founding.registry.channel
        made = "without a key ceremony" if channel.ceremony == "none" else f"in key ceremony {channel.ceremony[:16]}…"
        self._say(
            f"genesis.json is block 0 of network {channel.network}, made {made} and signed by its administrators",
            "This is the one thing that the reader brings and trusts; everything else follows from it.",
        )
        return founding

    def _handovers(self, exhibit: Exhibit, founding: Trust) -> tuple[Trust, tuple[CenterSet, ...]]:
        self.step = "head"
        head = None if self._head is None else read_head(self._head)
        if head is not None and head.registry.channel.network != founding.registry.channel.network:
            raise UnprovenError(f"the head is of network {head.registry.channel.network}")
        self.step = "handovers"
        first = self._beginning(exhibit.start, founding, head)
        trust, centers = _walk(first, exhibit.handovers)
        if head is not None and head is not first:
            self.step = "head"
            # Whoever got hold of former centers' keys can tell another story from block 0 on, but not from here on.
            _from_head(exhibit, head)
            self.step = "handovers"
        changes = len(centers) - 1
        times = {0: "did not change", 1: "changed once"}.get(changes, f"changed {changes} times")
        each = "; each change is signed by the centers before it" if changes else ""
        since = f"block {first.height}" if first.height else "genesis"
        self._say(
            f"from {since} on, what decides who the centers are {times}{each}",
            "Centers sign the headers of blocks. Who they are is known here without any of the blocks in between.",
        )
        return trust, centers

    def _beginning(self, start: Start, founding: Trust, head: Trust | None) -> Trust:
        for trust in (founding, head):
            if trust is not None and start == Start(trust.height, trust.authentication):
                return trust
        what = f"the handovers start from block {start.height}, {start.authentication[:16]}…"
        if start.height == 0:
            raise UnprovenError(f"{what}: that is another genesis block")
        if head is None:
            raise UnprovenError(f"{what}: give the head that you trust")
        raise UnprovenError(f"{what}, and the head given is block {head.height}, {head.authentication[:16]}…")

    def _header(self, exhibit: Exhibit, trust: Trust) -> tuple[Header, tuple[str, ...]]:
        self.step = "header"
        kinds = _kinds(exhibit)
        header, signers = trust.follow(exhibit.header, kinds)
        needed = trust.registry.channel.centers_needed
        repair = "; their time was over, and the block holds nothing but changes of the registry" if kinds else ""
        self._say(
            f"the header of block {header.height} is signed by {_names(signers)}, where {needed} must sign{repair}",
            "The centers stand behind this block: its number, its time, and everything that it commits.",
        )
        return header, kinds

    def _transaction(self, exhibit: Exhibit, transaction: Transaction, header: Header) -> None:
        self.step = "transaction"
        leaf = blocks.transaction_leaf(transaction)
        tree = root_of_path(leaf, exhibit.index, header.transaction_count, exhibit.path)
        root = merkle.node_hash(tree, bytes.fromhex(exhibit.trees_root)).hex()
        self._require(root == header.transaction_root, "it is not under the header's transaction root")
        self._say(
            f"the transaction is number {exhibit.index} of {header.transaction_count} under that header",
            "Exactly these bytes, the author's signature among them, stand in the block.",
        )

    def _outcome(self, exhibit: Exhibit, transaction: Transaction, header: Header) -> None:
        self.step = "outcome"
        self._require(exhibit.outcome.transaction == transaction.id, "the outcome is of another transaction")
        leaf = exhibit.outcome.leaf()
        root = root_of_path(leaf, exhibit.index, header.transaction_count, exhibit.outcome_path)
        self._require(root.hex() == header.outcome_root, "it is not under the header's outcome root")
        valid = exhibit.outcome.code == blocks.VALID
        self._say(
            f"its outcome under that header is: {exhibit.outcome.code}",
            "It took effect." if valid else "It stands on the chain, and it changed nothing.",
        )

    def _registry(self, exhibit: Exhibit, header: Header, trust: Trust) -> RegistryView:
        self.step = "registry"
        previous = blocks.decode_header(Envelope(exhibit.previous, blocks.PAYLOAD_TYPE, ()))
        self._require(
            previous.authentication == header.previous and previous.height == header.height - 1,
            "the header before is not the one that the signed header names",
        )
        self._require(trust.time <= previous.time <= header.time, "the header before is not of a time in between")
        registry = RegistryView(ProvenEntries(exhibit.registry_count, exhibit.registry, previous.registry_root))
        network = registry.channel.network
        self._require(network == header.network, f"the registry is of network {network}")
        self._say(
            f"the registry entries are those in force at height {header.height}, and what is missing is not there",
            "Keys, policies and revocations are the chain's own, as they stood before this block. Each entry has its "
            "place among all of them, so neighbours prove that nothing stands in between.",
        )
        return registry

    def _client(self, judgement: Judgement) -> tuple[UsedKey, ...]:
        self.step = "client"
        authors = judgement.authors()
        self._say(
            f"{_names(authors)} stood in that registry and signed the transaction",
            "Nobody else can have made it, and it was valid at this height and time.",
        )
        return authors

    def _endorsements(self, judgement: Judgement) -> tuple[tuple[CastVote, ...], Decision | None]:
        self.step = "endorsements"
        votes = judgement.votes()
        if judgement.is_registry:
            self._say(
                "registry transactions are signed by administrators and need no endorsement",
                "The registry is changed by those who keep it, whatever the state of nodes and tokens.",
            )
            return votes, None
        self._say(
            "; ".join(f"{vote.node} approved it on {vote.key.device}" for vote in votes) or "there are no votes",
            "Each vote is about this transaction, and stands in a tree whose head the node's own key signed: a key "
            "that the registry places on that device, and that counted at this height and time.",
        )
        self.step = "policy"
        decision = judgement.decision(votes)
        on = ", each on a token of its own" if decision.entry.distinct_devices else ""
        self._say(
            f"{', '.join(decision.nodes)} endorsed it, which satisfies the policy {decision.entry.expression}{on}",
            f"The policy in force asks for {decision.meaning}. There is no other that would come before it.",
        )
        return votes, decision

    def _custody(self, judgement: Judgement, used: Sequence[UsedKey]) -> tuple[Statement, ...]:
        statements = judgement.statements(used)
        if not judgement.shows_custody:
            return statements
        on_tokens = {each.id: each for each in used if each.device}.values()
        tiers = sorted(f"{each.holder.partition('/')[2]} {each.tier}" for each in on_tokens)
        said = [f"how much is known of where the keys are: {', '.join(tiers)}"]
        missing = sorted({each.device for each in on_tokens} - {each.predicate.device for each in statements})
        if missing:
            said.append(f"there was no custody statement of {', '.join(missing)}")
        software = sorted(each.predicate.device for each in statements if each.predicate.token.software)
        if software:
            said.append(f"the token of {', '.join(software)} is software")
        self._say(
            "; ".join(said),
            "The latest custody statement of each device is signed by the identity key on its token. Claimed: somebody "
            "says so. Read-back: the token's attributes do. Probed: attacks on a key made in the same way failed. "
            "Attested: the token's vendor signed it.",
        )
        return statements

    def _revocations(self, judgement: Judgement, used: Sequence[UsedKey]) -> None:
        self.step = "revocations"
        judgement.check_not_revoked(used)
        devices = {each.device for each in used if each.device}
        identities = f", nor the identity key of any of {len(devices)} devices" if devices else ""
        self._say(
            f"none of the {len({each.id for each in used})} keys used was revoked before this block{identities}",
            "The registry is shown around each place where a revocation would stand. What was revoked in this block "
            "or later is not known here.",
        )

    def _say(self, found: str, meaning: str) -> None:
        self._done.append(Step(self.step, found, meaning))

    @staticmethod
    def _require(holds: bool, otherwise: str) -> None:
        if not holds:
            raise UnprovenError(otherwise)


def read_head(data: bytes) -> Trust:
    """The trust in a head file; raises `MalformedError` or `UnprovenError`."""
    head = canonical.decode(data, _head_decoder, limit=MAX_EXHIBIT_BYTES)
    header = blocks.decode_header(Envelope(head.header, blocks.PAYLOAD_TYPE, ()))
    shown = ProvenEntries(head.registry_count, head.registry, header.registry_root)
    return Trust.of(header, RegistryView(shown))


def head_of(exhibit: Exhibit) -> bytes:
    """The head file of the block before an exhibit's own; whoever verified the exhibit may trust it."""
    return canonical.encode(Head(exhibit.previous, exhibit.registry_count, exhibit.registry))


def _walk(trust: Trust, handovers: Iterable[handover.Handover]) -> tuple[Trust, tuple[CenterSet, ...]]:
    """From a trusted header over all handovers that come after it."""
    sets = [_set_of(trust)]
    for each in handovers:
        trust = trust.hand_over(each)
        sets.append(_set_of(trust))
    return trust, tuple(sets)


def _from_head(exhibit: Exhibit, head: Trust) -> None:
    """Check that the exhibit's header is one that the centers of a trusted, later header lead to as well."""
    later = []
    for each in exhibit.handovers:
        header = blocks.decode_header(each.header)
        if header.height == head.height and header.authentication != head.authentication:
            raise UnprovenError(f"block {header.height} is not the one of the head given")
        if header.height > head.height:
            later.append(each)
    _walk(head, later)[0].follow(exhibit.header, _kinds(exhibit))


def _set_of(trust: Trust) -> CenterSet:
    registry = trust.registry
    centers = tuple(
        handover.used_center(registry, name, standing.key)
        for name, standing in sorted(registry.center_standings.items())
        if not standing.revoked
    )
    return CenterSet(trust.height, trust.time, registry.channel.centers_needed, centers)


def _kinds(exhibit: Exhibit) -> tuple[str, ...]:
    """The kinds of all transactions of the block, where they are shown."""
    if not exhibit.transactions:
        return ()
    return handover.kinds_of(blocks.decode_header(exhibit.header), exhibit.transactions, exhibit.trees_root)


def _names(used: Iterable[UsedKey]) -> str:
    return ", ".join(each.holder.partition("/")[2] for each in used)


_head_decoder = msgspec.json.Decoder(Head)
