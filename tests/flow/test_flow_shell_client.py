"""A client in shell, as docs/client-protocol.md tells it, against the running network: openssl and curl alone."""

import json
from pathlib import Path

import pytest

from cli.api import Control
from tests import client_protocol
from tests.flow.running_network import RunningNetwork


@pytest.mark.requirement("E-1", "E-3")
async def test_the_documented_client_enrols_and_commits(network: RunningNetwork, tmp_path: Path) -> None:
    """The page's three examples, run as they stand, lead from no key at all to a committed record."""
    with Control(network.layout.socket("control")) as control:
        secret = control.invite("shell-client", 60)["secret"]
    sample = tmp_path / "sample"
    sample.write_bytes(b"what is proven to have been here")
    variables = {
        "WORK": str(tmp_path),
        "KEY": str(tmp_path / "key.pem"),
        "SOCKET": str(network.layout.socket("management").path),
        "CLIENT": "shell-client",
        "NETWORK": network.name,
        "FILE": str(sample),
        "SUBJECT": "shell-sample",
    }

    status, enrolled = (await client_protocol.run("enrol", SECRET=secret, **variables)).split("\n", 1)
    assert status == "201"
    assert json.loads(enrolled)["certificate"].startswith("-----BEGIN CERTIFICATE-----")

    await client_protocol.run("build", **variables)
    status, answer = (await client_protocol.run("send", **variables)).split("\n", 1)
    assert status == "200"
    settled = json.loads(answer)
    assert (settled["status"], settled["code"]) == ("committed", "valid")
    assert settled["transaction"] == (tmp_path / "id").read_text().strip()

    network.wait_level(settled["height"])
    with network.peer("peer-1") as peer:
        assert json.loads(peer.state("evidence/shell-sample"))["client"] == "shell-client"
