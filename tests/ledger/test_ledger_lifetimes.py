"""Keys begin and end, by height and by block time, for every holder and at every replica alike (requirement K-13)."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger.errors import AuthorizationError, BadCopyError, BlockRefusedError, RegistryError
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.registry import Administrator, Center, Client, Device, Entry, Lifetime, Node, NodeKey, Registrar, Token
from tests import software_keys
from tests.chain_builder import FOR_EVER, GENESIS_TIME, YEAR, Network

WHILE = 20 * 60_000
END = GENESIS_TIME + WHILE
FRESH = software_keys.ecdsa("a fresh key").spki
Make = Callable[..., Replica]
Commit = Callable[..., list[str]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Make]:
    """Makes replicas of a network whose entries are changed first: those given, by name, are put beside or instead."""
    made: list[Replica] = []

    def make(network: Network, *changed: Entry) -> Replica:
        entries = {(type(each), getattr(each, "name", "")): each for each in (*network.entries(), *changed)}
        store = ChainStore.create(url_of(tmp_path / f"chain-{len(made)}.db"))
        made.append(Replica.create(store, network.genesis(entries.values())))
        return made[-1]

    yield make
    for replica in made:
        replica.store.close()


def refused(replica: Replica, network: Network, *transactions: Any, time: int) -> str:
    """The code with which a block with these transactions is refused."""
    with pytest.raises(BlockRefusedError) as caught:
        network.block(replica, transactions, time=time)
    return caught.value.code


def channel(network: Network, **changed: Any) -> Entry:
    """The channel's entry with fields replaced."""
    return msgspec.structs.replace(network.entries()[0], **changed)


class TestBounds:
    """From when until when."""

    @pytest.mark.requirement("K-13")
    @pytest.mark.parametrize(
        ("height", "time", "why"),
        [
            (5, 100, ""),
            (9, 199, ""),
            (4, 150, "counts from height 5 on"),
            (10, 150, "counted up to height 9"),
            (7, 99, "is not valid yet"),
            (7, 200, "has expired"),
        ],
    )
    def test_each_bound(self, height: int, time: int, why: str) -> None:
        """The first height and time are inside, as is the last height; the end's time is outside."""
        assert why == Lifetime(since=5, last=9, not_before=100, until=200).lapse(height, time)

    @pytest.mark.requirement("K-13")
    def test_no_instant_is_without_a_decision(self) -> None:
        """Two lifetimes that meet share neither a height nor an instant, and leave none out."""
        first, second = Lifetime(last=9, until=200), Lifetime(since=10, not_before=200)
        for height in (9, 10):
            assert bool(first.lapse(height, 0)) != bool(second.lapse(height, 200))
        for time in (199, 200):
            assert bool(first.lapse(0, time)) != bool(second.lapse(10, time))


class TestClients:
    """A client's key."""

    @pytest.mark.requirement("K-13", "E-3")
    def test_it_ends_by_block_time(self, begin: Make, network: Network) -> None:
        """In a block before the end its transaction counts, in one of the end's time it has no place."""
        client = Client("c1", network.clients["c1"].spki, "", until=END)
        replica = begin(network, client)
        wish = network.evidence("late")
        assert refused(replica, network, wish, time=END) == "client-expired"
        replica.apply(network.block(replica, [wish], time=END - 1).encode())
        assert replica.height == 1

    @pytest.mark.requirement("K-13")
    def test_it_begins(self, begin: Make, network: Network) -> None:
        """Before its time has come, it makes no transaction."""
        replica = begin(network, Client("c1", network.clients["c1"].spki, "", not_before=END))
        assert refused(replica, network, network.evidence("early"), time=END - 1) == "client-expired"
        with pytest.raises(AuthorizationError, match="is not valid yet"):
            replica.authorize(network.evidence("early"))

    @pytest.mark.requirement("K-13")
    def test_what_it_made_before_stays(self, begin: Make, network: Network) -> None:
        """Its blocks of before are verified after its end by a replica that starts anew."""
        client = Client("c1", network.clients["c1"].spki, "", until=END)
        replica, later = begin(network, client), begin(network, client)
        blocks = []
        for subject, time in (("a", END - 2), ("b", END - 1)):
            blocks.append(network.block(replica, [network.evidence(subject)], time=time).encode())
            replica.apply(blocks[-1])
        blocks.append(network.block(replica, [network.evidence("c", client="c2")], time=END + 1).encode())
        replica.apply(blocks[-1])
        for block in blocks:
            later.apply(block)
        assert later.store.digest() == replica.store.digest()

    @pytest.mark.requirement("K-13")
    def test_all_replicas_refuse_the_same_block(self, begin: Make, network: Network) -> None:
        """A center that puts an expired client's transaction into a block is refused by each replica at that height."""
        honest = begin(network)
        replicas = [begin(network, Client("c1", network.clients["c1"].spki, "", until=END)) for _ in range(2)]
        good = network.block(honest, [network.evidence("x")], time=END)
        for replica in replicas:
            forged = network.forge(good, previous=replica.authentication)
            with pytest.raises(BlockRefusedError) as caught:
                replica.apply(forged.encode())
            assert (caught.value.code, replica.height) == ("client-expired", 0)

    @pytest.mark.requirement("E-1", "K-13")
    def test_the_registrar_sets_it(self, network: Network, replica: Replica, commit: Commit) -> None:
        """`add_client` takes the certificate's lifetime; without one there is no end, as before."""
        for name, lifetime in (("c3", {"not_before": 5, "until": END}), ("c4", {})):
            arguments = {"name": name, "key": base64.b64encode(FRESH).decode(), "certificate": "ab" * 32, **lifetime}
            wish = network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
            assert commit(wish) == ["valid"]
        entry, other = replica.registry.client_entry("c3"), replica.registry.client_entry("c4")
        assert entry is not None
        assert other is not None
        assert (entry.not_before, entry.until, other.until) == (5, END, FOR_EVER)


