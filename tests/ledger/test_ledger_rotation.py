"""A new key in the place of an old one: announced by both, in force from a height on, and what is refused (K-12)."""

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ledger.errors import AuthorizationError, BadCopyError, BlockRefusedError
from ledger.replica import Replica
from protocol.keys import key_id
from protocol.registry import Center, Client, Node, NodeKey
from protocol.tier import Tier
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import FOR_EVER, GENESIS_TIME, YEAR, Network
from tests.software_keys import SoftwareKey

NEW = software_keys.ecdsa("a new key")
OTHER = software_keys.ecdsa("another key")
Commit = Callable[..., list[str]]
Make = Callable[[Network], Transaction]


def key_a(network: Network) -> SoftwareKey:
    """Node A's key in block 0."""
    return network.node_keys["A", "device-a"]


def rotate_a(network: Network, /, **options: Any) -> Transaction:
    """A's key is replaced from height 3 on; both count up to height 5."""
    return network.rotate("node/A", key_a(network), NEW, **{"since": 3, "overlap": 2, **options})


def voting_key(network: Network, replica: Replica, key: SoftwareKey) -> str:
    """What becomes of a block that a vote by this key of A is in: empty when it is accepted."""
    wish = network.evidence(f"{replica.height} by {key.id}")
    votes = [*network.endorse([wish], by=("B",), height=replica.height)]
    before, network.node_keys["A", "device-a"] = network.node_keys["A", "device-a"], key
    votes += network.endorse([wish], by=("A",), height=replica.height)
    network.node_keys["A", "device-a"] = before
    try:
        replica.check(network.block(replica, [wish], votes))
    except BlockRefusedError as error:
        return f"{error.code}: {error}"
    return ""


