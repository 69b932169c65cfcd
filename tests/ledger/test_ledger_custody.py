"""Custody statements in the registry: whose word they are, and what the tiers that they give decide (K-5, K-6)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.errors import BlockRefusedError, RegistryError
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.envelope import Envelope
from protocol.registry import Center, Custody, Device, EndorsementPolicy, Entry, Node, NodeKey, Replicated, Token
from protocol.tier import Tier
from tests import software_keys
from tests.chain_builder import GENESIS_TIME, Network

FRESH = software_keys.ecdsa("a fresh key")
DAY = 24 * 3_600_000
Commit = Callable[..., list[str]]


@pytest.fixture
def strict(tmp_path: Path) -> Any:
    """A network that asks for probed keys, and a replica of it."""
    network = Network(least_tier="probed")
    store = ChainStore.create(url_of(tmp_path / "strict.db"))
    yield network, Replica.create(store, network.genesis())
    store.close()


def apply(strict: tuple[Network, Replica], *transactions: Any) -> list[str]:
    """Puts transactions into the next block; the codes of their outcomes."""
    network, replica = strict
    return [each.code for each in replica.apply(network.block(replica, transactions).encode()).outcomes]


class TestStatements:
    """What is recorded."""

    @pytest.mark.requirement("K-6")
    def test_it_gives_tiers(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A device's statement gives the keys that it names their tier, on this device alone; others are claimed."""
        a = network.node_keys["A", "device-a"]
        assert replica.registry.tier("device-a", a.id) == "claimed"
        assert replica.registry.statement("device-a") is None
        assert commit(network.put(network.custody("device-a", {a.id: "attested"}))) == ["valid"]
        view = replica.registry
        assert view.tier("device-a", a.id) == "attested"
        assert (view.tier("device-b", a.id), view.tier("device-a", FRESH.id)) == ("claimed", "claimed")
        statement = view.statement("device-a")
        assert statement is not None
        assert statement.predicate.device == "device-a"

    @pytest.mark.requirement("K-6")
    @pytest.mark.parametrize(
        "make",
        [
            lambda n: n.custody("device-a", "probed", signer=n.devices["device-b"]),
            lambda n: n.custody("device-a", "probed", signer=n.node_keys["A", "device-a"]),
            lambda n: n.custody("device-a", "probed", network="other"),
            lambda n: n.custody("device-a", "probed", about="device-b"),
            lambda n: n.custody("device-a", "probed", about="", network=""),
            lambda n: n.custody("device-a", "probed", time=GENESIS_TIME + DAY + 1000),
            lambda n: Custody("device-b", n.custody("device-a", "probed").statement),
            lambda _: Custody("device-a", b""),
            lambda _: Custody("device-a", b"{}"),
            lambda n: Custody("device-a", n.custody("device-a", "probed").statement + b" "),
            lambda n: Custody("device-a", _twice(n.statement("device-a", "probed"))),
            lambda n: Custody("device-a", _altered(n.statement("device-a", "read-back"))),
            lambda n: Custody("device-a", canonical.encode(n.announcement("node/A", n.devices["device-a"], FRESH))),
        ],
    )
    def test_it_is_the_devices_own_word(
        self, network: Network, replica: Replica, commit: Commit, make: Callable[[Network], Entry]
    ) -> None:
        """By another key, for another network, about another device, from the future or altered, it is not recorded."""
        assert commit(network.put(make(network))) == ["bad-custody"]
        assert replica.registry.entries.under("custody") == []

    @pytest.mark.requirement("K-6")
    def test_an_older_one_does_not_come_back(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A statement is replaced by a later one alone, be it worse, and is not taken out while the device is there."""
        good = network.custody("device-a", "probed")
        worse = network.custody("device-a", "claimed", time=GENESIS_TIME + 5)
        better = network.custody("device-a", "attested", time=GENESIS_TIME + 4)
        assert commit(network.put(good), network.put(worse), network.put(good), network.put(better)) == [
            "valid",
            "valid",
            "bad-custody",
            "bad-custody",
        ]
        assert commit(network.registry("remove", {"keys": ["custody/device-a"]}), network.put(good)) == [
            "inconsistent",
            "bad-custody",
        ]
        assert replica.registry.tier("device-a", network.node_keys["A", "device-a"].id) == "claimed"

    @pytest.mark.requirement("K-6")
    def test_it_goes_with_its_device(self, network: Network, commit: Commit) -> None:
        """A device leaves with its statement, not without, and only when its identity key is revoked."""
        device = Device("device-d", FRESH.spki, Token("software", "for tests", "d"))
        network.devices["device-d"] = FRESH
        remove = [
            network.registry("remove", {"keys": list(keys)})
            for keys in (["device/device-d"], ["device/device-d", "custody/device-d"])
        ]
        statement = network.custody("device-d", {})
        revoked = network.put(network.revocation("device/device-d", FRESH))
        again = network.registry("remove", {"keys": ["device/device-d", "custody/device-d"]})
        assert commit(network.put(statement), network.put(device, statement), *remove, revoked, again) == [
            "unknown-device",
            "valid",
            "unknown-device",
            "inconsistent",
            "valid",
            "valid",
        ]

    @pytest.mark.requirement("K-6", "K-10")
    def test_an_older_one_does_not_come_back_with_its_device(
        self, network: Network, replica: Replica, commit: Commit
    ) -> None:
        """A device is not taken out and put back so that a former, better statement of it holds again."""
        good = network.custody("device-c", "probed")
        worse = network.custody("device-c", "claimed", time=GENESIS_TIME + 5)
        key = network.node_keys["C", "device-c"]
        gone = network.registry("remove", {"keys": ["device/device-c", "custody/device-c"]})
        back = Device("device-c", network.devices["device-c"].spki, Token("software", "for tests", "c"))
        assert commit(
            network.put(good),
            network.put(worse),
            network.put(Node("C", ())),
            gone,
            network.put(back, Node("C", (NodeKey(key.spki, "device-c"),))),
            network.put(good),
        ) == ["valid", "valid", "valid", "inconsistent", "valid", "bad-custody"]
        assert replica.registry.tier("device-c", key.id) == "claimed"


class TestChannel:
    """A channel that asks for a tier."""

    @pytest.mark.requirement("K-5")
    def test_keys_below_it_are_not_enrolled(self, strict: tuple[Network, Replica]) -> None:
        """A node's or center's key is registered when its device's statement says enough of it, and not before."""
        network, _ = strict
        node, center = Node("D", (NodeKey(FRESH.spki, "device-a"),)), Center("center-2", FRESH.spki, "device-a")
        known: dict[str, Tier] = {network.node_keys["A", "device-a"].id: "probed", network.center.id: "probed"}
        moved = Node("A", (NodeKey(network.node_keys["A", "device-a"].spki, "device-b"),))
        assert apply(
            strict,
            network.put(node),
            network.put(center),
            network.put(moved),
            network.put(network.custody("device-a", {**known, FRESH.id: "read-back"}), node),
            network.put(network.custody("device-a", {**known, FRESH.id: "probed"}), node),
        ) == ["tier-too-low", "tier-too-low", "tier-too-low", "tier-too-low", "valid"]

    @pytest.mark.requirement("K-6")
    @pytest.mark.parametrize("statement", [b"", b"{}", b"[]", b"\xff" * 9])
    def test_a_damaged_statement(self, strict: tuple[Network, Replica], statement: bytes) -> None:
        """Where tiers decide, a statement that cannot be read is refused like any other."""
        network, _ = strict
        assert apply(strict, network.put(Custody("device-a", statement))) == ["bad-custody"]

    @pytest.mark.requirement("K-5")
    def test_not_in_block_0_either(self) -> None:
        """A network that asks for a tier begins with keys of that tier."""
        network = Network(least_tier="probed")
        entries = [
            each for each in network.entries() if getattr(each, "name", "") != "device-b" or type(each) is Device
        ]
        with pytest.raises(BlockRefusedError, match="tier-too-low"):
            network.genesis(entries)

    @pytest.mark.requirement("K-5", "E-9")
    def test_a_worse_statement(self, strict: tuple[Network, Replica]) -> None:
        """It can always be recorded; from the next block on the key counts nowhere, until a better one follows."""
        network, replica = strict
        key = network.node_keys["B", "device-b"]
        worse = network.custody("device-b", "read-back", time=GENESIS_TIME + 1)
        assert apply(strict, network.put(worse), network.evidence("same block")) == ["valid", "valid"]
        with pytest.raises(RegistryError, match="is read-back, the channel asks for probed"):
            replica.registry.node_key("B", key.id, device="device-b", height=2, time=replica.time)
        with pytest.raises(BlockRefusedError, match="is read-back") as caught:
            network.block(replica, [network.evidence("x")])
        assert caught.value.code == "bad-endorsement"
        assert replica.registry.devices_in_force("B", height=2, time=replica.time) == ()
        better = network.custody("device-b", "attested", time=GENESIS_TIME + 2)
        assert apply(strict, network.put(better)) == ["valid"]
        assert apply(strict, network.evidence("y")) == ["valid"]

    @pytest.mark.requirement("K-5")
    def test_a_center_below_it(self, strict: tuple[Network, Replica]) -> None:
        """A center below the tier signs what puts that right, and nothing else."""
        network, replica = strict
        worse = network.custody("device-a", "claimed", time=GENESIS_TIME + 1)
        assert apply(strict, network.put(worse)) == ["valid"]
        with pytest.raises(BlockRefusedError) as caught:
            network.block(replica, [network.evidence("x")])
        assert caught.value.code == "centers-expired"
        better = network.custody("device-a", "probed", time=GENESIS_TIME + 2)
        assert apply(strict, network.put(better)) == ["valid"]
        assert apply(strict, network.evidence("y")) == ["valid"]

    @pytest.mark.requirement("K-5")
    def test_it_can_be_raised(self, network: Network, replica: Replica, commit: Commit) -> None:
        """When a channel asks for more, keys that were registered before count once they reach it."""
        for device in ("device-a", "device-b"):
            assert commit(network.put(network.custody(device, "probed"))) == ["valid"]
        channel = msgspec.structs.replace(network.entries()[0], least_tier="probed")
        assert commit(network.put(channel)) == ["valid"]
        assert commit(network.evidence("x")) == ["valid"]
        c = network.node_keys["C", "device-c"]
        with pytest.raises(RegistryError, match="is claimed"):
            replica.registry.node_key("C", c.id, device="device-c", height=5, time=replica.time)


class TestPolicies:
    """A policy that asks for a tier."""

    @pytest.mark.requirement("K-5", "E-5")
    def test_votes_below_it_do_not_count(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A vote by a key below the policy's tier is no vote for it; for another policy it is one."""
        policy = EndorsementPolicy("evidence", "OutOf(2, 'A', 'B', 'C')", least_tier="probed")
        tiers: dict[str, Tier] = {"device-a": "probed", "device-b": "read-back", "device-c": "attested"}
        for device, tier in tiers.items():
            assert commit(network.put(network.custody(device, tier))) == ["valid"]
        assert commit(network.put(policy)) == ["valid"]
        wish = network.evidence("x")
        with pytest.raises(BlockRefusedError, match="is not met by A") as caught:
            network.block(replica, [wish], network.endorse([wish], by=("A", "B"), height=4))
        assert caught.value.code == "policy-not-met"
        assert commit(network.issue("GOLD", {"c1": 1})) == ["valid"]
        replica.apply(network.block(replica, [wish], network.endorse([wish], by=("A", "B", "C"), height=5)).encode())

    @pytest.mark.requirement("K-5", "E-6")
    def test_nobody_is_asked_in_vain(self, network: Network, replica: Replica, commit: Commit) -> None:
        """For asking, the rule names the holders of sufficient keys alone, and says of each key whether it counts."""
        policy = EndorsementPolicy("evidence", "OutOf(1, 'A', 'B')", least_tier="probed")
        assert commit(network.put(policy), network.put(network.custody("device-a", "probed"))) == ["valid", "valid"]
        rule = replica.registry.rule_at("evidence.record", height=2, time=replica.time)
        assert rule is not None
        assert rule.holders == {"A": ("device-a",), "B": ()}
        counts = [rule.counts(key.id) for key in (*network.node_keys.values(), FRESH)]
        assert counts == [True, False, False, False]

    @pytest.mark.requirement("K-5", "E-5")
    @pytest.mark.parametrize(("distinct", "routing"), [(True, None), (False, Replicated())])
    def test_it_must_be_satisfiable(self, network: Network, commit: Commit, distinct: bool, routing: Any) -> None:
        """A policy that the registered keys can never satisfy, for want of tiers, is not taken."""
        options = {"routing": routing} if routing else {}
        policy = EndorsementPolicy(
            "evidence", "AND('A', 'B')", distinct_devices=distinct, least_tier="probed", **options
        )
        assert commit(network.put(network.custody("device-a", "probed")), network.put(policy)) == [
            "valid",
            "never-satisfied",
        ]
        assert commit(network.put(network.custody("device-b", "probed"), policy)) == ["valid"]
        worse = network.custody("device-b", "claimed", time=GENESIS_TIME + 1)
        assert commit(network.put(worse), network.put(policy)) == ["valid", "never-satisfied"]


def _twice(envelope: Envelope) -> bytes:
    return canonical.encode(msgspec.structs.replace(envelope, signatures=envelope.signatures * 2))


def _altered(envelope: Envelope) -> bytes:
    payload = envelope.payload.replace(b'"tier":"read-back"', b'"tier":"attested"')
    assert payload != envelope.payload
    return canonical.encode(msgspec.structs.replace(envelope, payload=payload))
