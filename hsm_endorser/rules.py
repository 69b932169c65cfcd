"""The rules: what is checked before a vote, in this order (requirements E-3, E-4, E-9, E-10).

    Before the client's signature is verified, a no is a failure: unsigned, not final
     1. the bytes are a transaction
     2. it is not of the registry: administrators stand in for its endorsement
     3. it is for this network, and a whitelisted client signed it
    Whose word is asked for
     4. each node asked is one that the policy names, whose key in force the registry places on this device, and
        the token holds that key; of several keys the newest signs (requirements K-5, K-12 to K-14)
     5. it is not older than a guard that was re-initialised
    The word itself
     6. what executing it on this device's replica comes to: "valid" approves, any other code rejects
     7. a word that was given before is given again

Nothing here approves by default: a verdict is made from the one code "valid", and whatever is not judged has no
verdict at all. Three refusals of step 6 are failures all the same: not yet valid is no final word; a transaction
that has expired may have been voted on by a guard that has forgotten it since; and one that is executed already
after this node approved it gets no second, other word.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import msgspec

from hsm_endorser.guard_records import VoteKey, VoteRecord
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError, RegistryError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from protocol.block import VALID
from protocol.canonical import KeyId
from protocol.endorsement import Vote, approval
from protocol.errors import BadSignatureError, ProtocolError
from protocol.keys import PublicKey, key_id
from protocol.messages import Failure, Proposal
from protocol.registry import NodeKey
from protocol.transaction import Transaction

NO_FINAL_WORD: Final = frozenset({"expired", "not-yet-valid"})
EXECUTED: Final = "already-executed"


class Case(msgspec.Struct, frozen=True):
    """A proposal that was read: a transaction, and the nodes whose word is asked for."""

    transaction: Transaction
    nodes: tuple[str, ...]


class Ballot(msgspec.Struct, frozen=True):
    """A vote to be signed, and the key that will sign for its node."""

    record: VoteRecord
    key: KeyId


Ruling = tuple[Ballot, ...] | Failure
"""One ballot for each node asked, in that order; or why there are none."""


class Bench(msgspec.Struct, frozen=True):
    """What a device judges with: its name, the keys on its token, the guard's least `valid_from`, its memory."""

    device: str
    keys: Collection[KeyId]
    since: int
    recorded: Callable[[list[VoteKey]], Mapping[VoteKey, Vote]]


def read(proposal: Proposal, registry: RegistryView, memory: SignatureMemory) -> Case | Failure:
    """Step 1, and ahead of step 3 the costly part of it: safe to run in any thread.

    A signature that does not verify is only not remembered here: step 3 says so in its place.
    """
    try:
        transaction = Transaction.decode(bytes(proposal.transaction))
    except ProtocolError as error:
        return Failure(error.code, str(error))
    if len(set(proposal.nodes)) != len(proposal.nodes):
        return Failure("malformed", "a node is asked twice for one vote")
    key = registry.client(transaction.payload.client)
    if key is not None and transaction.payload.contract != REGISTRY:
        with contextlib.suppress(BadSignatureError):
            memory.verify_transaction(transaction, key)
    return Case(transaction, proposal.nodes)


def judge(cases: Sequence[Case], replica: Replica, bench: Bench) -> list[Ruling]:
    """Steps 2 to 7 for all cases, against the replica's state; runs in the ledger thread."""
    rulings: list[Ruling | None] = [None] * len(cases)
    keys: list[dict[str, KeyId]] = [{} for _ in cases]
    for index, case in enumerate(cases):
        try:
            _check_standing(case, replica)
            keys[index] = _signing_keys(case, replica, bench)
        except _NoVoteError as no:
            rulings[index] = no.failure
    standing = [index for index, ruling in enumerate(rulings) if ruling is None]
    codes = dict(zip(standing, replica.simulate([cases[index].transaction for index in standing]), strict=True))
    recorded = bench.recorded([(node, cases[i].transaction.id) for i in standing for node in cases[i].nodes])
    for index in standing:
        rulings[index] = _rule(cases[index], codes[index], keys[index], recorded)
    return [Failure("not-judged", "no rule came to a result") if ruling is None else ruling for ruling in rulings]


class _NoVoteError(Exception):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.failure = Failure(code, detail)