class TestNodes:
    """A node's key."""

    @pytest.mark.requirement("K-12", "E-9")
    def test_when_each_key_counts(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The new key counts from the announced height on, the old one up to the end of the overlap."""
        old = key_a(network)
        assert commit(rotate_a(network)) == ["valid"]
        for height in range(2, 8):
            said = voting_key(network, replica, old), voting_key(network, replica, NEW)
            ok_old, ok_new = not said[0], not said[1]
            assert (height, ok_old, ok_new) == (replica.height + 1, height <= 5, height >= 3)
            assert ok_old or (
                said[0].startswith("bad-endorsement: ") and said[0].endswith("of node/A counted up to height 5")
            )
            assert ok_new or said[1].endswith("of node/A counts from height 3 on")
            wish = network.evidence(f"filler {height}")
            votes = network.endorse([wish], by=("B", "C"), height=replica.height)
            replica.apply(network.block(replica, [wish], votes).encode())

    @pytest.mark.requirement("K-12")
    def test_what_is_registered(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The entry holds both keys with their heights, and the new one's lifetime as it was announced."""
        assert commit(rotate_a(network, not_before=7, until=GENESIS_TIME + YEAR)) == ["valid"]
        node = replica.registry.node("A")
        assert node is not None
        old, new = node.keys
        assert old == NodeKey(key_a(network).spki, "device-a", last=5)
        assert new == NodeKey(NEW.spki, "device-a", since=3, not_before=7, until=GENESIS_TIME + YEAR)

    @pytest.mark.requirement("K-12")
    def test_to_another_device(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The new key may live on another token."""
        assert commit(rotate_a(network, device="device-c")) == ["valid"]
        assert replica.registry.devices_in_force("A", height=2, time=replica.time) == ("device-a",)
        assert replica.registry.devices_in_force("A", height=4, time=replica.time) == ("device-a", "device-c")
        assert replica.registry.devices_in_force("A", height=6, time=replica.time) == ("device-c",)

    @pytest.mark.requirement("K-12")
    def test_the_chain_stays_verifiable(
        self, network: Network, replica: Replica, new_replica: Callable[[], Replica], commit: Commit
    ) -> None:
        """A replica that begins with block 0 verifies all blocks across rotations, and ends at the same state."""
        keys = [key_a(network), *(software_keys.ecdsa(f"a{number}") for number in range(3))]
        for old, new in itertools.pairwise(keys):
            assert commit(network.rotate("node/A", old, new, since=replica.height + 2)) == ["valid"]
            network.node_keys["A", "device-a"] = new
            # The one before it counts at this height yet, from the next on the new one alone.
            assert commit(network.evidence(f"x {new.id}")) == ["valid"]
        later = new_replica()
        for height in range(1, replica.height + 1):
            later.apply(replica.store.block(height) or b"")
        assert later.store.digest() == replica.store.digest()
        node = later.registry.node("A")
        assert node is not None
        assert [key_id(each.key) for each in node.keys] == [key.id for key in keys]

    @pytest.mark.requirement("K-12")
    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda n: rotate_a(n, signers=[key_a(n)]), "bad-announcement"),
            (lambda n: rotate_a(n, signers=[NEW]), "bad-announcement"),
            (lambda n: rotate_a(n, signers=[key_a(n), OTHER]), "bad-announcement"),
            (lambda n: rotate_a(n, signers=[NEW, OTHER]), "bad-announcement"),
            (lambda n: rotate_a(n, signers=[key_a(n), NEW, OTHER]), "bad-announcement"),
            (lambda n: rotate_a(n, signers=[key_a(n), NEW, NEW]), "bad-announcement"),
            (lambda n: rotate_a(n, network="other"), "bad-announcement"),
            (lambda n: rotate_a(n, old=OTHER.id), "bad-announcement"),
            (lambda n: rotate_a(n, holder="node/B"), "bad-announcement"),
            (lambda n: rotate_a(n, holder="client/c1", device=""), "bad-announcement"),
            (lambda n: rotate_a(n, device=""), "bad-announcement"),
            (lambda n: rotate_a(n, certificate=b"x"), "bad-announcement"),
            (lambda n: rotate_a(n, since=1), "bad-announcement"),
            (lambda n: rotate_a(n, since=0), "bad-announcement"),
            (lambda n: rotate_a(n, overlap=100_001), "bad-announcement"),
            (lambda n: n.rotate("node/A", key_a(n), key_a(n), since=3), "bad-announcement"),
            (lambda n: n.rotate("node/Z", key_a(n), NEW, since=3), "not-registered"),
            (lambda n: rotate_a(n, device="device-x"), "unknown-device"),
            (lambda n: rotate_a(n, until=GENESIS_TIME), "bad-lifetime"),
            (lambda n: rotate_a(n, not_before=GENESIS_TIME + YEAR), "bad-lifetime"),
            (lambda n: n.rotate("node/A", key_a(n), n.node_keys["B", "device-b"], since=3), "key-in-use"),
            (lambda n: n.rotate("node/A", key_a(n), n.clients["c1"], since=3), "key-in-use"),
            (lambda n: rotate_a(n, new=b"\x00" * 91), "bad-announcement"),
            (lambda n: n.registry("rotate", {"announcement": {}}), "bad-arguments"),
            (lambda n: n.registry("rotate", {}), "bad-arguments"),
        ],
    )
    def test_refused(self, network: Network, replica: Replica, commit: Commit, make: Make, code: str) -> None:
        """What is not announced by both keys, for this node, ahead of time and for a fresh key changes nothing."""
        root = replica.registry.root
        assert commit(make(network)) == [code]
        assert replica.registry.root == root

    @pytest.mark.requirement("K-12", "S-2")
    def test_administrators_decide(self, network: Network, replica: Replica) -> None:
        """Both keys together are not enough: the quorum stands behind each rotation."""
        with pytest.raises(AuthorizationError, match="1 administrators signed where 2 are needed"):
            replica.authorize(rotate_a(network, administrators=["admin-1"]))
        announced = rotate_a(network).payload.arguments
        alone = network.transaction("registry", "rotate", announced, client="ca", signers=[network.registrar])
        with pytest.raises(AuthorizationError, match="a registrar may add clients"):
            replica.authorize(alone)

    @pytest.mark.requirement("K-12")
    def test_one_successor(self, network: Network, commit: Commit) -> None:
        """A key is replaced once: neither by the same announcement again nor by another one."""
        again = rotate_a(network)
        other = network.rotate("node/A", key_a(network), OTHER, since=4)
        assert commit(rotate_a(network), again, other) == ["valid", "bad-announcement", "bad-announcement"]

    @pytest.mark.requirement("K-12", "K-13", "K-14")
    def test_a_key_out_of_force_announces_nothing(self, network: Network, commit: Commit) -> None:
        """Neither a revoked key, nor one on a revoked device, nor an expired one, nor one that is yet to count."""
        b = network.node_keys["B", "device-b"]
        expired = Node("C", (NodeKey(network.node_keys["C", "device-c"].spki, "device-c", until=GENESIS_TIME + 1),))
        revoked = network.revocation("node/A", key_a(network)), network.revocation("device/device-b", b_device(network))
        assert commit(network.put(expired, *revoked)) == ["valid"]
        assert (
            commit(
                rotate_a(network),
                network.rotate("node/B", b, NEW, since=3, device="device-c"),
                network.rotate("node/C", network.node_keys["C", "device-c"], NEW, since=3, device="device-c"),
            )
            == ["bad-announcement"] * 3
        )

    @pytest.mark.requirement("K-12")
    def test_the_next_key_waits_for_its_turn(self, network: Network, commit: Commit) -> None:
        """A key that does not count yet announces no other."""
        assert commit(rotate_a(network)) == ["valid"]
        assert commit(network.rotate("node/A", NEW, OTHER, since=9)) == ["bad-announcement"]
        assert commit(network.rotate("node/A", NEW, OTHER, since=9)) == ["valid"]

    @pytest.mark.requirement("K-12", "K-14")
    def test_not_to_a_revoked_key_or_device(self, network: Network, commit: Commit) -> None:
        """The new key was never revoked, and its device was not."""
        c2 = network.clients["c2"]
        assert commit(
            network.put(network.revocation("client/c2", c2)),
            network.registry("remove", {"keys": ["client/c2"]}),
            network.put(network.revocation("device/device-b", b_device(network))),
            network.rotate("node/A", key_a(network), c2, since=3),
            rotate_a(network, device="device-b"),
        ) == ["valid", "valid", "valid", "revoked-key", "revoked-key"]

    @pytest.mark.requirement("K-12", "K-5")
    def test_of_the_channels_tier(self, network: Network, commit: Commit) -> None:
        """Where the channel asks for a tier, the new key has it before it is announced."""
        channel = msgspec.structs.replace(network.entries()[0], least_tier="probed")
        known: dict[str, Tier] = {key_a(network).id: "probed", network.center.id: "probed"}
        assert commit(
            network.put(network.custody("device-a", known), network.custody("device-b", "probed")),
            network.put(channel),
        ) == ["valid", "valid"]
        later = network.custody("device-a", {**known, NEW.id: "probed"}, time=GENESIS_TIME + 1)
        assert commit(rotate_a(network, since=4), network.put(later), rotate_a(network, since=4)) == [
            "tier-too-low",
            "valid",
            "valid",
        ]


class TestCenters:
    """Who signs headers."""

    @pytest.mark.requirement("K-12", "M-4")
    def test_a_handover(self, network: Network, replica: Replica, new_replica: Callable[[], Replica]) -> None:
        """The block that hands over is signed by the old key and commits the new one, which signs all that follow."""
        old = network.center
        handover = network.rotate("center/center-1", old, NEW, device="device-b")
        block = network.block(replica, [handover, network.evidence("x")])
        with pytest.raises(BadCopyError):
            replica.check(network.sign(block, by=[NEW]))
        replica.apply(block.encode())
        following = network.block(replica, [network.evidence("y")])
        with pytest.raises(BadCopyError):
            replica.check(following)
        replica.apply(network.sign(following, by=[NEW]).encode())
        entry = replica.registry.center("center-1")
        assert entry == Center("center-1", NEW.spki, "device-b", since=2, until=GENESIS_TIME + YEAR)
        later = new_replica()
        for height in (1, 2):
            later.apply(replica.store.block(height) or b"")
        assert later.store.digest() == replica.store.digest()

    @pytest.mark.requirement("K-12")
    @pytest.mark.parametrize(
        ("options", "code"),
        [
            ({"since": 3}, "bad-announcement"),
            ({"not_before": GENESIS_TIME + YEAR // 2}, "bad-announcement"),
            ({"overlap": 1}, "bad-announcement"),
            ({"device": ""}, "bad-announcement"),
            ({"certificate": b"x"}, "bad-announcement"),
            ({"signers": [NEW]}, "bad-announcement"),
            ({"device": "device-x"}, "unknown-device"),
            ({"until": GENESIS_TIME}, "bad-lifetime"),
            ({"since": 2}, "valid"),
            ({"since": 0}, "valid"),
        ],
    )
    def test_at_once(self, network: Network, commit: Commit, options: dict[str, Any], code: str) -> None:
        """A center holds one key: the announced height and time have come, and nothing overlaps."""
        assert commit(network.rotate("center/center-1", network.center, NEW, **options)) == [code]

    @pytest.mark.requirement("K-12", "K-5")
    def test_of_the_channels_tier(self, network: Network, commit: Commit) -> None:
        """Where the channel asks for a tier, a center's new key has it."""
        channel = msgspec.structs.replace(network.entries()[0], least_tier="read-back")
        assert commit(network.put(network.custody("device-a", "probed")), network.put(channel)) == ["valid", "valid"]
        assert commit(network.rotate("center/center-1", network.center, NEW)) == ["tier-too-low"]


class TestAdministratorsAndRegistrars:
    """Those who change the registry."""

    @pytest.mark.requirement("K-12", "S-2")
    def test_an_administrator(self, network: Network, replica: Replica, commit: Commit) -> None:
        """From the next block on the new key signs, and the old one does not."""
        old = network.administrators["admin-1"]
        assert commit(network.rotate("administrator/admin-1", old, NEW)) == ["valid"]
        wish = network.put(Client("c3", OTHER.spki, ""))
        with pytest.raises(AuthorizationError, match="no administrator's"):
            replica.authorize(wish)
        network.administrators["admin-1"] = NEW
        assert commit(network.put(Client("c3", OTHER.spki, ""))) == ["valid"]
        assert commit(network.rotate("administrator/admin-2", network.administrators["admin-2"], NEW)) == ["key-in-use"]
        assert commit(
            network.rotate("administrator/admin-2", network.administrators["admin-2"], OTHER, device="device-a"),
            network.rotate("administrator/admin-2", network.administrators["admin-2"], OTHER, certificate=b"x"),
        ) == ["bad-announcement", "bad-announcement"]

    @pytest.mark.requirement("K-12", "E-1")
    def test_the_registrar(self, network: Network, replica: Replica, commit: Commit) -> None:
        """The CA's new key comes with its new certificate; from the next block on it adds clients."""
        old = network.registrar
        bare = network.rotate("registrar/ca", old, NEW, certificate=b"")
        lost = network.rotate("registrar/ca", old, NEW, device="device-x")
        assert commit(bare, lost, network.rotate("registrar/ca", old, NEW, device="device-b")) == [
            "bad-announcement",
            "unknown-device",
            "valid",
        ]
        entry = replica.registry.registrar("ca")
        assert entry is not None
        assert (entry.key, entry.certificate, entry.since) == (NEW.spki, b"a new certificate", 2)
        renewal = network.renew_client("c1", network.clients["c1"], OTHER)
        with pytest.raises(AuthorizationError) as caught:
            replica.authorize(renewal)
        assert caught.value.code == "bad-signature"
        network.registrar = NEW
        assert commit(network.renew_client("c1", network.clients["c1"], OTHER)) == ["valid"]


class TestClients:
    """A client's key, renewed by the CA."""

    @pytest.mark.requirement("K-12", "E-1")
    def test_a_new_key(self, network: Network, replica: Replica, commit: Commit) -> None:
        """From the next block on the client signs with the new key, and the old one is a stranger's."""
        old = network.clients["c1"]
        renewal = network.renew_client("c1", old, NEW, certificate=b"the new one", not_before=5)
        assert commit(renewal, network.evidence("before")) == ["valid", "valid"]
        with pytest.raises(AuthorizationError) as caught:
            replica.authorize(network.evidence("after"))
        assert caught.value.code == "bad-signature"
        network.clients["c1"] = NEW
        assert commit(network.evidence("after")) == ["valid"]
        digest = hashlib.sha256(b"the new one").hexdigest()
        until = GENESIS_TIME + YEAR
        assert replica.registry.client_entry("c1") == Client("c1", NEW.spki, digest, since=2, not_before=5, until=until)

    @pytest.mark.requirement("K-12", "K-13", "E-1")
    def test_a_new_certificate_for_the_same_key(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A client may keep its key and get a new lifetime; it signs the announcement once."""
        key = network.clients["c1"]
        assert commit(network.renew_client("c1", key, key, until=GENESIS_TIME + 2 * YEAR)) == ["valid"]
        entry = replica.registry.client_entry("c1")
        assert entry is not None
        assert (entry.key, entry.until) == (key.spki, GENESIS_TIME + 2 * YEAR)

    @pytest.mark.requirement("K-12", "E-1")
    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, signers=[NEW]), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, signers=[n.clients["c1"]]), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c2"], NEW), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.registrar, NEW), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, certificate=b""), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, device="device-a"), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, since=9), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, overlap=9), "bad-announcement"),
            (lambda n: n.renew_client("c1", n.registrar, NEW, holder="registrar/ca"), "bad-announcement"),
            (lambda n: n.renew_client("c9", n.clients["c1"], NEW), "not-registered"),
            (lambda n: n.renew_client("c1", n.clients["c1"], NEW, until=GENESIS_TIME), "bad-lifetime"),
            (lambda n: n.renew_client("c1", n.clients["c1"], n.center), "key-in-use"),
        ],
    )
    def test_refused(self, network: Network, replica: Replica, commit: Commit, make: Make, code: str) -> None:
        """The CA alone replaces nobody's key: the client's key in force and the new one both sign."""
        root = replica.registry.root
        assert commit(make(network)) == [code]
        assert replica.registry.root == root

    @pytest.mark.requirement("K-14", "K-13", "E-1")
    def test_a_key_out_of_force_renews_nothing(self, network: Network, commit: Commit) -> None:
        """A revoked client, and one that has expired, are not renewed by the CA: administrators decide about them."""
        c1, c2 = network.clients["c1"], network.clients["c2"]
        expired = Client("c2", c2.spki, "", until=GENESIS_TIME + 1)
        assert commit(network.put(network.revocation("client/c1", c1), expired)) == ["valid"]
        assert commit(
            network.renew_client("c1", c1, NEW),
            network.renew_client("c1", c1, c1),
            network.renew_client("c2", c2, NEW),
            network.put(Client("c2", NEW.spki, "", until=FOR_EVER)),
        ) == ["bad-announcement", "bad-announcement", "bad-announcement", "valid"]


def b_device(network: Network) -> SoftwareKey:
    """The identity key of device-b."""
    return network.devices["device-b"]


@pytest.mark.requirement("K-12")
def test_an_entry_from_before_a_rotation_does_not_undo_it(network: Network, commit: Commit) -> None:
    """Who puts a node as it was read before its rotation is told to read it again; with the last height it is taken."""
    stale = network.node_entry("A")
    assert commit(rotate_a(network)) == ["valid"]
    assert commit(network.put(stale)) == ["inconsistent"]
    (known,) = stale.keys
    ended = msgspec.structs.replace(known, last=5)
    assert commit(network.put(Node("A", (ended, NodeKey(NEW.spki, "device-a", since=3, until=FOR_EVER))))) == ["valid"]
