"""What goes into the next block: endorsed transactions that still stand, and the trees that carry their votes."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from ledger.contracts.registry import NAME as REGISTRY
from ledger.endorsement_rule import EndorsementRule
from ledger.errors import AuthorizationError, BlockRefusedError, RegistryError
from ledger.replica import BODY_BYTES, CheckedBlock, Replica
from ledger.store import Location
from management.answers import tree_identity
from management.outcome import ALREADY_EXECUTED, Refusal
from management.pool import CheckedTree, Endorsed, Record
from protocol.block import MAX_TRANSACTIONS
from protocol.canonical import TxId
from protocol.endorsement import Tree
from protocol.messages import MAX_BATCH_BYTES

NOT_YET: Final = {"not-yet-valid", "validity-too-long"}
"""What keeps a transaction out of this block and not of a later one."""

ROOM: Final = min(BODY_BYTES, MAX_BATCH_BYTES - (1 << 20))
"""Bytes for transactions and trees in a block of this center: `sign-header` takes it whole, in one request."""


class Draft(msgspec.Struct):
    """An unsigned block (or none), and what became of those that did not get into it.

    Who is in neither list is carried over: it waits in the pool for the next cut.
    """

    checked: CheckedBlock | None = None
    dropped: list[tuple[Record, Refusal]] = []
    again: list[Record] = []
    """To be endorsed again: what was in force when they were endorsed is not any more."""


def draft(replica: Replica, waiting: Sequence[Endorsed], time: int, *, empty: bool) -> Draft:
    """The next block from what waits, oldest first (requirements M-4, M-5, M-7). Belongs to the ledger's thread.

    `time` is in milliseconds since the epoch; block time never goes back. Without transactions there is a block
    only when an `empty` one is wanted.
    """
    made = Draft()
    time = max(time, replica.time)
    chosen = [each for each in waiting if not _expires(each, time, made)]
    if replica.takes_repairs_only(time):  # the others wait until the administrators have brought new centers' keys
        chosen = [each for each in chosen if each.record.transaction.payload.contract == REGISTRY]
        empty = False
    chosen = _that_fit(_satisfied(replica, chosen, time, made), made)
    while chosen or empty:
        trees = _trees(chosen)
        try:
            made.checked = replica.draft(time, [each.record.transaction for each in chosen], trees)
        except BlockRefusedError as error:
            if not chosen:
                raise
            chosen = _without(replica, error, chosen, made)
        else:
            break
    return made


def _expires(each: Endorsed, time: int, made: Draft) -> bool:
    valid_until = each.record.transaction.payload.valid_until
    if time < valid_until:
        return False
    detail = f"the transaction was valid until {valid_until}, the block's time is {time} (ms); sign a new one"
    made.dropped.append((each.record, Refusal(code="expired", detail=detail, final=True)))
    return True


def _satisfied(replica: Replica, waiting: list[Endorsed], time: int, made: Draft) -> list[Endorsed]:
    """Those whose policy in force is satisfied by heads in force."""
    view = replica.registry
    in_force: dict[int, bool] = {}
    rules: dict[str, EndorsementRule | None] = {}
    known: dict[tuple[str, frozenset[tuple[str, str]]], bool] = {}
    still: list[Endorsed] = []
    for each in waiting:
        if not each.casts:  # administrators stand in for endorsement
            still.append(each)
            continue
        for cast in each.casts.values():
            if id(cast.tree) not in in_force:
                in_force[id(cast.tree)] = _is_in_force(replica, cast.tree, time)
        kind = each.record.transaction.kind
        rule = rules[kind] if kind in rules else rules.setdefault(kind, view.rule(kind))
        case = (kind, _places(rule, each))
        if case not in known:
            devices = {node: (device,) for node, device in case[1]}
            known[case] = rule is not None and rule.evaluate(devices).satisfied
        if known[case] and all(in_force[id(cast.tree)] for cast in each.casts.values()):
            still.append(each)
        else:
            made.again.append(each.record)
    return still


def _places(rule: EndorsementRule | None, each: Endorsed) -> frozenset[tuple[str, str]]:
    """The nodes whose approval counts, each with the device: keys below the policy's tier do not."""
    casts = each.casts.items()
    return frozenset((node, cast.device) for node, cast in casts if rule is None or rule.counts(cast.key_of(node)))


