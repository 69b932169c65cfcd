"""Policies in full: distinct devices in blocks and receipts, contradicting votes, and what the registry refuses."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledger.errors import BlockRefusedError, DivergedError, RegistryError
from ledger.receipt import Receipt, ReceiptError, make_receipt, verify_receipt
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical, endorsement
from protocol.endorsement import Vote, approval
from protocol.registry import (
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    Partitioned,
    Replicated,
    Rotation,
    Routing,
    Token,
    key_of,
)
from protocol.transaction import Transaction
from tests.chain_builder import Network, approvals

TWO = "OutOf(2, 'A', 'B', 'C')"
Place = tuple[str, str]


class World:
    """A replicated network with its replica, and blocks in which chosen nodes vote on chosen devices."""

    def __init__(self, path: Path) -> None:
        self.network = Network(replicated=True)
        self.genesis = self.network.genesis()
        self.replica = Replica.create(ChainStore.create(url_of(path)), self.genesis)

    def device(self, name: str, serial: str, *group: str, model: str = "for tests") -> Device:
        """A device's entry with another token."""
        return Device(name, self.network.devices[name].spki, Token("software", model, serial, group))

    def put(self, *entries: Entry) -> str:
        """The outcome of a registry transaction."""
        block = self.network.block(self.replica, [self.network.put(*entries)])
        return self.replica.apply(block.encode()).outcomes[0].code

    def why_not(self, *entries: Entry) -> str:
        """The outcome of a registry transaction that changes nothing."""
        root = self.replica.registry.root
        code = self.put(*entries)
        assert root == self.replica.registry.root
        return code

    def vote(self, wish: Transaction, *places: Place) -> None:
        """The next block, in which nodes approve `wish` on devices; raises what the replica says to it."""
        index_of = approvals(self.network.name, [wish], "ABC")
        height = self.replica.height
        trees = [
            self.network.tree(device, [approval(self.network.name, wish.id, node)], height=height).for_block(index_of)
            for node, device in places
        ]
        empty = self.network.block(self.replica, [])
        block = self.network.rebuilt(empty, transactions=[wish], trees=trees)
        with pytest.raises(DivergedError):  # the votes are good: only the outcomes are those of an empty block
            self.replica.check(block)
        self.replica.apply(self.network.block(self.replica, [wish], trees).encode())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Nodes A, B, C, each with keys on devices a, b, c; two of three must approve, each on a token of its own."""
    made = World(tmp_path / "chain.db")
    assert made.put(EndorsementPolicy("evidence", TWO, Replicated(), distinct_devices=True)) == "valid"
    yield made
    made.replica.store.close()


def refused(world: World, wish: Transaction, *places: Place) -> str:
    """Why a block is refused."""
    with pytest.raises(BlockRefusedError) as caught:
        world.vote(wish, *places)
    assert caught.value.code == "policy-not-met"
    assert caught.value.transaction == wish.id
    return str(caught.value)


class TestBlocks:
    """Step 10 with distinct devices."""

    @pytest.mark.requirement("E-5", "E-14", "E-22")
    def test_one_device_counts_once(self, world: World) -> None:
        """Two nodes that voted on one device are too few, and the block says who voted where."""
        wish = world.network.evidence("x")
        said = refused(world, wish, ("A", "device-a"), ("B", "device-a"))
        assert f"{TWO} is not met by A, B: each node needs a token of its own" in said
        assert "they voted A on device-a; B on device-a" in said
        world.vote(wish, ("A", "device-a"), ("B", "device-b"))

    @pytest.mark.requirement("E-5", "E-7", "E-22")
    def test_votes_are_matched_with_devices(self, world: World) -> None:
        """A node with votes on two devices leaves the one to the node that has no other."""
        wish = world.network.evidence("x")
        world.vote(wish, ("A", "device-a"), ("A", "device-b"), ("B", "device-a"))

    @pytest.mark.requirement("E-5", "E-22")
    def test_two_slots_of_one_box_count_once(self, world: World) -> None:
        """Devices with the same maker, model and serial are one token; another model is another token."""
        assert world.put(world.device("device-b", "a")) == "valid"
        wish = world.network.evidence("x")
        refused(world, wish, ("A", "device-a"), ("B", "device-b"))
        world.vote(wish, ("A", "device-a"), ("B", "device-c"))
        assert world.put(world.device("device-b", "a", model="other")) == "valid"
        world.vote(world.network.evidence("y"), ("A", "device-a"), ("B", "device-b"))

    @pytest.mark.requirement("E-22")
    def test_without_distinct_devices_one_device_is_enough(self, world: World) -> None:
        """A policy that does not ask for distinct devices takes all nodes' votes from one."""
        assert world.put(EndorsementPolicy("evidence", TWO, Replicated())) == "valid"
        world.vote(world.network.evidence("x"), ("A", "device-a"), ("B", "device-a"))

    @pytest.mark.requirement("E-15")
    @pytest.mark.parametrize(
        ("text", "enough", "too_few"),
        [
            ("ALL", "ABC", "AB"),
            ("MAJORITY", "ABC", "AB"),
            ("MAJORITY(1/2)", "BC", "B"),
            ("OR(AND('A', 'B'), MAJORITY)", "AB", "BC"),
            ("AND('C', MAJORITY(1/2, 'A', 'B', 'C'))", "BC", "AB"),
        ],
    )
    def test_the_vote_rule_is_part_of_the_policy(self, world: World, text: str, enough: str, too_few: str) -> None:
        """All, more than a share, and their nestings decide over a block, with distinct devices too."""
        assert world.put(EndorsementPolicy("evidence", text, Replicated(), distinct_devices=True)) == "valid"
        wish = world.network.evidence("x")
        refused(world, wish, *((node, f"device-{node.lower()}") for node in too_few))
        world.vote(wish, *((node, f"device-{node.lower()}") for node in enough))


