"""The Merkle tree against the definition in RFC 9162, and its proofs against every change."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import merkle
from protocol.errors import BadProofError


def _mth(entries: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, word for word: MTH(D[n])."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + _mth(entries[:k]) + _mth(entries[k:])).digest()


def _path(m: int, entries: list[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1, word for word: PATH(m, D_n)."""
    if len(entries) == 1:
        return []
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m < k:
        return [*_path(m, entries[:k]), _mth(entries[k:])]
    return [*_path(m - k, entries[k:]), _mth(entries[:k])]


# The leaves and roots that Certificate Transparency's implementations test themselves with.
CT_LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_the_empty_tree() -> None:
    """Its root is the hash of nothing."""
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    """The roots are those of Certificate Transparency's test data."""
    assert merkle.root([merkle.leaf_hash(leaf) for leaf in CT_LEAVES[:size]]).hex() == CT_ROOTS[size - 1]


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_root_is_that_of_the_definition(entries: list[bytes]) -> None:
    """Pairing level by level gives the RFC's tree."""
    assert merkle.root([merkle.leaf_hash(entry) for entry in entries]) == _mth(entries)


@pytest.mark.parametrize("size", [*range(1, 34), 64, 65, 127, 128, 129])
def test_every_leaf_has_the_proof_of_the_definition(size: int) -> None:
    """Each proof is the RFC's path and verifies."""
    entries = [b"%d" % i for i in range(size)]
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    root = merkle.root(leaves)
    for index in range(size):
        path = merkle.inclusion_proof(leaves, index)
        assert path == _path(index, entries)
        merkle.verify_inclusion(leaves[index], index, size, path, root)


@given(st.integers(1, 40), st.data())
def test_every_change_of_a_proof_is_refused(size: int, data: st.DataObject) -> None:
    """Another leaf, index, size or root, and a hash changed, dropped, added or moved: none verifies."""
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(size)]
    root = merkle.root(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = merkle.inclusion_proof(leaves, index)
    other = data.draw(st.binary(min_size=32, max_size=32))
    wrong: list[tuple[bytes, int, int, list[bytes], bytes]] = [
        (other, index, size, path, root),
        (leaves[index], index, size, path, other),
        (leaves[index], index, size, [*path, other], root),
        (leaves[index], index, size, [other, *path], root),
        (leaves[index], index, size, [*path, root], root),
    ]
    wrong += [(leaves[index], i, size, path, root) for i in range(-1, size + 1) if i != index]
    wrong += [(leaves[index], index, size, [*path[:at], other, *path[at + 1 :]], root) for at in range(len(path))]
    wrong += [(leaves[index], index, size, path[:at] + path[at + 1 :], root) for at in range(len(path))]
    wrong += [
        (leaves[index], index, size, [*path[:at], path[at + 1], path[at], *path[at + 2 :]], root)
        for at in range(len(path) - 1)
    ]
    for case in wrong:
        with pytest.raises(BadProofError):
            merkle.verify_inclusion(*case)


def test_an_inner_node_is_no_leaf() -> None:
    """The prefixes keep a node from being passed off as the leaf of a smaller tree."""
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(4)]
    inner = merkle.node_hash(leaves[0], leaves[1])
    assert merkle.leaf_hash(leaves[0] + leaves[1]) != inner
    merkle.verify_inclusion(inner, 0, 2, [merkle.node_hash(leaves[2], leaves[3])], merkle.root(leaves))
    # That the hash of a node verifies at size 2 is why a head signs the size: at the size of 4 it fails.
    with pytest.raises(BadProofError, match="ends before the root"):
        merkle.verify_inclusion(inner, 0, 4, [merkle.node_hash(leaves[2], leaves[3])], merkle.root(leaves))


def test_a_proof_says_where_it_fails() -> None:
    """A proof of the wrong length and a proof of the wrong root are told apart."""
    leaves = [merkle.leaf_hash(b"%d" % i) for i in range(5)]
    root = merkle.root(leaves)
    path = merkle.inclusion_proof(leaves, 2)
    with pytest.raises(BadProofError, match="does not lie in a tree of 5"):
        merkle.verify_inclusion(leaves[2], 5, 5, path, root)
    with pytest.raises(BadProofError, match="ends before the root"):
        merkle.verify_inclusion(leaves[2], 2, 5, path[:-1], root)
    with pytest.raises(BadProofError, match="has 4 hashes where 3 lead"):
        merkle.verify_inclusion(leaves[2], 2, 5, [*path, root], root)
    with pytest.raises(BadProofError, match="not to the root"):
        merkle.verify_inclusion(leaves[3], 2, 5, path, root)
    with pytest.raises(IndexError, match="leaf 5 of a tree of 5"):
        merkle.inclusion_proof(leaves, 5)
