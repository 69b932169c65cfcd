"""What goes into the next block: endorsed transactions that still stand, and the trees that carry their votes."""

from collections.abc import Mapping, Sequence

import msgspec

from ledger.errors import AuthorizationError, BlockRefusedError, RegistryError
from ledger.replica import CheckedBlock, Replica
from ledger.store import Location
from management.answers import tree_identity
from management.outcome import ALREADY_EXECUTED, Refusal
from management.pool import CheckedTree, Endorsed, Record
from protocol.canonical import TxId
from protocol.endorsement import Tree


class Draft(msgspec.Struct):
    """An unsigned block (or none), and what became of those that did not get into it."""

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
    chosen = _satisfied(replica, chosen, time, made)
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
    members = view.node_names
    in_force: dict[int, bool] = {}
    known: dict[tuple[str, frozenset[str]], bool] = {}
    still: list[Endorsed] = []
    for each in waiting:
        if not each.casts:  # administrators stand in for endorsement
            still.append(each)
            continue
        for cast in each.casts.values():
            if id(cast.tree) not in in_force:
                in_force[id(cast.tree)] = _is_in_force(replica, cast.tree, time)
        case = (each.record.transaction.kind, frozenset(each.casts))
        if case not in known:
            policy = view.policy(case[0])
            known[case] = policy is not None and policy.evaluate(members, case[1], ()).satisfied
        if known[case] and all(in_force[id(cast.tree)] for cast in each.casts.values()):
            still.append(each)
        else:
            made.again.append(each.record)
    return still


def _is_in_force(replica: Replica, tree: CheckedTree, time: int) -> bool:
    """Whether every head of the tree would be accepted in the next block: a tree is used whole or not at all."""
    height = replica.height + 1
    try:
        for head in tree.heads:
            replica.registry.node_key(head.node, head.key, device=head.device, height=height, time=time)
    except RegistryError:
        return False
    return all(head.height < height for head in tree.heads)


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
    """What is left when those are let go that have no place in the block; always fewer than before."""
    if error.transaction is None:  # it speaks of no transaction: the votes themselves do not hold any more
        made.again.extend(each.record for each in chosen if each.casts)
        return [each for each in chosen if not each.casts]
    known = replica.store.locate([each.record.id for each in chosen])
    still: list[Endorsed] = []
    for each in chosen:
        record = each.record
        refusal = _refusal(replica, record, known)
        if refusal is not None:
            made.dropped.append((record, refusal))
        elif record.id != error.transaction:
            still.append(each)
        elif error.code == "policy-not-met":
            made.again.append(record)
        else:
            made.dropped.append((record, Refusal(code=error.code, detail=str(error))))
    return still


def _refusal(replica: Replica, record: Record, known: Mapping[TxId, Location]) -> Refusal | None:
    """Why a transaction cannot be in any block from now on: it is in one, or nobody stands behind it any more."""
    if record.id in known:
        return Refusal(code=ALREADY_EXECUTED, detail=f"it is in block {known[record.id].height}")
    try:
        replica.authorize(record.transaction)
    except AuthorizationError as error:
        return Refusal(code=error.code, detail=str(error))
    return None