class TestNodes:
    """A node's key, and that of the device it lives on."""

    @pytest.mark.requirement("K-13", "E-9")
    @pytest.mark.parametrize(
        ("lifetime", "why"),
        [
            ({"until": END}, "of node/A has expired"),
            ({"not_before": END + 1}, "of node/A is not valid yet"),
            ({"since": 2}, "of node/A counts from height 2 on"),
            ({"last": 0}, "of node/A counted up to height 0"),
        ],
    )
    def test_its_votes_are_refused(self, begin: Make, network: Network, lifetime: dict[str, int], why: str) -> None:
        """A vote by a key outside its lifetime makes a block bad, whoever cut it."""
        key = NodeKey(network.node_keys["A", "device-a"].spki, "device-a", **lifetime)
        replica = begin(network, Node("A", (key,)))
        with pytest.raises(BlockRefusedError, match=why) as caught:
            network.block(replica, [network.evidence("x")], time=END)
        assert caught.value.code == "bad-endorsement"
        assert replica.registry.devices_in_force("A", height=1, time=END) == ()
        others = network.evidence("y")
        replica.apply(network.block(replica, [others], network.endorse([others], by=("B", "C")), time=END).encode())

    @pytest.mark.requirement("K-13")
    def test_a_device_that_has_expired(self, begin: Make, network: Network) -> None:
        """When a device's identity ends, the keys on it end with it."""
        device = Device("device-a", network.devices["device-a"].spki, Token("software", "for tests", "a"), until=END)
        replica = begin(network, device)
        view, key = replica.registry, network.node_keys["A", "device-a"]
        assert view.node_key("A", key.id, device="device-a", height=1, time=END - 1) == key.public
        with pytest.raises(RegistryError, match=r"device device-a, where key .* of node/A lives, has expired"):
            view.node_key("A", key.id, device="device-a", height=1, time=END)
        assert view.device_lapse("device-a", height=1, time=END) == "device device-a has expired"
        assert view.device_lapse("device-x", height=1, time=END) == "the registry has no device/device-x"

    @pytest.mark.requirement("K-13", "E-6")
    def test_nobody_is_asked_in_vain(self, begin: Make, network: Network) -> None:
        """A rule to be carried out at some height and time names those holders alone whose keys count then."""
        key = NodeKey(network.node_keys["A", "device-a"].spki, "device-a", since=3, last=9, until=END)
        view = begin(network, Node("A", (key,))).registry
        inside = view.rule_at("evidence.record", height=3, time=END - 1)
        assert inside is not None
        assert inside.holders == {"A": ("device-a",), "B": ("device-b",), "C": ("device-c",)}
        assert inside is view.rule_at("evidence.record", height=9, time=END - 2)
        for height, time in ((2, END - 1), (10, END - 1), (3, END)):
            outside = view.rule_at("evidence.record", height=height, time=time)
            assert outside is not None
            assert outside.holders == {"A": (), "B": ("device-b",), "C": ("device-c",)}
        assert view.rule_at("loans.take", height=1, time=1) is None
        assert view.lapses("A", height=3, time=END - 1) == {}
        assert "has expired" in view.lapses("A", height=3, time=END)["device-a"]


