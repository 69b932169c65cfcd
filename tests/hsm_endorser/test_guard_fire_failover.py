"""A request fails over to a second device after the first answered too late: every key keeps one word (K-10, E-7)."""

import asyncio
import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from hsm_endorser.config import Config
from hsm_endorser.guard import Guard
from hsm_endorser.provision import Provisioned, provision
from protocol.keys import PublicKey
from protocol.registry import Device, Entry, Node, NodeKey
from tests.hsm_endorser.device_world import Enrolled, World, device_config, new_token, running
from tests.hsm_endorser.guard_fire_votes import Words, hear

SECOND = "device-second"


class Replicated(World):
    """The world with a second real device: it has a key of its own for node A."""

    def __init__(self, folder: Path, enrolled: Enrolled, second: Config, provisioned: Provisioned) -> None:
        self.second = second
        self.second_provisioned = provisioned
        super().__init__(folder, enrolled)
        second.genesis.write_bytes(self.genesis)

    def entries(self) -> list[Entry]:
        """The entries with both devices' keys."""
        own = self.second_provisioned
        key = NodeKey(own.keys["node/A"].spki, SECOND)
        entries: list[Entry] = [Device(SECOND, own.keys["identity"].spki, own.token)]
        for entry in super().entries():
            if isinstance(entry, Node) and entry.name == "A":
                entries.append(Node("A", (*entry.keys, key)))
            else:
                entries.append(entry)
        return entries


@pytest.fixture
async def replicated(tmp_path: Path, enrolled: Enrolled) -> Replicated:
    """Two devices at block 0, each with its own token and its own key for node A."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    config = device_config(tmp_path / "second", new_token(tmp_path / "second" / "token", "token-b"))
    config = config.model_copy(update={"name": SECOND})
    provisioned = await provision(config, "test", [("node/A", "ecdsa-p256-sha256")])
    return Replicated(tmp_path / "first", enrolled, config, provisioned)


@pytest.mark.requirement("K-10", "E-7")
async def test_two_devices_of_a_node_may_disagree_and_each_key_keeps_its_word(replicated: Replicated) -> None:
    """The first device hangs, the second has seen a later block and rejects; then the first comes back and approves.

    Asked again as often as one likes, on whatever height, each of the two keys repeats its own one word.
    """
    world = replicated
    wish = world.network.evidence("pump-7")
    rival = world.network.evidence("pump-7", "cd" * 32)
    words: Words = defaultdict(set)
    keys = {"node/A": world.keys["node/A"]}
    second_keys: dict[str, PublicKey] = {"node/A": world.second_provisioned.keys["node/A"]}
    async with running(world.config) as first, running(world.second) as second:
        worker = first.parts.signer.token.worker_pid
        os.kill(worker, signal.SIGSTOP)
        asked = asyncio.create_task(first.endorse((wish, ["A"])))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asked), 0.2)  # too late for whoever asked
        block = world.block([rival])
        await second.apply(block)
        hear(second_keys, words, await second.endorse((wish, ["A"])))
        os.kill(worker, signal.SIGCONT)
        hear(keys, words, await asked)
        await first.apply(block)  # from here on the first device would judge otherwise, too
        for _ in range(3):
            hear(keys, words, await first.endorse((wish, ["A"])))
            hear(second_keys, words, await second.endorse((wish, ["A"])))
    for config in (world.config, world.second):
        Guard.open(config.guard, network="test", device=config.name).close()
    async with running(world.config) as first, running(world.second) as second:
        hear(keys, words, await first.endorse((wish, ["A"])))
        hear(second_keys, words, await second.endorse((wish, ["A"])))
    assert words == {
        (keys["node/A"].id, wish.id): {("approve", "")},
        (second_keys["node/A"].id, wish.id): {("reject", "already-recorded")},
    }


@pytest.mark.requirement("K-10")
async def test_a_late_answer_says_what_was_recorded_before(replicated: Replicated) -> None:
    """The caller of the first device is gone, and its worker dies: what was recorded then is what it says later."""
    world = replicated
    wish = world.network.evidence("pump-7")
    words: Words = defaultdict(set)
    async with running(world.config) as first:
        worker = first.parts.signer.token.worker_pid
        os.kill(worker, signal.SIGSTOP)
        asked = asyncio.create_task(first.endorse((wish, ["A"])))
        await asyncio.sleep(0.2)
        asked.cancel()
        os.kill(worker, signal.SIGKILL)
        await first.apply(world.block([world.network.evidence("pump-7", "cd" * 32)]))
        async with asyncio.timeout(5):
            while not words:
                hear(world.keys, words, await first.endorse((wish, ["A"])))
                await asyncio.sleep(0.05)
    assert words == {(world.keys["node/A"].id, wish.id): {("approve", "")}}
