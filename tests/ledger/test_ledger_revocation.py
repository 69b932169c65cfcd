"""Revocation: a key is refused from exactly the next block on, for ever, and what it signed before stands (K-14)."""

import base64
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ledger.errors import AuthorizationError, BadCopyError, BlockRefusedError, RegistryError
from ledger.replica import Replica
from protocol.registry import (
    Administrator,
    Center,
    Client,
    Device,
    EndorsementPolicy,
    Node,
    NodeKey,
    Registrar,
    Replicated,
    Revocation,
    Token,
)
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network
from tests.software_keys import SoftwareKey

FRESH = software_keys.ecdsa("a fresh key")
Commit = Callable[..., list[str]]


def key_of(network: Network, holder: str) -> SoftwareKey:
    """The key that the holder's registry entry shows."""
    kind, _, name = holder.partition("/")
    if kind == "node":
        return network.node_keys[name, f"device-{name.lower()}"]
    single = {"center": network.center, "registrar": network.registrar}
    return single[kind] if kind in single else getattr(network, kind + "s")[name]


def revoke(network: Network, *holders: str) -> Transaction:
    """A transaction that revokes what these hold."""
    return network.put(*(network.revocation(holder, key_of(network, holder)) for holder in holders))


def remove(network: Network, *keys: str) -> Transaction:
    """A `registry.remove` transaction."""
    return network.registry("remove", {"keys": list(keys)})