def _is_in_force(replica: Replica, tree: CheckedTree, time: int) -> bool:
    """Whether every head of the tree would be accepted in the next block: a tree is used whole or not at all."""
    height = replica.height + 1
    try:
        for head in tree.heads:
            replica.registry.node_key(head.node, head.key, device=head.device, height=height, time=time)
    except RegistryError:
        return False
    return all(head.height < height for head in tree.heads)


def _that_fit(waiting: list[Endorsed], made: Draft) -> list[Endorsed]:
    """The oldest, as far as a block has room for them and for the trees of their votes; the others are carried over."""
    fit: list[Endorsed] = []
    trees: set[int] = set()
    room = ROOM
    for each in waiting:
        new = {id(cast.tree): cast.tree.size for cast in each.casts.values() if id(cast.tree) not in trees}
        size = len(each.record.transaction.raw) + 1 + sum(new.values())
        if size <= room and len(fit) < MAX_TRANSACTIONS:
            fit.append(each)
            trees.update(new)
            room -= size
        elif fit:
            break
        else:  # a block of its own has no room for it: devices put very many other votes into the same trees
            made.again.append(each.record)
    return fit


def _trees(chosen: Sequence[Endorsed]) -> list[Tree]:
    """Each tree that carries an approval of these transactions, once, with indices for the leaves."""
    index_of: dict[str, int] = {}
    trees: dict[bytes, Tree] = {}
    for index, each in enumerate(chosen):
        for cast in each.casts.values():
            index_of[cast.leaf] = index
            trees.setdefault(tree_identity(cast.tree.tree), cast.tree.tree)
    return [tree.for_block(index_of) for tree in trees.values()]


def _without(replica: Replica, error: BlockRefusedError, chosen: list[Endorsed], made: Draft) -> list[Endorsed]:
    """What is tried next; always fewer than before, and so few that all attempts together cost little more than one.

    Those before a refused transaction passed the checks that it did not pass, so they stay; who comes after it is
    carried over. When there is nobody before it, half of those after it are tried.
    """
    if error.transaction is None:  # it speaks of no transaction: the votes themselves do not hold any more
        made.again.extend(each.record for each in chosen if each.casts)
        return [each for each in chosen if not each.casts]
    if error.code == "too-large" and len(chosen) > 1:
        return chosen[: len(chosen) // 2]
    known = replica.store.locate([each.record.id for each in chosen])
    before: list[Endorsed] = []
    after: list[Endorsed] = []
    found = False
    for each in chosen:
        refusal = _refusal(replica, each.record, known)
        if refusal is not None:
            made.dropped.append((each.record, refusal))
        elif each.record.id != error.transaction:
            (after if found else before).append(each)
        if each.record.id == error.transaction:
            found = True
            if refusal is None:
                _leave_out(each.record, error, made)
    if len(before) + len(after) < len(chosen) - 1:  # many stood in the way for one reason, and are gone at once
        return before + after
    return before or after[: (len(after) + 1) // 2]


def _leave_out(record: Record, error: BlockRefusedError, made: Draft) -> None:
    """What becomes of the one transaction that a refusal names."""
    if error.code in {"policy-not-met", "too-large"}:  # other votes may do, and may take less room
        made.again.append(record)
    elif error.code not in NOT_YET:
        made.dropped.append((record, Refusal(code=error.code, detail=str(error))))


def _refusal(replica: Replica, record: Record, known: Mapping[TxId, Location]) -> Refusal | None:
    """Why a transaction cannot be in any block from now on: it is in one, or nobody stands behind it any more."""
    if record.id in known:
        return Refusal(code=ALREADY_EXECUTED, detail=f"it is in block {known[record.id].height}")
    try:
        replica.authorize(record.transaction)
    except AuthorizationError as error:
        return Refusal(code=error.code, detail=str(error))
    return None
