"""A network whose devices load the misbehaving, counting PKCS#11 module instead of the real one."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network, write_settings
from cli.supervisor import Supervisor
from hsm_endorser import journal
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalRow
from softhsm.installation import find
from softhsm.shim import Control, build
from tests.flow.running_network import RunningNetwork


class Shimmed(msgspec.Struct, frozen=True):
    """A running network, and what stands before each of its tokens."""

    network: RunningNetwork
    controls: dict[str, Control]
    journalled: dict[str, int]
    """Entries of each journal before the module was put in."""

    def journal_of(self, name: str) -> list[JournalRow]:
        """What a device, which must be stopped, recorded since then; the chain of its journal is checked."""
        return read_journal(self.network.layout, self.network.name, name)[self.journalled[name] :]


@contextmanager
def shimmed_network(root: Path, *options: str) -> Iterator[Shimmed]:
    """A network in `root` (with `options` of `network init`), with clients `alice` and `bob`, until the block's end."""
    folder = root / "net"
    assert main(["network", "init", str(folder), "--json", *options]) == 0
    layout, network = Layout(folder.absolute()), read_network(folder)
    module = build(root)
    controls = {name: _put_before(layout.device(name), module) for name in network.devices}
    before = {name: len(read_journal(layout, network.network, name)) for name in network.devices}
    with Supervisor(folder, services(folder, network), print) as supervisor:
        supervisor.wait_ready(60)
        for client in ("alice", "bob"):
            assert main(["client", "register", client, "--network", str(folder), "--json"]) == 0
        yield Shimmed(RunningNetwork(layout, supervisor), controls, before)


def _put_before(device: Path, module: Path) -> Control:
    path = device / "device.toml"
    settings = tomllib.loads(path.read_text())
    real = find().module
    settings["token"]["uri"] = settings["token"]["uri"].replace(str(real), str(module))
    control = Control.create(device / "control")
    settings["token"]["environment"] |= control.environment(real)
    write_settings(path, settings)
    return control


def read_journal(layout: Layout, network: str, name: str) -> list[JournalRow]:
    """The whole journal of a device that is stopped, its chain of hashes checked."""
    guard = Guard.open(layout.device(name) / "guard.db", network=network, device=name)
    try:
        guard.verify_journal()
        return list(journal.rows(guard))
    finally:
        guard.close()