def read(data: bytes) -> Receipt:
    """A receipt as a value, to be changed."""
    return msgspec.json.decode(data, type=Receipt)


def unproven(receipt: Receipt, genesis: bytes) -> ReceiptError:
    """The refusal of a receipt."""
    with pytest.raises(ReceiptError) as caught:
        verify_receipt(canonical.encode(receipt), genesis)
    return caught.value


class TestReceipts:
    """What a receipt must show."""

    @pytest.mark.requirement("K-15", "E-22")
    def test_it_proves_the_devices(self, world: World) -> None:
        """A receipt under a policy of distinct devices shows the entries of the devices that voted, and needs them."""
        wish = world.network.evidence("x")
        world.vote(wish, ("A", "device-a"), ("B", "device-b"))
        data = make_receipt(world.replica.store, wish.id)
        report = verify_receipt(data, world.genesis)
        assert f"A, B endorsed it, which satisfies the policy {TWO}, each on a token of its own" in report.steps
        receipt = read(data)
        shown = {proven.key for proven in receipt.registry}
        assert {"device/device-a", "device/device-b"} <= shown
        rest = tuple(proven for proven in receipt.registry if proven.key != "device/device-b")
        error = unproven(msgspec.structs.replace(receipt, registry=rest), world.genesis)
        assert (error.step, "were left out" in str(error)) == ("endorsements", True)

    @pytest.mark.requirement("K-15", "E-22")
    def test_votes_on_one_device_prove_nothing(self, world: World) -> None:
        """Endorsements taken out until one device is left are noticed."""
        wish = world.network.evidence("x")
        world.vote(wish, ("A", "device-a"), ("A", "device-b"), ("B", "device-a"))
        receipt = read(make_receipt(world.replica.store, wish.id))
        one = tuple(each for each in receipt.endorsements if endorsement.decode_head(each.head).device == "device-a")
        assert [each.vote.node for each in one] == ["A", "B"]
        error = unproven(msgspec.structs.replace(receipt, endorsements=one), world.genesis)
        assert "each node needs a token of its own" in str(error)

    @pytest.mark.requirement("K-15")
    def test_the_devices_that_voted_are_shown_always(self, world: World) -> None:
        """Without distinct devices too: whether their keys count stands in the entries of the devices."""
        assert world.put(EndorsementPolicy("evidence", TWO)) == "valid"
        wish = world.network.evidence("x")
        world.vote(wish, ("A", "device-a"), ("B", "device-b"))
        receipt = read(make_receipt(world.replica.store, wish.id))
        shown = {proven.key for proven in receipt.registry}
        assert {"device/device-a", "device/device-b"} <= shown

    @pytest.mark.requirement("E-22")
    @pytest.mark.parametrize(
        ("node", "said"),
        [
            ("A", "node A approved it on device-a and rejected it on device-c: it counts as refusing"),
            ("C", "node C rejected it on device-c"),
        ],
    )
    def test_a_verifier_that_is_shown_a_no(self, world: World, node: str, said: str) -> None:
        """A signed reject beside the approvals is no proof: who said both counts as refusing."""
        wish = world.network.evidence("x")
        world.vote(wish, ("A", "device-a"), ("B", "device-b"))
        receipt = read(make_receipt(world.replica.store, wish.id))
        vote = Vote(world.network.name, wish.id, node, "reject", "already-recorded")
        tree = world.network.tree("device-c", [vote], height=1)
        (no,) = endorsement.endorsements(tree, [vote.leaf()], [vote])
        both = msgspec.structs.replace(receipt, endorsements=(*receipt.endorsements, no))
        error = unproven(both, world.genesis)
        assert (error.step, str(error)) == ("endorsements", f"endorsements: {said}")
        forged = msgspec.structs.replace(no, head=receipt.endorsements[0].head)
        error = unproven(msgspec.structs.replace(both, endorsements=(forged,)), world.genesis)
        assert "rejected" not in str(error)


