"""The contract `registry`: who may change it, what it refuses, and when changes take effect."""

import base64
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ledger.errors import AuthorizationError
from ledger.replica import Replica
from protocol import canonical
from protocol.registry import (
    Administrator,
    Center,
    Client,
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    NodeKey,
    Registrar,
    Token,
    registry_root,
)
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network

Commit = Callable[..., list[str]]
FRESH = software_keys.ecdsa("a fresh key").spki
TOKEN = Token("software", "for tests", "x")


def add_client(network: Network, name: str, spki: bytes = FRESH, **options: Any) -> Transaction:
    """What the CA signs as registrar."""
    arguments = {"name": name, "key": base64.b64encode(spki).decode(), "certificate": "ab" * 32}
    return network.transaction(
        "registry", "add_client", arguments, **{"client": "ca", "signers": [network.registrar], **options}
    )


def remove(network: Network, *keys: str) -> Transaction:
    """A `registry.remove` transaction."""
    return network.registry("remove", {"keys": list(keys)})


class TestAuthority:
    """Who may."""

    @pytest.mark.requirement("S-2")
    @pytest.mark.parametrize(
        ("administrators", "code"),
        [
            (["admin-1"], "1 administrators signed where 2 are needed"),
            (["admin-1", "admin-1"], "1 administrators signed where 2 are needed"),
            (["admin-1"] * 32, "1 administrators signed where 2 are needed"),
        ],
    )
    def test_too_few_administrators(
        self, network: Network, replica: Replica, administrators: list[str], code: str
    ) -> None:
        """K of n administrators must sign; one who signs twice counts once."""
        wish = network.put(Client("c3", FRESH, ""), administrators=administrators)
        with pytest.raises(AuthorizationError, match=code) as caught:
            replica.authorize(wish)
        assert caught.value.code == "not-authorized"

    @pytest.mark.requirement("S-2")
    @pytest.mark.parametrize(
        "administrators", [["admin-1", "admin-2"], ["admin-3", "admin-1"], ["admin-2"] * 2 + ["admin-3"]]
    )
    def test_enough_administrators(self, network: Network, commit: Commit, administrators: list[str]) -> None:
        """Any k of them suffice, without a vote of any node."""
        assert commit(network.put(Client("c3", FRESH, ""), administrators=administrators)) == ["valid"]

    def test_a_stranger_among_the_signers(self, network: Network, replica: Replica) -> None:
        """Who is no administrator has no place among the signatures, even if enough others signed."""
        signers = [*network.administrators.values(), software_keys.ecdsa("a stranger")]
        wish = network.transaction("registry", "remove", {"keys": ["client/c2"]}, client="admin-1", signers=signers)
        with pytest.raises(AuthorizationError, match="no administrator's") as caught:
            replica.authorize(wish)
        assert caught.value.code == "not-authorized"

    def test_a_bad_signature_among_the_signers(self, network: Network, replica: Replica) -> None:
        """Every administrator's signature must hold, those beyond the number needed too."""
        wish = network.put(Client("c3", FRESH, ""), administrators=["admin-1", "admin-2", "admin-3"])
        *good, last = wish.envelope.signatures
        bad = msgspec.structs.replace(last, sig=good[0].sig)
        forged = msgspec.structs.replace(wish.envelope, signatures=(*good, bad))
        with pytest.raises(AuthorizationError) as caught:
            replica.authorize(Transaction.decode(canonical.encode(forged)))
        assert caught.value.code == "bad-signature"

    @pytest.mark.requirement("E-1")
    def test_the_registrar_adds_clients(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The registrar alone adds a client, who may act from the next block on."""
        assert commit(add_client(network, "c3")) == ["valid"]
        key = replica.registry.client("c3")
        assert key is not None
        assert key.spki == FRESH

    @pytest.mark.requirement("E-1", "S-2")
    @pytest.mark.parametrize("operation", ["put", "remove", "genesis", "erase"])
    def test_the_registrar_may_nothing_else(self, network: Network, replica: Replica, operation: str) -> None:
        """The registrar's key changes nothing but the whitelist, and only adds to it."""
        wish = network.transaction(
            "registry", operation, {"keys": ["client/c1"]}, client="ca", signers=[network.registrar]
        )
        with pytest.raises(AuthorizationError, match="a registrar may add clients") as caught:
            replica.authorize(wish)
        assert caught.value.code == "not-authorized"

    def test_in_the_registrars_name(self, network: Network, replica: Replica) -> None:
        """Only the registrar's own key signs in its name; its key signs in no other name."""
        for wish, code in (
            (add_client(network, "c3", signers=[network.clients["c1"]]), "bad-signature"),
            (add_client(network, "c3", signers=[network.registrar, network.registrar]), "bad-signature"),
            (add_client(network, "c3", client="admin-1"), "not-authorized"),
            (add_client(network, "c3", client="c1"), "not-authorized"),
        ):
            with pytest.raises(AuthorizationError) as caught:
                replica.authorize(wish)
            assert code == caught.value.code

    def test_administrators_add_clients_too(self, network: Network, commit: Commit) -> None:
        """`add_client` is open to administrators."""
        signers = [network.administrators["admin-1"], network.administrators["admin-2"]]
        assert commit(add_client(network, "c3", client="admin-1", signers=signers)) == ["valid"]


class TestRefusals:
    """What a change may not do."""

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda n: add_client(n, "c1"), "already-registered"),
            (lambda n: add_client(n, "c3", n.center.spki), "key-in-use"),
            (lambda n: add_client(n, "c3", n.administrators["admin-1"].spki), "key-in-use"),
            (lambda n: add_client(n, "c3", n.node_keys["A", "device-a"].spki), "key-in-use"),
            (lambda n: add_client(n, "c3", n.devices["device-a"].spki), "key-in-use"),
            (lambda n: add_client(n, "c3", n.registrar.spki), "key-in-use"),
            (lambda n: add_client(n, "c3", FRESH + b"\x00"), "unacceptable-key"),
            (lambda n: add_client(n, "c3", b"\x00" * 91), "unacceptable-key"),
            (lambda n: add_client(n, "c3", b"short"), "bad-arguments"),
            (lambda n: add_client(n, "c 3"), "bad-arguments"),
            (lambda n: n.put(Administrator("admin-4", n.clients["c1"].spki)), "key-in-use"),
            (lambda n: n.put(Administrator("admin-4", n.administrators["admin-1"].spki)), "key-in-use"),
            (lambda n: n.put(Node("D", (_key(n.node_keys["A", "device-a"].spki),))), "key-in-use"),
            (lambda n: n.put(Node("D", (_key(FRESH), _key(FRESH)))), "key-in-use"),
            (lambda n: n.put(Node("D", (_key(FRESH, "nowhere"),))), "unknown-device"),
            (lambda n: n.put(Center("center-2", FRESH, "nowhere")), "unknown-device"),
            (lambda n: remove(n, "device/device-a"), "unknown-device"),
            (lambda n: n.put(EndorsementPolicy("assets", "AND('A', 'Z')")), "unknown-node"),
            (lambda n: remove(n, "node/C"), "unknown-node"),
            (lambda n: n.put(EndorsementPolicy("assets", "AND('A'")), "policy-syntax"),
            (lambda n: n.put(EndorsementPolicy("assets", "")), "policy-syntax"),
            (lambda n: remove(n, "client/nobody"), "not-registered"),
            (lambda n: remove(n, "registry/client/c1"), "not-registered"),
            (lambda n: remove(n, "channel"), "inconsistent"),
            (lambda n: remove(n, "administrator/admin-1", "administrator/admin-2"), "lock-out"),
            (lambda n: remove(n, "center/center-1"), "lock-out"),
            (lambda n: n.put(_channel(n, administrators_needed=4)), "lock-out"),
            (lambda n: n.put(_channel(n, centers_needed=2)), "lock-out"),
            (lambda n: n.put(_channel(n, longest_validity=0)), "lock-out"),
            (lambda n: n.put(_channel(n, longest_validity=59_999)), "lock-out"),
            (lambda n: n.put(_channel(n, network="other")), "inconsistent"),
            (lambda n: n.put(_channel(n, rules_version=3)), "inconsistent"),
            (lambda n: n.registry("genesis", {"entries": [{"type": "client", "name": "x"}]}), "bad-arguments"),
            (lambda n: n.registry("genesis", n.genesis_transaction().payload.arguments), "not-genesis"),
            (lambda n: n.registry("put", {"entries": []}), "bad-arguments"),
            (lambda n: n.registry("erase", {}), "unknown-operation"),
        ],
    )
    def test_refused(
        self, network: Network, replica: Replica, commit: Commit, make: Callable[[Network], Transaction], code: str
    ) -> None:
        """A change that locks out, contradicts or misuses a key is recorded with its code and changes nothing."""
        root, digest = replica.registry.root, replica.store.digest()[1]
        assert [code] == commit(make(network))
        assert (root, digest) == (replica.registry.root, replica.store.digest()[1])

    def test_all_or_none(self, network: Network, replica: Replica, commit: Commit) -> None:
        """One bad entry keeps all of its transaction out."""
        assert commit(network.put(Client("c3", FRESH, ""), EndorsementPolicy("evidence", "AND('Z')"))) == [
            "unknown-node"
        ]
        assert replica.registry.client("c3") is None

    def test_clients_may_share_a_key(self, network: Network, commit: Commit) -> None:
        """Two clients may have one key; another kind of holder may not have it then."""
        assert commit(add_client(network, "c3"), add_client(network, "c4")) == ["valid", "valid"]
        assert commit(network.put(Device("device-d", FRESH, TOKEN))) == ["key-in-use"]

    def test_a_key_may_move_in_one_transaction(self, network: Network, commit: Commit) -> None:
        """Taking a key from one holder and giving it to another is two transactions, in order."""
        spki = network.clients["c2"].spki
        assert commit(
            network.put(Administrator("admin-4", spki)),
            remove(network, "client/c2"),
            network.put(Administrator("admin-4", spki)),
        ) == ["key-in-use", "valid", "valid"]

    def test_a_lock_out_in_two_steps(self, network: Network, commit: Commit) -> None:
        """Within a block, the second step sees the first: the rules hold for the sum of both."""
        assert commit(remove(network, "administrator/admin-1"), remove(network, "administrator/admin-2")) == [
            "valid",
            "lock-out",
        ]


