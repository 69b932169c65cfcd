"""A network whose services talk through links of a settable distance.

    center's domain   management, the device with the center's and the CA's key, the client
    device-1 …        one for each node, with that node's key; its link to and from management may be long
    peer-1 …          one for each node: the node's own machine; its link from management may be long

All links are always there, whatever their delay, so that what the proxy itself costs is in every figure.
"""

import hashlib
import time
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.delay_proxy import Distance, Link
from cli import client as clients
from cli import founding, keys
from cli.api import Management
from cli.keys import SoftwareKey
from cli.network import services
from cli.plan import Layout, NetworkPlan, read_network, write_settings
from cli.supervisor import Supervisor
from transport.connect import connect_blocking

CENTER_DEVICE: Final = "device-center"
CLIENT: Final = "alice"
PERIOD_MS: Final = 10
"""The shortest period: a block is cut as soon as its one transaction is endorsed."""
READY_SECONDS: Final = 120.0
ANSWER_SECONDS: Final = 20.0
LEVEL_SECONDS: Final = 20.0
LEVEL_PAUSE_SECONDS: Final = 0.01
VALID_MILLISECONDS: Final = 600_000


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message says what was expected and what came."""


class Timing(msgspec.Struct, frozen=True):
    """One transaction, in seconds.

    `endorsement`: from the first endorsement request to the last verified answer. `commit`: from the client's request
    to its answer "committed". `requests`: how many endorsement requests it took.
    """

    endorsement: float
    commit: float
    requests: int


class FarNetwork:
    """Running services and the links between them. A context manager: leaving it stops and closes everything."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.nodes = nodes
        self._layout = Layout(folder.absolute())
        self._parts = ExitStack()
        self._device_links: list[Link] = []
        self._peer_links: list[Link] = []
        self._client_links: list[Link] = []

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            self._found()
            self._open_links(parts.enter_context(Distance()))
            folder = self._layout.folder
            self._network = read_network(folder)
            supervisor = parts.enter_context(Supervisor(folder, services(folder, self._network), print))
            supervisor.wait_ready(READY_SECONDS)
            clients.enrol(self._layout, CLIENT, clients.invite(self._layout, CLIENT))
            self._key = SoftwareKey.load(self._layout.client_key(CLIENT))
            self._near = parts.enter_context(Management(self._layout.socket("management")))
            self._far = parts.enter_context(Management(self._layout.socket(f"from-{CLIENT}")))
            self._watched = {
                name: parts.enter_context(connect_blocking(self._layout.socket(name), timeout=ANSWER_SECONDS))
                for name in ("management", *self._network.devices, *self._network.peers)
            }
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts.close()

    def set_delays(self, *, devices: float = 0.0, peers: float = 0.0, client: float = 0.0) -> None:
        """One-way delays in seconds: of all nodes' devices, of all peers, of the far client."""
        for links, delay in (
            (self._device_links, devices),
            (self._peer_links, peers),
            (self._client_links, client),
        ):
            for link in links:
                link.delay = delay

    @property
    def connections(self) -> int:
        """How many connections were opened so far over the links of the nodes' devices."""
        return sum(link.connections for link in self._device_links)

    def measure(self, *, far_client: bool = False) -> Timing:
        """Hand in one transaction, wait for its commit, and until everybody has applied its block."""
        before = self._endorsement_figures()
        subject = f"far-{time.time_ns()}"
        digest = hashlib.sha256(subject.encode()).hexdigest()
        until = time.time_ns() // 1_000_000 + VALID_MILLISECONDS
        payload = keys.payload(
            self._network.network,
            CLIENT,
            "evidence.record",
            {"subject": subject, "digest": digest, "attributes": {}},
            valid_until=until,
        )
        _, raw = keys.sign(payload, [self._key])
        began = time.perf_counter()
        status = (self._far if far_client else self._near).submit(raw, wait=ANSWER_SECONDS)
        commit = time.perf_counter() - began
        if status.status != "committed" or status.code != "valid" or status.height is None:
            raise BenchmarkError(f"expected a valid committed transaction, got {status}; see the folder's logs")
        self._wait_level(status.height)
        after = self._endorsement_figures()
        return self._timing(before, after, commit)

    def _timing(self, before: Mapping[str, Any], after: Mapping[str, Any], commit: float) -> Timing:
        """What the figures of management say of the one transaction between two readings of them.

        All requests leave at the same moment, so the longest one ends when the policy (all nodes) is satisfied.
        """
        spent: dict[str, tuple[int, float]] = {}
        for device, (count, seconds) in after.items():
            earlier_count, earlier_seconds = before.get(device, (0.0, 0.0))
            if count > earlier_count:
                spent[device] = (round(count - earlier_count), seconds - earlier_seconds)
        if len(spent) != self.nodes:
            raise BenchmarkError(f"expected that {self.nodes} devices were asked, got {sorted(spent)}")
        return Timing(
            endorsement=max(seconds for _, seconds in spent.values()),
            commit=commit,
            requests=sum(count for count, _ in spent.values()),
        )

    def _endorsement_figures(self) -> dict[str, tuple[float, float]]:
        """By device: how many endorsement requests management has made, and how many seconds they took together."""
        response = self._watched["management"].get("/metrics").raise_for_status()
        counts: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                if sample.name == "hsm_endorser_management_endorse_seconds_count":
                    counts[sample.labels["device"]] = sample.value
                elif sample.name == "hsm_endorser_management_endorse_seconds_sum":
                    seconds[sample.labels["device"]] = sample.value
        return {device: (count, seconds[device]) for device, count in counts.items()}

    def _wait_level(self, height: int) -> None:
        """Wait until every device and every peer has applied `height`: the next transaction meets an idle network."""
        deadline = time.monotonic() + LEVEL_SECONDS
        for name, service in self._watched.items():
            if name == "management":
                continue
            while (reached := _height(service)) < height:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"expected {name} at height {height}, it is at {reached}; see its log")
                time.sleep(LEVEL_PAUSE_SECONDS)

    def _found(self) -> None:
        devices: dict[str, tuple[str, ...]] = {CENTER_DEVICE: ()}
        devices |= {f"device-{number}": (f"N{number}",) for number in range(1, self.nodes + 1)}
        plan = NetworkPlan(
            name=f"far-{self.nodes}",
            devices=devices,
            peers=tuple(f"peer-{number}" for number in range(1, self.nodes + 1)),
            policies={"evidence": "ALL"},
            period_ms=PERIOD_MS,
        )
        founding.found(plan, self._layout.folder, lambda _text: None)

    def _open_links(self, distance: Distance) -> None:
        """Put a link where a service is told to find another one."""
        network = read_network(self._layout.folder)
        nodes_devices = [name for name in network.devices if name != CENTER_DEVICE]
        self._device_links += [self._link(distance, f"to-{name}", name) for name in nodes_devices]
        self._device_links += [self._link(distance, f"from-{name}", "management") for name in nodes_devices]
        self._peer_links += [self._link(distance, f"from-{name}", "management") for name in network.peers]
        self._client_links.append(self._link(distance, f"from-{CLIENT}", "management"))
        management = self._layout.management / "management.toml"
        settings = tomllib.loads(management.read_text(encoding="utf-8"))
        for device in settings["devices"]:
            if device["name"] in nodes_devices:
                device["address"] = f"unix:../run/to-{device['name']}.sock"
        write_settings(management, settings)
        for name in nodes_devices:
            _point(self._layout.device(name) / "device.toml", "chain", f"from-{name}")
        for name in network.peers:
            _point(self._layout.peer(name) / "peer.toml", "sources", f"from-{name}")

    def _link(self, distance: Distance, name: str, target: str) -> Link:
        return distance.link(self._layout.socket(name), self._layout.socket(target))


def _point(path: Path, field: str, socket: str) -> None:
    settings = tomllib.loads(path.read_text(encoding="utf-8"))
    write_settings(path, settings | {field: [f"unix:../../run/{socket}.sock"]})


def _height(service: httpx2.Client) -> int:
    return int(msgspec.json.decode(service.get("/v1/status").raise_for_status().content)["height"])
