"""Random lives of keys: whatever is put, rotated and revoked, what must hold holds after every block (K-12 to K-14)."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from ledger.authority import authorize
from ledger.errors import AuthorizationError
from ledger.replica import Replica
from protocol.keys import key_id
from protocol.registry import Administrator, Center, Client, Node, NodeKey
from protocol.tier import ORDER
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import Network
from tests.software_keys import SoftwareKey

MINUTE = 60_000


class Life:
    """Draws transactions, sensible and not, over the keys that there are."""

    def __init__(self, network: Network, replica: Replica, seed: int) -> None:
        self.network = network
        self.replica = replica
        self.random = random.Random(seed)  # noqa: S311  the same in every run
        self.keys: dict[str, SoftwareKey] = {}
        for key in (
            *network.administrators.values(),
            *network.devices.values(),
            *network.node_keys.values(),
            *network.clients.values(),
            network.center,
            network.registrar,
        ):
            self.keys[key.id] = key

    def key(self) -> SoftwareKey:
        """A new key, or sometimes one that there was before."""
        if self.random.random() < 0.2:
            return self.random.choice(list(self.keys.values()))
        key = software_keys.ecdsa(f"life {len(self.keys)}")
        self.keys[key.id] = key
        return key

    def held(self) -> tuple[str, SoftwareKey]:
        """A holder that stands in the registry, and one of its keys."""
        expiry = self.random.choice(self.replica.registry.expiries())
        return expiry.holder, self.keys[expiry.key_id]

    def lifetime(self) -> dict[str, int]:
        """Bounds around now, now and then without an instant between them."""
        start = self.replica.time + self.random.choice([-MINUTE, 0, MINUTE])
        return {"not_before": start, "until": start + self.random.choice([0, MINUTE, 5 * MINUTE, 60 * MINUTE])}

    def draw(self) -> Transaction:
        """The next thing that somebody wants."""
        network, choose = self.network, self.random.choice
        device = choose(list(network.devices))
        node = choose("ABC")
        holder, key = self.held()
        lifetime = self.lifetime() if self.random.random() < 0.5 else {}
        match self.random.randrange(7):
            case 0:
                return network.put(network.revocation(holder, key))
            case 1:
                registered = self.replica.registry.node(node)
                kept = registered.keys if registered else ()
                return network.put(Node(node, (*kept[-2:], NodeKey(self.key().spki, device, **lifetime))))
            case 2:
                return network.put(Administrator(f"admin-{self.random.randrange(1, 6)}", self.key().spki, **lifetime))
            case 3:
                return network.put(Center(f"center-{self.random.randrange(1, 3)}", self.key().spki, device, **lifetime))
            case 4:
                return network.put(network.custody(device, choose(ORDER), time=self.replica.time))
            case 5:
                return network.put(Client(choose(["c1", "c2", "c3"]), self.key().spki, "", **lifetime))
            case _:
                since = self.replica.height + choose([1, 2, 3])
                options: dict[str, Any] = {"until": self.replica.time + choose([MINUTE, 60 * MINUTE]), "since": since}
                if holder.startswith("client/"):
                    return network.renew_client(holder.removeprefix("client/"), key, self.key(), **options)
                if holder.startswith("device/"):
                    holder = "node/A"
                return network.rotate(holder, key, self.key(), overlap=choose([0, 2]), **options)

    def sign_as_those_in_force(self, time: int) -> None:
        """Let the quorum and the registrar be whoever they are in the next block."""
        view, height = self.replica.registry, self.replica.height + 1
        in_force = view.administrators_in_force(height=height, time=time)
        self.network.administrators = {name: self.keys[key.id] for name, key in in_force.items()}
        self.network.registrar = self.keys[view.registrars["ca"].id]

    def centers(self, time: int) -> list[SoftwareKey]:
        """Who signs the next block of registry transactions."""
        view = self.replica.registry
        found = view.centers_for(height=self.replica.height + 1, time=time, kinds={"registry.put"})
        return [self.keys[key.id] for key in found.values()][: view.channel.centers_needed]


def check(replica: Replica, chance: random.Random) -> None:
    """What must hold, at this height and a while later."""
    view = replica.registry
    for height, time in (
        (replica.height + 1, replica.time),
        (replica.height + chance.randrange(9), replica.time + chance.randrange(90 * MINUTE)),
    ):
        bounds = {"height": height, "time": time}
        administrators = view.administrators_in_force(**bounds)
        repairing = view.centers_for(kinds={"registry.put"}, **bounds)
        assert len(administrators) >= view.channel.administrators_needed
        assert len(repairing) >= view.channel.centers_needed
        ordinary = view.centers_for(kinds={"registry.put", "evidence.record"}, **bounds)
        assert ordinary == view.centers_in_force(**bounds)
        assert ordinary.items() <= repairing.items()
        revoked = {each.name for each in view.revocations}
        gone = {each.name for each in view.devices if key_id(each.identity) in revoked}
        in_force = {key.id for some in (administrators, repairing, ordinary) for key in some.values()}
        in_force |= {key.id for key in view.registrars_in_force(**bounds).values()}
        assert not in_force & revoked
        for name in repairing:
            center = view.center(name)
            assert center is not None
            assert center.device not in gone
        for node in view.node_names:
            assert not set(view.devices_in_force(node, **bounds)) & gone
            assert set(view.lapses(node, **bounds)) == set(view.devices_of(node)) - set(
                view.devices_in_force(node, **bounds)
            )
        rule = view.rule_at("evidence.record", **bounds)
        assert rule is not None
        assert rule.holders == {node: view.devices_in_force(node, **bounds) for node in view.node_names}
    ends = view.expiries()
    assert ends == sorted(ends, key=lambda each: (each.until, each.last, each.holder, each.key_id))
    assert len({each.key_id for each in ends if not each.holder.startswith("client/")}) == len(
        [each for each in ends if not each.holder.startswith("client/")]
    )


@pytest.mark.requirement("K-12", "K-13", "K-14", "E-16")
@pytest.mark.parametrize("seed", range(4))
def test_a_random_life(network: Network, new_replica: Callable[[], Replica], seed: int) -> None:
    """Nobody is locked out, revoked keys count nowhere, and a replica that follows ends at the same state."""
    replica, chance = new_replica(), random.Random(seed)  # noqa: S311  the same in every run
    life = Life(network, replica, seed)
    outcomes: set[str] = set()
    for _ in range(35):
        time = replica.time + chance.choice([500, MINUTE, 10 * MINUTE])
        network.time = time
        life.sign_as_those_in_force(time)
        transactions = [life.draw() for _ in range(3)]
        # The CA may be revoked: what nobody may sign has no place in a block.
        may = [each for each in transactions if _is_authorized(replica, each, time)]
        block = network.block(replica, may or [network.put(replica.registry.channel)], time=time)
        checked = replica.apply(network.sign(block, by=life.centers(time)).encode())
        outcomes |= {outcome.code for outcome in checked.outcomes}
        check(replica, chance)
    assert {"valid", "bad-announcement"} < outcomes, outcomes
    later = new_replica()
    for height in range(1, replica.height + 1):
        later.apply(replica.store.block(height) or b"")
    assert later.store.digest() == replica.store.digest()


def _is_authorized(replica: Replica, transaction: Transaction, time: int) -> bool:
    with contextlib.suppress(AuthorizationError):
        authorize(transaction, replica.registry, replica.memory, height=replica.height + 1, time=time)
        return True
    return False
