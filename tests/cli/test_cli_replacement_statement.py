"""The custody statement that an interrupted `device replace` has left: taken up when it is whole, else made anew."""

from pathlib import Path

import pytest

from cli import device_replacement
from cli.device_replacement import Enrolment
from protocol import canonical
from protocol.registry import Token
from tests.chain_builder import Network


@pytest.mark.requirement("K-14", "K-5")
def test_a_statement_that_was_cut_short_is_not_taken_up(tmp_path: Path) -> None:
    """A file that a killed attempt wrote in part counts as none; a whole one is taken as it is."""
    path, whole = tmp_path / "custody.json", Network().statement("device-b", "probed")
    assert device_replacement._kept_statement(path) is None
    data = canonical.encode(whole)
    for size in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert device_replacement._kept_statement(path) is None, size
    path.write_bytes(data)
    assert device_replacement._kept_statement(path) == whole


@pytest.mark.requirement("K-5")
def test_keys_below_the_demanded_tier_are_named() -> None:
    """A statement that does not suffice names the keys, so that the audit is made again; the identity needs no tier."""
    network = Network()
    key, identity = network.node_keys["B", "device-b"], network.devices["device-b"]
    enrolment = Enrolment("device-b", Token("m", "m", "s"), {"identity": identity.spki, "node/B": key.spki})
    statement = network.statement("device-b", "read-back")
    assert device_replacement._too_low(statement, enrolment, "probed") == {"node/B": "read-back"}
    assert device_replacement._too_low(statement, enrolment, "read-back") == {}