class TestRegistrar:
    """The CA's key."""

    @pytest.mark.requirement("K-13", "E-1")
    def test_it_ends(self, begin: Make, network: Network) -> None:
        """An expired CA adds no client."""
        replica = begin(network, Registrar("ca", network.registrar.spki, b"", until=END))
        arguments = {"name": "c3", "key": base64.b64encode(FRESH).decode(), "certificate": "ab" * 32}
        wish = network.transaction("registry", "add_client", arguments, client="ca", signers=[network.registrar])
        assert refused(replica, network, wish, time=END) == "not-authorized"
        assert list(replica.registry.registrars_in_force(height=1, time=END - 1)) == ["ca"]
        assert replica.registry.registrars_in_force(height=1, time=END) == {}


class TestAdministrators:
    """Those who change the registry."""

    @pytest.mark.requirement("K-13", "S-2")
    def test_an_expired_one_does_not_count(self, begin: Make, network: Network) -> None:
        """While enough others are within their lifetimes, who is not has no place among the signers."""
        first = Administrator("admin-1", network.administrators["admin-1"].spki, until=END)
        replica = begin(network, first)
        wish = network.put(Client("c3", FRESH, ""))
        assert refused(replica, network, wish, time=END) == "not-authorized"
        wish = network.put(Client("c3", FRESH, ""), administrators=["admin-2", "admin-3"])
        replica.apply(network.block(replica, [wish], time=END).encode())

    @pytest.mark.requirement("K-13", "S-2")
    def test_time_locks_nobody_out(self, begin: Make, network: Network) -> None:
        """When too few are within their lifetimes, all count that are not revoked: so they can put it right."""
        names = list(network.administrators)
        expired = [Administrator(name, network.administrators[name].spki, until=END) for name in names[:2]]
        replica = begin(network, *expired)
        assert set(replica.registry.administrators_in_force(height=1, time=END - 1)) == set(names)
        assert set(replica.registry.administrators_in_force(height=1, time=END)) == set(names)
        wish = network.put(*(msgspec.structs.replace(each, until=END + YEAR) for each in expired))
        replica.apply(network.block(replica, [wish], time=END).encode())
        assert replica.registry.administrators_in_force(height=2, time=END).keys() == set(names)


class TestCenters:
    """Who signs headers."""

    @pytest.fixture
    def replica(self, begin: Make, network: Network) -> Replica:
        """A network whose only center ends soon."""
        return begin(network, self.center(network))

    @staticmethod
    def center(network: Network, **lifetime: int) -> Center:
        """That center."""
        return Center("center-1", network.center.spki, "device-a", **{"until": END, **lifetime})

    @pytest.mark.requirement("K-13", "M-4")
    def test_an_expired_one_signs_no_transactions(self, network: Network, replica: Replica) -> None:
        """A header by an expired center is no copy of any block, for every replica alike."""
        good = network.block(replica, [network.evidence("x")], time=END - 1)
        late = network.forge(good, time=END)
        with pytest.raises(BadCopyError, match="signed"):
            replica.apply(late.encode())
        replica.apply(good.encode())
        assert (replica.height, replica.time) == (1, END - 1)

    @pytest.mark.requirement("K-13")
    def test_it_cuts_no_such_block(self, network: Network, replica: Replica) -> None:
        """An expired center knows that it may cut blocks of registry transactions alone."""
        wish, repair = network.evidence("x"), network.put(self.center(network, until=END + YEAR))
        assert not replica.takes_repairs_only(END - 1)
        assert replica.takes_repairs_only(END)
        assert refused(replica, network, wish, time=END) == "centers-expired"
        assert refused(replica, network, repair, wish, time=END) == "centers-expired"
        assert refused(replica, network, time=END) == "centers-expired"

    @pytest.mark.requirement("K-13")
    def test_it_signs_what_puts_it_right(self, network: Network, replica: Replica) -> None:
        """A block of registry transactions alone is accepted under its header, and the network goes on."""
        repair = network.put(self.center(network, until=END + YEAR))
        replica.apply(network.block(replica, [repair], time=END).encode())
        replica.apply(network.block(replica, [network.evidence("x")], time=END).encode())
        assert replica.height == 2

    @pytest.mark.requirement("K-13")
    def test_an_empty_block_puts_nothing_right(self, network: Network, replica: Replica) -> None:
        """An expired center's header over a block without transactions is refused."""
        empty = network.forge(network.block(replica, [], time=END - 1), time=END)
        with pytest.raises(BadCopyError):
            replica.apply(empty.encode())

    @pytest.mark.requirement("K-13")
    def test_it_is_not_taken_while_others_suffice(self, begin: Make, network: Network) -> None:
        """While enough centers are in force, an expired one signs nothing at all."""
        other = software_keys.ecdsa("center-2")
        replica = begin(network, self.center(network), Center("center-2", other.spki, "device-b"))
        repair = network.put(self.center(network, until=END + YEAR))
        block = network.block(replica, [repair], time=END)
        with pytest.raises(BadCopyError):
            replica.apply(block.encode())
        replica.apply(network.sign(block, by=[other]).encode())
        assert list(replica.registry.centers_in_force(height=2, time=END)) == ["center-1", "center-2"]