def _check_standing(case: Case, replica: Replica) -> None:
    """Steps 2 and 3."""
    if case.transaction.payload.contract == REGISTRY:
        raise _NoVoteError("not-endorsed", "administrators sign registry transactions; devices do not endorse them")
    try:
        replica.authorize(case.transaction)
    except AuthorizationError as error:
        raise _NoVoteError(error.code, str(error)) from None


def _signing_keys(case: Case, replica: Replica, bench: Bench) -> dict[str, KeyId]:
    """Steps 4 and 5: the key that signs for each node asked."""
    registry = replica.registry
    policy = registry.policy(case.transaction.kind)
    if policy is None:
        code = replica.simulate([case.transaction])[0]
        raise _NoVoteError(
            "no-policy" if code == VALID else code, f"no policy says who endorses {case.transaction.kind}"
        )
    targets = policy.nodes(registry.node_names)
    for node in case.nodes:
        if node not in targets:
            raise _NoVoteError(
                "not-assigned", f"the policy for {case.transaction.kind} ({policy.text}) does not name node {node}"
            )
    if case.transaction.payload.valid_from < bench.since:
        raise _NoVoteError(
            "before-guard",
            f"this device's guard was re-initialised: it votes on transactions that are valid from height "
            f"{bench.since} on, this one is from {case.transaction.payload.valid_from}; sign a new one",
        )
    return {node: _key_in_force(node, replica, bench) for node in case.nodes}


def _key_in_force(node: str, replica: Replica, bench: Bench) -> KeyId:
    """The newest key of the node that is on this device, on its token, and counts in the next block.

    When none does, the newest one that was ever to count says why.
    """
    registry, height, time = replica.registry, replica.height + 1, replica.time
    entry = registry.node(node)
    here = [each for each in entry.keys if each.device == bench.device] if entry else []
    reasons: list[_NoVoteError] = []
    for each in sorted(here, key=lambda each: -each.since):
        own = PublicKey.load(each.key).id
        if own not in bench.keys:
            reasons.append(
                _NoVoteError("not-assigned", f"key {own[:16]}… of node {node} is not on this device's token")
            )
            continue
        try:
            registry.node_key(node, own, device=bench.device, height=height, time=time)
        except RegistryError as error:
            reasons.append(_lapsed(node, each, str(error), registry, height=height, time=time))
            continue
        return own
    raise reasons[0] if reasons else _NoVoteError("not-assigned", f"node {node} has no key on device {bench.device}")


def _lapsed(node: str, key: NodeKey, why: str, registry: RegistryView, *, height: int, time: int) -> _NoVoteError:
    """A registered key that does not count now, and what to do about it. Unsigned: another key may do tomorrow."""
    device = registry.device(key.device)
    if registry.revocation(key_id(key.key)) or (device and registry.revocation(key_id(device.identity))):
        return _NoVoteError("revoked", f"{why}; it signs nothing more")
    if height < key.since or time < key.not_before:
        return _NoVoteError("not-assigned", why)
    if key.lapse(height, time):
        advice = f"let the administrators register a new key: hsm-endorser key rotate --unannounced node/{node}"
        return _NoVoteError("key-expired", f"{why}; {advice}")
    if registry.device_lapse(key.device, height=height, time=time):
        return _NoVoteError("key-expired", f"{why}; put another in its place: hsm-endorser device replace {key.device}")
    return _NoVoteError("tier-too-low", f"{why}; audit the device: hsm-endorser custody audit")


def _rule(case: Case, code: str, keys: Mapping[str, KeyId], recorded: Mapping[VoteKey, Vote]) -> Ruling:
    """Steps 6 and 7."""
    transaction = case.transaction
    ballots = []
    for node in case.nodes:
        before = recorded.get((node, transaction.id))
        if code in NO_FINAL_WORD and before is None:
            return Failure(code, f"the transaction is {code} at this height and block time")
        if code in {*NO_FINAL_WORD, EXECUTED} and before is not None and before.verdict == "approve":
            return Failure(code, f"the transaction is {code}; node {node} approved it before that")
        vote = before or _vote(transaction, node, code)
        ballots.append(Ballot(VoteRecord(vote, transaction.payload.valid_until), keys[node]))
    return tuple(ballots)


def _vote(transaction: Transaction, node: str, code: str) -> Vote:
    network = transaction.payload.network
    if code == VALID:
        return approval(network, transaction.id, node)
    return Vote(network=network, transaction=transaction.id, node=node, verdict="reject", reason=code)
