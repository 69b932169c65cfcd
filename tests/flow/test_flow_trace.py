"""Tracing a key: what the chain proves beside what the device's archived journal claims."""

import json
import time
from pathlib import Path

import pytest

from cli.main import main
from tests.flow.running_network import RunningNetwork


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """One command with `--json`: its document."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.requirement("K-14", "S-4")
def test_a_key_is_traced_and_split(network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every vote of a node's key is listed with height and time, agrees with the journal, and is split at the loss."""
    wishes = [network.evidence(f"traced-{number}") for number in range(6)]
    ids: list[str] = []
    edge = 0
    for number, wish in enumerate(wishes):
        if number == 3:
            time.sleep(0.05)
            edge = time.time_ns() // 1_000_000
        with network.management() as management:
            status = management.submit(wish.raw, wait=20)
        assert (status.status, status.code) == ("committed", "valid")
        ids.append(wish.id)
        network.wait_level(status.height or 0)
    folder, archive, page = str(network.layout.folder), tmp_path / "a.journal", tmp_path / "trace.html"
    device = network.layout.device("device-a") / "device.toml"
    run(capsys, "device", "journal", "--config", str(device), "--output", str(archive))

    told = run(
        capsys,
        *("key", "trace", "node/A", "--network", folder, "--journal", str(archive)),
        *("--suspected", str(edge), "--html", str(page)),
    )
    (found,) = told["traces"]  # type: ignore[misc]
    votes = [each for each in found["proven"] if each["kind"] == "votes"]
    voted = {each for vote in votes for each in vote["transactions"]}
    assert voted <= set(ids), "node A voted on these and on nothing else"
    assert len(voted) >= 2
    assert set(found["touched"]) == voted & set(ids[3:])
    assert found["gaps"] == []
    journal_heads = [each for each in found["claimed"] if each["purpose"] == "head"]
    assert not journal_heads, "every head of the journal is in a block"
    assert found["holder"] == "node/A"
    assert f"{len(found['touched'])}</b>" in page.read_text()

    one = run(capsys, "key", "trace", found["key"], "--network", folder)["traces"][0]  # type: ignore[index]
    assert [each["digest"] for each in one["proven"]] == [each["digest"] for each in found["proven"]]
    assert one["gaps"] == ["no archived journal was given: signatures that are in no block are not in this list"]


@pytest.mark.requirement("K-14")
def test_the_centers_headers_are_all_in_its_journal(
    network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The center's key signed one header for each block, and the journal knows each; one left out is named a gap."""
    with network.management() as management:
        status = management.submit(network.evidence("one-more").raw, wait=20)
    network.wait_level(status.height or 0)
    archive = tmp_path / "a.journal"
    device = network.layout.device("device-a") / "device.toml"
    run(capsys, "device", "journal", "--config", str(device), "--output", str(archive))
    arguments = ("key", "trace", "center/center-1", "--network", str(network.layout.folder), "--journal", str(archive))
    found = run(capsys, *arguments)["traces"][0]  # type: ignore[index]
    headers = [each["height"] for each in found["proven"] if each["kind"] == "header"]
    assert headers == list(range(found["height"] + 1))
    assert found["gaps"] == []


def test_nonsense_is_refused(network: RunningNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown holder, a time without a zone and a damaged archive are refused with what to do."""
    folder, bad = str(network.layout.folder), tmp_path / "bad.journal"
    bad.write_bytes(b'{"network":"net"}\n')
    cases = {
        ("key", "trace", "node/Z", "--network", folder): "the registry has no node/Z",
        ("key", "trace", "node/A", "--network", folder, "--suspected", "2026-11-21T10:00:00"): "has no time zone",
        ("key", "trace", "node/A", "--network", folder, "--suspected", "tomorrow"): "'tomorrow' is no time",
        ("key", "trace", "node/A", "--network", folder, "--journal", str(bad)): "no archive of a journal",
    }
    for arguments, reason in cases.items():
        assert main(list(arguments)) != 0
        assert reason in capsys.readouterr().err