class TestRule:
    """Judging votes by device."""

    @pytest.mark.requirement("E-22")
    @pytest.mark.parametrize("distinct", [False, True])
    def test_two_devices_of_one_node_disagree(self, world: World, distinct: bool) -> None:
        """The node counts as refusing, with and without distinct devices, for now and for what may still come."""
        entry = EndorsementPolicy("x", "AND('A', 'B')", Replicated(), distinct_devices=distinct)
        rule = world.replica.registry.rule_of(entry)
        votes = {"A": ("device-a", "device-c"), "B": ("device-b",)}
        assert rule.evaluate(votes).satisfied
        result = rule.evaluate(votes, ("A",))
        assert (result.satisfied, result.possible, result.refused) == (False, False, ("A",))

    @pytest.mark.requirement("E-7")
    def test_another_vote_on_another_device_is_possible(self, world: World) -> None:
        """Two nodes that voted on one device can still satisfy the policy: each holds keys on others."""
        rule = world.replica.registry.rule("evidence.record")
        assert rule is not None
        result = rule.evaluate({"A": ("device-a",), "B": ("device-a",)})
        assert (result.satisfied, result.possible) == (False, True)

    @pytest.mark.requirement("E-5", "E-7")
    def test_nodes_and_devices_are_chosen(self, world: World) -> None:
        """Preferred nodes and devices come first, none to spare, each with a device of its own where that is asked."""
        rule = world.replica.registry.rule("evidence.record")
        assert rule is not None
        devices = ("device-c", "device-a")
        assert rule.choose({"B": devices, "A": devices, "C": devices}) == {"B": "device-c", "A": "device-a"}
        assert rule.choose({"B": devices[:1], "A": devices[:1], "C": ()}) is None
        shared = world.replica.registry.rule_of(EndorsementPolicy("x", TWO, Replicated()))
        assert shared.choose({"B": devices, "A": devices}) == {"B": "device-c", "A": "device-c"}

    def test_an_unknown_device(self, world: World) -> None:
        """A vote on a device that the registry does not have is an error, never a token of its own."""
        rule = world.replica.registry.rule("evidence.record")
        assert rule is not None
        with pytest.raises(RegistryError, match="has no device/device-x"):
            rule.evaluate({"A": ("device-a",), "B": ("device-x",)})


def policy(text: str, routing: Routing, *, distinct: bool = False) -> EndorsementPolicy:
    """A policy for evidence."""
    return EndorsementPolicy("evidence", text, routing, distinct_devices=distinct)


AB_THEN_C = Rotation((("device-a", "device-b"), ("device-c",)))


