"""The benchmark's own arithmetic, its connection, and one short run of it."""

import asyncio
import json
import math
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cli.bench import loops, machine, report
from cli.bench.connection import Connection, post
from cli.bench.machine import Usage
from cli.main import main
from transport import listen
from transport.address import Address


def test_every_process_verifies_every_signature_once() -> None:
    """Management, 3 devices and 3 peers: 7 client signatures a transaction, and 7 for each signature of a token."""
    assert report.required(100, 0, devices=3, peers=3) == 7
    assert report.required(100, 50, devices=3, peers=3) == 10.5


def test_quantiles_and_spread() -> None:
    """The value below which the share lies; nothing of nothing; the median with both ends."""
    ordered = [float(number) for number in range(1, 101)]
    assert [report.quantile(ordered, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert math.isnan(report.quantile([], 0.5))
    assert report.spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert report.spread([2.25], 1) == "2.2"


def test_cpu_is_counted_by_service() -> None:
    """Milliseconds of CPU for each transaction."""
    before, after = {"a": Usage(1.0, 5)}, {"a": Usage(1.5, 2 << 20)}
    assert report.spent(before, after, 100) == {"a": 5.0}
    assert report.resident(after) == {"a": 2.0}


def test_what_a_process_used_is_read_with_its_children() -> None:
    """The test's own process uses CPU time and memory; one that is not there has used nothing."""
    mine = machine.usage(os.getpid())
    assert mine.cpu > 0
    assert mine.resident > 1 << 20
    assert machine.usage(2**22 + 1) == Usage(0.0, 0)
    assert machine.verification_rate(0.05) > 100


async def test_loops_count_only_what_was_committed(tmp_path: Path) -> None:
    """A closed loop has one request under way a client; refusals and other outcomes are failures, named."""
    most = under_way = number = 0

    async def submit(request: Request) -> Response:
        nonlocal most, under_way, number
        under_way, number = under_way + 1, number + 1
        mine, most = number, max(most, under_way)
        await request.body()
        await asyncio.sleep(0.01)
        under_way -= 1
        if mine % 3 == 0:
            return Response(b'{"detail":"full"}', 429)
        code = "valid" if mine % 3 == 1 else "already-spent"
        return Response(json.dumps({"transaction": "t", "status": "committed", "code": code}))

    address, stop = Address(path=tmp_path / "s.sock"), asyncio.Event()
    app = Starlette(routes=[Route("/v1/transactions", submit, methods=["POST"])])
    serving = asyncio.create_task(listen.serve(app, [address], stop))
    try:
        async with asyncio.timeout(20):
            await _until_it_listens(address)
            wanted = loops.requests([("id", b"{}")] * 300, "committed")
            done = await loops.closed(address, wanted, 4, 0.3, "committed")
            paced = await loops.paced(address, iter([post("/v1/transactions", b"{}")] * 100), 50, 0.5, 50)
            too_fast = await loops.paced(address, iter([post("/v1/transactions", b"{}")] * 100), 1000, 0.5, 1)
    finally:
        stop.set()
        await serving
    assert most >= 4
    assert len(done.times()) == len([sample for sample in done.samples if sample.good]) > 5
    assert len(done.failures) == len(done.samples) - len(done.times())
    assert any(failure.startswith("429") for failure in done.failures)
    assert any("already-spent" in failure for failure in done.failures)
    assert len(paced.samples) == 25
    assert "1 requests were under way: 1000 a second are too many" in too_fast.failures


async def _until_it_listens(address: Address) -> None:
    while True:
        try:
            (await Connection.open(address)).close()
        except OSError:
            await asyncio.sleep(0.01)
        else:
            return


@pytest.mark.slow
def test_a_short_run_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every loop commits, and the figures stand in JSON, in a table and in a picture."""
    out = tmp_path / "out"
    options = ["--seconds", "2", "--repetitions", "1", "--clients", "8", "--rate", "20"]
    assert main(["bench", *options, "--output", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "bench.json").read_text())
    assert [each["loop"] for each in document["loops"]] == [
        "one client, to endorse",
        "one client, T = 20 ms",
        "8 clients",
        "batches of 128",
        "20 a second",
    ]
    for each in document["loops"]:
        assert each["committed"] > 0
        assert 0 < each["p50"] <= each["p95"] <= each["p99"]
        assert 0 < each["share"] < 1
        assert set(each["cpu"]) == {
            *(f"device-n0{number}" for number in (1, 2, 3)),
            "management",
            *(f"peer-{number}" for number in (1, 2, 3)),
        }
    assert document["notes"] == []
    assert "| 8 clients |" in (out / "bench.md").read_text()
    assert ET.fromstring((out / "bench.svg").read_text()).tag.endswith("svg")  # noqa: S314  our own file
