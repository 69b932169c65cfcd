"""The far-domains benchmark: its statistics, its tables and picture, and a tiny run with real tokens."""

import math
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from benchmarks import far_domains
from benchmarks.far_picture import draw
from benchmarks.far_report import (
    DESIGNS,
    FAR_CLIENT,
    GATHERED,
    SCATTERED,
    Case,
    Design,
    Machine,
    Report,
    p50,
    p95,
    ratios,
    tables,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "far-domains"
DELAY_MS = 100


def case(nodes: int, design: Design, delay: int) -> Case:
    """Two rounds of three transactions; scattered grows by a round trip, gathered does not grow."""
    endorsement = 20.0 + (2 * delay if design == SCATTERED else 0)
    commit = 2 * endorsement + (2 * delay if design == FAR_CLIENT else 0)
    return Case(
        nodes=nodes,
        design=design,
        delay_ms=delay,
        endorsement=((endorsement, endorsement + 1, endorsement - 1), (endorsement,) * 3),
        commit=((commit,) * 3, (commit,) * 3),
        repeated=0,
        connections=0,
    )


@pytest.fixture
def report() -> Report:
    """A run as it should be."""
    cases = tuple(case(nodes, design, delay) for nodes in (3, 5) for design in DESIGNS for delay in (0, 50))
    return Report("python -m benchmarks.far_domains", Machine(2, "a processor", 1.0, 2.0), 60.0, cases)


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs make their folders; its name is short, as the paths of sockets must be."""
    folder = tmp_path_factory.mktemp("far")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_quantiles_are_values_that_were_measured() -> None:
    """p50 and p95 are the smallest values that half, and nineteen of twenty, do not exceed."""
    rounds = [list(range(1, 51)), list(range(51, 101))]

    assert (p50(rounds), p95(rounds), p50([[7.0]]), p95([[7.0]])) == (50, 95, 7.0, 7.0)


def test_ratios_compare_within_a_round(report: Report) -> None:
    """Each round is compared with its own median at no delay."""
    near, far = report.case(3, SCATTERED, 0), report.case(3, SCATTERED, 50)

    assert ratios(far, near) == [6.0, 6.0]


def test_the_tables_state_what_was_measured(report: Report) -> None:
    """One row for each number of nodes and distance, in each table; the machine and the command below."""
    lines = tables(report).splitlines()

    assert "| 3 | 50 ms | 20 ms | 21 ms | 1.00 (1.00 to 1.00) | 120 ms | 121 ms | 6.00 (6.00 to 6.00) |" in lines
    assert "| 5 | 50 ms | 40 ms | 140 ms | 100 ms | 100 ms | 240 ms |" in lines
    assert len([line for line in lines if line.startswith(("| 3 ", "| 5 "))]) == 8
    assert "2 cores (a processor)" in lines[-1]
    assert "Command: `python -m benchmarks.far_domains`" in lines[-1]


def test_the_picture_is_well_formed_and_shows_every_median(report: Report) -> None:
    """One line for each number of nodes and design, with a point for each distance."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(draw(report))  # noqa: S314  our own text
    lines = [each.attrib["points"].split() for each in root.iter(f"{svg}polyline")]
    texts = {each.text for each in root.iter(f"{svg}text")}

    assert [len(points) for points in lines] == [2, 2, 2, 2]
    assert {"3 nodes", "5 nodes", "20", "120"} <= texts
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for points in lines:
        for point in points:
            x, y = map(float, point.split(","))
            assert (0 < x < width, 0 < y < height) == (True, True)


@pytest.mark.requirement("E-21")
def test_the_documentation_shows_the_measured_values() -> None:
    """Tables and picture in `docs/` are drawn from the values of the run that is kept there."""
    kept = far_domains.read(RESULTS / "far_domains.json")

    assert (RESULTS / "far_domains.svg").read_text() == draw(kept)
    assert (RESULTS / "far_domains.md").read_text() == tables(kept)
    text = (ROOT / "docs" / "far-domains.md").read_text()
    assert [line for line in tables(kept).splitlines() if line not in text.splitlines()] == []


def test_delays_without_zero_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ratios need the case without distance."""
    assert far_domains.main(["--output", str(tmp_path / "out"), "--delays", "20"]) == 2
    assert "--delays must contain 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.requirement("E-21")
def test_endorsement_does_not_grow_with_distance(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], scratch: Path
) -> None:
    """A tiny run: gathered stays below one round trip, scattered takes one more, and so does a far client."""
    options = ["--nodes", "2", "--delays", "0", str(DELAY_MS), "--rounds", "1", "--transactions", "5"]
    assert far_domains.main([*options, "--seconds", "100", "--output", str(tmp_path / "out")]) == 0

    found = far_domains.read(tmp_path / "out" / "far_domains.json")
    assert len(found.cases) == 6
    assert all(len(each.endorsement[0]) == len(each.commit[0]) == 5 for each in found.cases)
    assert all(math.isfinite(value) and value > 0 for each in found.cases for value in each.endorsement[0])
    endorsed = {each: p50(found.case(2, each, DELAY_MS).endorsement) for each in (GATHERED, SCATTERED)}
    committed = {each: p50(found.case(2, each, DELAY_MS).commit) for each in (GATHERED, FAR_CLIENT)}
    assert endorsed[GATHERED] < 2 * DELAY_MS <= endorsed[SCATTERED]
    assert committed[GATHERED] < 2 * DELAY_MS <= committed[FAR_CLIENT]
    assert "| 2 | 100 ms |" in capfd.readouterr().out
    assert list(scratch.iterdir()) == []
    assert "distance" not in {thread.name for thread in threading.enumerate()}


def test_a_run_ends_when_its_time_is_up(tmp_path: Path, capfd: pytest.CaptureFixture[str], scratch: Path) -> None:
    """It stops its services, removes its folder, writes nothing, and says so."""
    options = ["--nodes", "1", "--delays", "0", "--transactions", "1", "--seconds", "0"]
    assert far_domains.main([*options, "--output", str(tmp_path / "out")]) == 1

    assert "expected to end within 0 s" in capfd.readouterr().err
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_a_report_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    """`--draw` draws the same from the file."""
    far_domains.write(report, tmp_path)
    before = (tmp_path / "far_domains.svg").read_bytes()
    (tmp_path / "far_domains.svg").unlink()

    assert far_domains.read(tmp_path / "far_domains.json") == report
    assert far_domains.main(["--output", str(tmp_path), "--draw"]) == 0
    assert (tmp_path / "far_domains.svg").read_bytes() == before
    assert msgspec.json.decode((tmp_path / "far_domains.json").read_bytes())["machine"]["cores"] == 2