def _key(spki: bytes, device: str = "device-a") -> NodeKey:
    return NodeKey(spki, device)


def _channel(network: Network, /, **changed: Any) -> Entry:
    channel = network.entries()[0]
    return msgspec.structs.replace(channel, **changed)


class TestEffect:
    """When."""

    def test_in_the_next_block_only(self, network: Network, replica: Replica, commit: Commit) -> None:
        """In the block of its registration a client owns nothing; in the next it does."""
        assert commit(add_client(network, "c3"), network.issue("GOLD", {"c3": 1})) == ["valid", "unknown-owner"]
        assert commit(network.issue("GOLD", {"c3": 1})) == ["valid"]
        assert commit(remove(network, "client/c3"), network.issue("GOLD", {"c3": 1})) == ["valid", "valid"]
        assert commit(network.issue("GOLD", {"c3": 1})) == ["unknown-owner"]
        assert replica.registry.client("c3") is None

    def test_registry_transactions_see_each_other(self, network: Network, commit: Commit) -> None:
        """Registry transactions of one block build on each other, in order."""
        device, node = Device("device-d", FRESH, TOKEN), Node("D", (_key(software_keys.ecdsa("d").spki, "device-d"),))
        policy = EndorsementPolicy("evidence", "OR('A', 'D')")
        codes = commit(*(network.put(entry) for entry in (policy, device, node, policy)))
        assert codes == ["unknown-node", "valid", "valid", "valid"]

    def test_added_and_removed_in_one_block(self, network: Network, replica: Replica, commit: Commit) -> None:
        """What a block adds and takes out again is not there, in view, state and history alike."""
        root = replica.registry.root
        assert commit(add_client(network, "c3"), remove(network, "client/c3")) == ["valid", "valid"]
        assert root == replica.registry.root
        assert replica.store.state("registry/client/c3") is None
        assert "client/c3" not in replica.store.registry(1)

    def test_the_root_is_that_of_the_state(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The header's registry root commits what the store gives back."""
        commit(add_client(network, "c3"), remove(network, "client/c1", "registrar/ca"))
        assert registry_root(replica.store.registry(1)) == replica.registry.root
        assert replica.store.registry(1) == dict(replica.registry.entries)

    @pytest.mark.parametrize("kind", [Registrar("ca-2", FRESH, b""), Center("center-2", FRESH, "device-a")])
    def test_several_registrars_and_centers(self, network: Network, commit: Commit, kind: Entry) -> None:
        """There may be more than one of each."""
        assert commit(network.put(kind)) == ["valid"]