class TestRegistration:
    """What the registry refuses."""

    @pytest.mark.requirement("E-5", "E-7", "E-8")
    @pytest.mark.parametrize(
        ("entry", "code"),
        [
            (policy("ALL", AB_THEN_C), "valid"),
            (policy("ALL", Rotation((("device-a",), ("device-x",)))), "unknown-device"),
            (policy("ALL", Rotation((("device-a", "device-a"),))), "inconsistent"),
            (policy(TWO, AB_THEN_C, distinct=True), "never-satisfied"),
            (policy(TWO, Rotation((("device-a", "device-b"),)), distinct=True), "valid"),
            (policy("ALL", Rotation((("device-a", "device-b"),)), distinct=True), "never-satisfied"),
            (policy("ALL", Replicated(), distinct=True), "valid"),
            (policy("ALL", Partitioned(), distinct=True), "valid"),
        ],
    )
    def test_what_devices_can_serve(self, world: World, entry: EndorsementPolicy, code: str) -> None:
        """Every group of a rotation, and all devices otherwise, must be able to satisfy the policy."""
        assert world.put(entry) == code

    @pytest.mark.requirement("E-7", "E-8")
    @pytest.mark.parametrize(
        ("routing", "text", "why"),
        [
            (Replicated(), "ALL", "all devices together can never satisfy ALL: no keys of D"),
            (
                Rotation((("device-a", "device-b", "device-c"), ("device-b", "device-c"))),
                "AND('A', 'B')",
                "group 2 of the rotation (device-b, device-c) can never satisfy AND('A', 'B'): no keys of A",
            ),
        ],
    )
    def test_the_reason(self, routing: Routing, text: str, why: str) -> None:
        """A policy that could never be satisfied is refused with the group and the nodes whose keys it lacks."""
        network = Network()
        entries = {key_of(entry): canonical.encode(entry) for entry in (*network.entries(), Node("D", ()))}
        assert RegistryView(entries).rule_of(EndorsementPolicy("x", text, routing)).never() == why

    @pytest.mark.requirement("E-5", "E-8")
    def test_keys_that_a_policy_needs_stay(self, world: World) -> None:
        """Taking away the last key that a policy can be served with is refused, unless the policy changes with it."""
        assert world.put(policy("ALL", AB_THEN_C)) == "valid"
        node = world.network.node_entry("A")
        less = msgspec.structs.replace(node, keys=tuple(key for key in node.keys if key.device != "device-c"))
        assert world.why_not(less) == "never-satisfied"
        assert world.put(less, policy("ALL", Replicated())) == "valid"

    @pytest.mark.requirement("E-5")
    def test_a_policy_that_would_take_too_long(self, world: World) -> None:
        """With distinct devices, what could not be judged in time is refused; without them it is taken."""
        text = "AND(" + ", ".join(f"OutOf(1, {rules})" for rules in ["'A', AND('B', 'C')"] * 9) + ")"
        assert world.why_not(policy(text, Partitioned(), distinct=True)) == "limit-exceeded"
        assert world.put(policy(text, Partitioned())) == "valid"

    @pytest.mark.requirement("K-9")
    @pytest.mark.parametrize(
        ("serial", "group", "code"),
        [
            ("9", ("10", "11"), "valid"),
            ("b", (), "valid"),
            ("9", ("10", "10"), "inconsistent"),
            ("9", ("b", "10"), "inconsistent"),
            ("b", ("10",), "inconsistent"),
            ("c", (), "inconsistent"),
            ("c2", (), "inconsistent"),
            ("9", ("c2",), "inconsistent"),
        ],
    )
    def test_a_group_belongs_to_one_device(self, world: World, serial: str, group: tuple[str, ...], code: str) -> None:
        """No serial of a high-availability group stands at another device."""
        assert world.put(policy(TWO, Partitioned()), world.device("device-c", "c", "c1", "c2")) == "valid"
        assert world.put(world.device("device-a", serial, *group)) == code


def test_the_same_rule_is_given_again(world: World) -> None:
    """A registry makes each rule once; all kinds that a policy covers share it."""
    view = world.replica.registry
    assert view.rule("evidence.record") is view.rule("evidence.other")
    assert view.rule("loans.take") is None