class TestEntries:
    """What may be registered."""

    @pytest.mark.requirement("K-13")
    @pytest.mark.parametrize(
        "lifetime",
        [{"not_before": 7, "until": 7}, {"not_before": 8, "until": 7}, {"since": 9, "last": 8}, {"until": 0}],
    )
    def test_a_lifetime_without_an_instant(self, network: Network, commit: Commit, lifetime: dict[str, int]) -> None:
        """A key that would never count is not registered, whoever holds it."""
        for entry in (
            Client("c3", FRESH, "", **lifetime),
            Administrator("admin-4", FRESH, **lifetime),
            Registrar("ca-2", FRESH, b"", **lifetime),
            Center("center-2", FRESH, "device-a", **lifetime),
            Device("device-d", FRESH, Token("software", "for tests", "d"), **lifetime),
            Node("D", (NodeKey(FRESH, "device-a", **lifetime),)),
        ):
            assert commit(network.put(entry)) == ["bad-lifetime"]

    @pytest.mark.requirement("K-13")
    def test_every_key_has_an_end(self, begin: Make, network: Network) -> None:
        """Where the channel sets a longest lifetime, a key that would end later is not registered, however it comes."""
        network.until = END
        replica = begin(network, channel(network, longest_lifetime=YEAR))

        def commit(*transactions: Any) -> list[str]:
            checked = replica.apply(network.block(replica, transactions, time=GENESIS_TIME).encode())
            return [outcome.code for outcome in checked.outcomes]

        too_late = GENESIS_TIME + YEAR + 1
        for until, code in ((FOR_EVER, "no-end"), (too_late, "no-end"), (too_late - 1, "valid")):
            arguments = {"name": "c3", "key": base64.b64encode(FRESH).decode(), "certificate": "ab" * 32}
            added = network.transaction(
                "registry", "add_client", {**arguments, "until": until}, client="ca", signers=[network.registrar]
            )
            new = software_keys.ecdsa(f"new {until}")
            rotated = network.rotate(
                "node/A", network.node_keys["A", "device-a"], new, since=replica.height + 2, until=until
            )
            put = network.put(Node("D", (NodeKey(software_keys.ecdsa(f"d {until}").spki, "device-a", until=until),)))
            assert commit(added, rotated, put) == [code] * 3

    @pytest.mark.requirement("K-13")
    def test_a_rule_that_comes_later(self, network: Network, commit: Commit) -> None:
        """Entries that were there before the rule may be changed in other ways without an end."""
        assert commit(network.put(channel(network, longest_lifetime=YEAR))) == ["valid"]
        node = network.node_entry("A")
        ending = NodeKey(FRESH, "device-b", until=GENESIS_TIME + WHILE)
        assert commit(network.put(Node("A", (*node.keys, ending)))) == ["valid"]
        assert commit(network.put(Node("A", (*node.keys, msgspec.structs.replace(ending, until=FOR_EVER))))) == [
            "no-end"
        ]


@pytest.mark.requirement("K-13")
def test_when_keys_end(network: Network, replica: Replica, commit: Commit) -> None:
    """All keys are listed with their ends, soonest first, and those that were revoked are left out."""
    a = network.node_keys["A", "device-a"]
    soon = NodeKey(a.spki, "device-a", until=END, last=70)
    assert commit(
        network.put(Node("A", (soon,)), Client("c2", network.clients["c2"].spki, "", until=END + 1)),
        network.put(network.revocation("client/c1", network.clients["c1"])),
    ) == ["valid", "valid"]
    first, second, *rest = replica.registry.expiries()
    assert (first.holder, first.key_id, first.device, first.last, first.until) == ("node/A", a.id, "device-a", 70, END)
    assert (second.holder, second.device, second.until) == ("client/c2", "", END + 1)
    assert {each.until for each in rest} == {FOR_EVER}
    assert [each.holder for each in rest] == sorted(each.holder for each in rest)
    assert {each.holder.partition("/")[0] for each in rest} == {
        "administrator",
        "center",
        "device",
        "node",
        "registrar",
    }
    devices = [(each.device, each.key_id) for each in rest if each.holder == "device/device-a"]
    assert devices == [("device-a", network.devices["device-a"].id)]
