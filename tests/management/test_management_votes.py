"""Votes of several devices: who contradicts itself refuses, and distinct devices are asked until they suffice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from management.alarms import Alarms
from management.answers import VerifiedAnswer
from management.device_client import Ask
from management.endorsing import Endorsing, Patience
from management.errors import DeviceUnreachableError
from management.metrics import Metrics
from management.outcome import Refusal
from management.pace import NO_FIGURES, Figures
from management.pool import Cast, CheckedTree, Pool, Record
from management.replicated import ReplicatedStrategy
from management.routing import Router
from protocol import canonical
from protocol.endorsement import approval, decode_head
from protocol.registry import Device, EndorsementPolicy, Entry, Replicated, Token
from tests.chain_builder import Network


class Endpoint:
    """A device that is always ready and notes what it is asked."""

    is_ready = True
    is_silent = False
    has_room = True
    idle_seconds = 0.0
    reason = ""

    def __init__(self) -> None:
        self.asks: list[Ask] = []

    def cost(self) -> float:
        """In how many seconds an answer is expected."""
        return 0.01

    def typical(self) -> float:
        """The same."""
        return 0.01

    def figures(self) -> Figures:
        """What is known of its pace."""
        return NO_FIGURES

    def put(self, ask: Ask) -> None:
        """Ask for votes."""
        self.asks.append(ask)


class Desk:
    """The collection of votes for one transaction, and answers as if devices had given them."""

    def __init__(self, path: Path, *entries: Entry) -> None:
        self.network = Network(replicated=True)
        self.replica = Replica.create(ChainStore.create(url_of(path)), self.network.genesis())
        self.replica.apply(self.network.block(self.replica, [self.network.put(*entries)]).encode())
        self.devices = {name: Endpoint() for name in self.network.devices}
        self.pool = Pool(10)
        self.ended: list[Refusal] = []
        metrics = Metrics()
        self.alarms = Alarms(metrics)
        self.endorsing = Endorsing(
            self.replica,
            self.pool,
            Router(self.devices, {Replicated: ReplicatedStrategy()}),
            self.devices,
            let_go=lambda ended: self.ended.extend(refusal for _, refusal in ended),
            alarms=self.alarms,
            metrics=metrics,
            patience=Patience(deadline=10, silence=10),
        )
        self.record: Record = self.pool.add(self.network.evidence("x"), self.replica.height)
        self.endorsing.add([self.record])

    def answer(self, device: str, approved: str = "", rejected: str = "") -> None:
        """What a device says for these nodes, asked or asked again."""
        nodes = tuple(approved + rejected)
        casts = {node: self._cast(device, node) for node in approved}
        said = VerifiedAnswer(casts, dict.fromkeys(rejected, "already-recorded"))
        self.endorsing.on_answers(device, [Ask(self.record, nodes)], [said])

    def _cast(self, device: str, node: str) -> Cast:
        vote = approval(self.network.name, self.record.id, node)
        tree = self.network.tree(device, [vote], height=1)
        return Cast(
            CheckedTree(tree, tuple(decode_head(b.head) for b in tree.branches), len(canonical.encode(tree))),
            vote.leaf().hex(),
            device,
        )

    def waiting(self) -> dict[str, str]:
        """Who approved what waits for a cut, on which device; nothing where nothing waits."""
        return {node: cast.device for each in self.pool.oldest(1) for node, cast in each.casts.items()}

    def asked(self) -> set[tuple[str, str]]:
        """Nodes and devices that were asked since the last look."""
        found = {(node, name) for name, device in self.devices.items() for ask in device.asks for node in ask.nodes}
        for device in self.devices.values():
            device.asks.clear()
        return found


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """Votes are gathered for one evidence record, under the registry entries that the test asks for."""
    made = Desk(tmp_path / "chain.db", *request.param)
    yield made
    made.replica.store.close()


def policy(text: str, *, distinct: bool = False) -> EndorsementPolicy:
    """A policy for evidence."""
    return EndorsementPolicy("evidence", text, Replicated(), distinct_devices=distinct)


@pytest.mark.requirement("E-22")
@pytest.mark.parametrize("desk", [(policy("AND('A', 'B')"),)], indirect=True)
@pytest.mark.parametrize("first", ["approve", "reject"])
def test_a_node_that_contradicts_itself_refuses(desk: Desk, first: str) -> None:
    """In whichever order its two devices speak, a node that said both has refused."""
    words: list[dict[str, Any]] = [{"approved": "A"}, {"rejected": "A"}]
    said = words if first == "approve" else words[::-1]
    desk.answer("device-a", **said[0])
    desk.answer("device-c", **said[1])
    desk.answer("device-b", approved="B")
    assert desk.waiting() == {}
    (refusal,) = desk.ended
    assert (refusal.code, refusal.final) == ("endorsement-refused", True)


@pytest.mark.requirement("E-22")
@pytest.mark.parametrize("desk", [(policy("OutOf(2, 'A', 'B', 'C')"),)], indirect=True)
def test_an_approval_after_a_reject_is_in_no_block(desk: Desk) -> None:
    """What others satisfy goes into a block without the approval of a node that also refused."""
    desk.answer("device-c", rejected="A")
    desk.answer("device-a", approved="A")
    desk.answer("device-b", approved="B")
    assert desk.waiting() == {}
    desk.answer("device-c", approved="C")
    assert desk.waiting() == {"B": "device-b", "C": "device-c"}


@pytest.mark.requirement("E-5", "E-7", "E-22")
@pytest.mark.parametrize("desk", [(policy("AND('A', 'B')", distinct=True),)], indirect=True)
def test_distinct_devices_are_asked_until_they_suffice(desk: Desk) -> None:
    """Two votes on one device are not enough; when another device fails, a node is asked again on a third."""
    first = desk.asked()
    assert len({device for _, device in first}) == len(first) == 2
    desk.answer("device-a", approved="AB")
    assert desk.waiting() == {}
    others = {(node, device) for node, device in first if device != "device-a"}
    for node, device in others:
        gone = DeviceUnreachableError(f"device {device} is gone")
        desk.endorsing.on_answers(device, [Ask(desk.record, (node,))], gone)
    ((node, device),) = desk.asked()
    assert device != "device-a"
    assert (node, device) not in others
    desk.answer(device, approved=node)
    assert desk.waiting() == {"A": "device-a", "B": "device-a"} | {node: device}


ONE_BOX = tuple(
    Device(name, Network(replicated=True).devices[name].spki, Token("software", "for tests", "one box"))
    for name in ("device-a", "device-b")
)


@pytest.mark.requirement("E-5", "E-22")
@pytest.mark.parametrize("desk", [(policy("AND('A', 'B')", distinct=True), *ONE_BOX)], indirect=True)
def test_two_slots_of_one_box_are_not_asked_together(desk: Desk) -> None:
    """Routing knows which devices are one token: it asks one of them, and another box."""
    devices = {device for _, device in desk.asked()}
    assert "device-c" in devices
    assert len(devices) == 2
    desk.answer("device-a", approved="A")
    desk.answer("device-b", approved="B")
    assert desk.waiting() == {}
    desk.answer("device-c", approved="B")
    assert desk.waiting() == {"A": "device-a", "B": "device-c"}
