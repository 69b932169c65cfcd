"""The Merkle tree of RFC 9162, section 2.1, over SHA-256: leaves under 0x00, nodes under 0x01."""

import hashlib
from collections.abc import Sequence
from typing import Final

from protocol.errors import BadProofError

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of a tree without leaves (RFC 9162, section 2.1.1)."""


def leaf_hash(data: bytes) -> bytes:
    """The 32-byte hash of one leaf's data."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The 32-byte hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes.

    Pairing level by level and promoting an odd last node builds the same tree as the RFC's split at the
    largest power of two.
    """
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The sibling hashes from leaf `index` up to the root (RFC 9162, section 2.1.3.1)."""
    return inclusion_proofs(leaves, [index])[0]


def inclusion_proofs(leaves: Sequence[bytes], indices: Sequence[int]) -> list[list[bytes]]:
    """The inclusion proofs of several leaves; the tree is built once."""
    for index in indices:
        if not 0 <= index < len(leaves):
            raise IndexError(f"leaf {index} of a tree of {len(leaves)}")
    paths: list[list[bytes]] = [[] for _ in indices]
    level, places = list(leaves), list(indices)
    while len(level) > 1:
        for path, place in zip(paths, places, strict=True):
            if place ^ 1 < len(level):
                path.append(level[place ^ 1])
        level = _parents(level)
        places = [place >> 1 for place in places]
    return paths


def root_of_proof(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root to which an inclusion proof leads (RFC 9162, section 2.1.3.2).

    Raises `BadProofError` when the path does not have the length that `index` and `size` ask for.
    """
    if not 0 <= index < size:
        raise BadProofError(f"leaf {index} does not lie in a tree of {size}")
    node, last, used = leaf, size - 1, 0
    while last:
        if index & 1 or index < last:
            if used == len(path):
                raise BadProofError(f"the path of {len(path)} hashes ends before the root of a tree of {size}")
            node = node_hash(path[used], node) if index & 1 else node_hash(node, path[used])
            used += 1
        index >>= 1
        last >>= 1
    if used != len(path):
        raise BadProofError(f"the path has {len(path)} hashes where {used} lead to the root")
    return node


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], expected_root: bytes) -> None:
    """Check an inclusion proof; raises `BadProofError`."""
    found = root_of_proof(leaf, index, size, path)
    if found != expected_root:
        raise BadProofError(f"the path leads to {found.hex()}, not to the root {expected_root.hex()}")


def _parents(level: list[bytes]) -> list[bytes]:
    parents = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    if len(level) & 1:
        parents.append(level[-1])
    return parents