class TestEffect:
    """From when on."""

    @pytest.mark.requirement("K-14")
    def test_a_client(self, network: Network, replica: Replica, commit: Commit) -> None:
        """In the block of its revocation a client's transaction counts, from the next height on none does."""
        before = network.evidence("before")
        assert commit(revoke(network, "client/c1"), before) == ["valid", "valid"]
        with pytest.raises(AuthorizationError, match="was revoked") as caught:
            replica.authorize(network.evidence("after"))
        assert caught.value.code == "revoked"
        with pytest.raises(BlockRefusedError) as refused:
            network.block(replica, [network.evidence("after")])
        assert refused.value.code == "revoked"
        assert commit(network.evidence("other", client="c2")) == ["valid"]

    @pytest.mark.requirement("K-14", "E-9")
    def test_a_node(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A vote by the key counts in the block of its revocation, and makes every later block bad."""
        votes = network.evidence("before")
        assert commit(revoke(network, "node/A"), votes) == ["valid", "valid"]
        wish = network.evidence("after")
        with pytest.raises(BlockRefusedError, match="of node/A was revoked") as caught:
            network.block(replica, [wish])
        assert caught.value.code == "bad-endorsement"
        replica.apply(network.block(replica, [wish], network.endorse([wish], by=("B", "C"), height=1)).encode())

    @pytest.mark.requirement("K-14", "E-20")
    def test_a_device(self, network: Network, replica: Replica, commit: Commit) -> None:
        """With a device's identity key every key on it is refused, and no new one is taken there."""
        assert commit(revoke(network, "device/device-b")) == ["valid"]
        view, key = replica.registry, network.node_keys["B", "device-b"]
        with pytest.raises(RegistryError, match=r"device device-b, where key .* of node/B lives, was revoked"):
            view.node_key("B", key.id, device="device-b", height=2, time=replica.time)
        assert view.device_lapse("device-b", height=2, time=replica.time) == "device device-b was revoked"
        assert view.devices_in_force("B", height=2, time=replica.time) == ()
        assert commit(
            network.put(Node("B", (NodeKey(FRESH.spki, "device-b"),))),
            network.put(Center("center-2", FRESH.spki, "device-b")),
            network.put(network.custody("device-b", "probed")),
            network.put(Node("B", (NodeKey(FRESH.spki, "device-c"),))),
        ) == ["revoked-key", "revoked-key", "bad-custody", "valid"]

    @pytest.mark.requirement("K-14", "S-2")
    def test_an_administrator(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A revoked administrator signs nothing more, also not beside enough others."""
        assert commit(revoke(network, "administrator/admin-1")) == ["valid"]
        for signers in (["admin-1", "admin-2"], ["admin-1", "admin-2", "admin-3"]):
            with pytest.raises(AuthorizationError) as caught:
                replica.authorize(network.put(Client("c3", FRESH.spki, ""), administrators=signers))
            assert caught.value.code == "revoked"
        assert commit(network.put(Client("c3", FRESH.spki, ""), administrators=["admin-2", "admin-3"])) == ["valid"]

    @pytest.mark.requirement("K-14", "E-1")
    def test_the_registrar(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A revoked CA adds no client."""
        assert commit(revoke(network, "registrar/ca")) == ["valid"]
        arguments = {"name": "c3", "key": base64.b64encode(FRESH.spki).decode(), "certificate": "ab" * 32}
        wish = network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
        with pytest.raises(AuthorizationError) as caught:
            replica.authorize(wish)
        assert caught.value.code == "revoked"

    @pytest.mark.requirement("K-14", "M-4")
    @pytest.mark.parametrize("holder", ["center/center-1", "device/device-a"])
    def test_a_center(self, network: Network, replica: Replica, commit: Commit, holder: str) -> None:
        """The block that revokes a center, or its device, is its last: of registry transactions too."""
        other = software_keys.ecdsa("center-2")
        assert commit(network.put(Center("center-2", other.spki, "device-b"))) == ["valid"]
        assert commit(revoke(network, holder)) == ["valid"]
        for wish in (network.evidence("x"), network.put(Client("c3", FRESH.spki, ""))):
            trees = network.endorse([wish], by=("B", "C"), height=replica.height)
            block = network.block(replica, [wish], trees)
            with pytest.raises(BadCopyError, match="signed"):
                replica.apply(block.encode())
            replica.apply(network.sign(block, by=[other]).encode())
        assert list(replica.registry.centers_in_force(height=5, time=replica.time)) == ["center-2"]

    @pytest.mark.requirement("K-14")
    def test_old_blocks_stay(
        self, network: Network, replica: Replica, new_replica: Callable[[], Replica], commit: Commit
    ) -> None:
        """Who follows the chain from block 0 accepts what revoked keys had signed, and ends where the others are."""
        commit(network.evidence("one"))
        commit(revoke(network, "node/A", "client/c1"), network.evidence("two"))
        wish = network.evidence("three", client="c2")
        replica.apply(network.block(replica, [wish], network.endorse([wish], by=("B", "C"), height=2)).encode())
        later = new_replica()
        for height in range(1, 4):
            later.apply(replica.store.block(height) or b"")
        assert later.store.digest() == replica.store.digest()
        assert [each.holder for each in later.registry.revocations] == sorted(
            ["node/A", "client/c1"], key=lambda holder: key_of(network, holder).id
        )


class TestFinal:
    """For ever."""

    @pytest.mark.requirement("K-14")
    def test_it_cannot_be_changed(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A revocation is put once: it is not replaced, not repeated, and not taken out."""
        entry = network.revocation("client/c1", network.clients["c1"])
        assert commit(network.put(entry)) == ["valid"]
        root = replica.registry.root
        assert (
            commit(
                network.put(entry),
                network.put(msgspec.structs.replace(entry, reason="superseded")),
                network.put(msgspec.structs.replace(entry, suspected=0)),
                remove(network, f"revocation/{entry.name}"),
                remove(network, "client/c1", f"revocation/{entry.name}"),
            )
            == ["final"] * 5
        )
        assert root == replica.registry.root
        assert replica.registry.revocation(entry.name) == entry

    @pytest.mark.requirement("K-14")
    @pytest.mark.parametrize(
        "make",
        [
            lambda spki: Client("c9", spki, ""),
            lambda spki: Administrator("admin-9", spki),
            lambda spki: Registrar("ca-9", spki, b""),
            lambda spki: Center("center-9", spki, "device-a"),
            lambda spki: Device("device-9", spki, Token("software", "for tests", "9")),
            lambda spki: Node("Z", (NodeKey(spki, "device-a"),)),
        ],
    )
    def test_the_key_is_never_taken_again(self, network: Network, commit: Commit, make: Callable[[bytes], Any]) -> None:
        """Not even when its holder is gone, under no name and for no purpose."""
        assert commit(revoke(network, "client/c2"), remove(network, "client/c2")) == ["valid", "valid"]
        assert commit(network.put(make(network.clients["c2"].spki))) == ["revoked-key"]

    @pytest.mark.requirement("K-14", "E-1")
    def test_the_registrar_does_not_take_it(self, network: Network, commit: Commit) -> None:
        """`add_client` refuses a revoked key; in the block of the revocation already."""
        arguments = {
            "name": "c9",
            "key": base64.b64encode(network.clients["c2"].spki).decode(),
            "certificate": "ab" * 32,
        }
        add = [
            network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
            for _ in range(2)
        ]
        assert commit(revoke(network, "client/c2"), add[0]) == ["valid", "revoked-key"]
        assert commit(add[1]) == ["revoked-key"]

    @pytest.mark.requirement("K-14")
    def test_not_by_way_of_the_same_transaction(self, network: Network, commit: Commit) -> None:
        """A key cannot be revoked and given to another entry at once."""
        key = network.clients["c2"]
        both = network.put(Client("c9", key.spki, ""), network.revocation("client/c2", key))
        assert commit(both) == ["revoked-key"]

    @pytest.mark.requirement("K-14", "E-20")
    def test_a_revoked_device_does_not_come_back(self, network: Network, commit: Commit) -> None:
        """Neither under its name nor under another is a revoked identity registered; a new one is a new device."""
        assert commit(revoke(network, "device/device-c")) == ["valid"]
        gone = remove(network, "device/device-c")
        spki, token = network.devices["device-c"].spki, Token("software", "for tests", "c")
        assert commit(
            network.put(Device("device-c", FRESH.spki, token)),
            network.put(Node("C", (NodeKey(FRESH.spki, "device-b"),))),
            gone,
            network.put(Device("device-c", spki, token)),
            network.put(Device("device-d", spki, token)),
        ) == ["inconsistent", "valid", "valid", "revoked-key", "revoked-key"]

    @pytest.mark.requirement("K-14", "E-20")
    def test_a_key_does_not_leave_a_revoked_device(self, network: Network, replica: Replica, commit: Commit) -> None:
        """What lived on a revoked device is not said to live elsewhere, be it in the transaction of the revocation."""
        moved = Node("B", (NodeKey(network.node_keys["B", "device-b"].spki, "device-c"),))
        revocation = network.revocation("device/device-b", network.devices["device-b"])
        assert commit(network.put(moved, revocation), network.put(revocation), network.put(moved)) == [
            "revoked-key",
            "valid",
            "revoked-key",
        ]
        assert replica.registry.devices_in_force("B", height=2, time=replica.time) == ()

    @pytest.mark.requirement("K-14")
    def test_what_is_beside_it_may_change(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A node keeps its revoked key in its entry, where it never counts, when another one is added."""
        assert commit(revoke(network, "node/A")) == ["valid"]
        old = network.node_keys["A", "device-a"]
        both = Node("A", (NodeKey(old.spki, "device-a"), NodeKey(FRESH.spki, "device-b")))
        assert commit(network.put(both)) == ["valid"]
        assert replica.registry.devices_in_force("A", height=3, time=replica.time) == ("device-b",)


class TestRefusals:
    """What may not be revoked."""

    @pytest.mark.requirement("K-14")
    @pytest.mark.parametrize(
        "entry",
        [
            lambda n: n.revocation("client/c1", n.clients["c2"]),
            lambda n: n.revocation("client/nobody", n.clients["c2"]),
            lambda n: n.revocation("node/A", n.node_keys["B", "device-b"]),
            lambda n: n.revocation("channel", n.clients["c2"]),
            lambda n: n.revocation("policy/assets", n.clients["c2"]),
            lambda n: n.revocation("", n.clients["c2"]),
            lambda n: n.revocation("client/c2", FRESH),
        ],
    )
    def test_a_key_that_the_holder_has_not(
        self, network: Network, commit: Commit, entry: Callable[[Network], Revocation]
    ) -> None:
        """A revocation names an entry that holds the key, when it is put."""
        assert commit(network.put(entry(network))) == ["wrong-holder"]

    @pytest.mark.requirement("K-14")
    def test_not_in_block_0(self, network: Network) -> None:
        """Nobody begins with a key that was lost."""
        for key, code in ((FRESH, "wrong-holder"), (network.clients["c1"], "revoked-key")):
            with pytest.raises(BlockRefusedError, match=code):
                network.genesis([*network.entries(), network.revocation("client/c1", key)])

    @pytest.mark.requirement("K-14")
    def test_no_lock_out(self, network: Network, commit: Commit) -> None:
        """As many administrators and centers stay as are needed, counting all steps of a block together."""
        assert commit(
            revoke(network, "center/center-1"),
            revoke(network, "device/device-a"),
            revoke(network, "administrator/admin-1", "administrator/admin-2"),
            revoke(network, "administrator/admin-3"),
            revoke(network, "administrator/admin-2"),
            remove(network, "administrator/admin-1"),
        ) == ["lock-out", "lock-out", "lock-out", "valid", "lock-out", "lock-out"]

    @pytest.mark.requirement("K-14")
    def test_replaced_at_once(self, network: Network, commit: Commit, replica: Replica) -> None:
        """One transaction revokes the only center and brings the next, which signs from the next block on."""
        other = software_keys.ecdsa("center-2")
        swap = network.put(
            network.revocation("center/center-1", network.center), Center("center-1", other.spki, "device-b")
        )
        assert commit(swap) == ["valid"]
        block = network.block(replica, [network.evidence("x")])
        with pytest.raises(BadCopyError):
            replica.apply(block.encode())
        replica.apply(network.sign(block, by=[other]).encode())

    @pytest.mark.requirement("K-14")
    def test_a_registrar_revokes_nothing(self, network: Network, replica: Replica) -> None:
        """Revocation is the administrators'."""
        entry = network.revocation("client/c1", network.clients["c1"])
        wish = network.transaction(
            "registry", "put", {"entries": [msgspec.to_builtins(entry)]}, client="ca", signers=[network.registrar]
        )
        with pytest.raises(AuthorizationError) as caught:
            replica.authorize(wish)
        assert caught.value.code == "not-authorized"

    @pytest.mark.requirement("K-14", "E-5")
    def test_no_policy_stands_in_its_way(self, network: Network, commit: Commit) -> None:
        """A key is revoked although a policy can then not be satisfied; to put such a policy anew is refused."""
        both = EndorsementPolicy("evidence", "AND('A', 'B')", Replicated())
        assert commit(network.put(both)) == ["valid"]
        assert commit(revoke(network, "node/B"), network.put(both)) == ["valid", "never-satisfied"]
        assert commit(network.put(EndorsementPolicy("evidence", "AND('A', 'C')", Replicated()))) == ["valid"]
