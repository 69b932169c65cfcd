"""The supervisor runs real processes: small ones of these tests' own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.errors import UnreachableError, UsageError
from cli.supervisor import ServiceSpec, Supervisor, is_supervised
from transport.address import Address

PROJECT = Path(__file__).resolve().parents[2]
SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
WITH_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("child.pid").write_text(str(child.pid))
time.sleep(600)
"""
HEALTHY = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from transport import listen, operations
from transport.address import Address

async def readiness():
    ready = Path("ready").exists()
    return operations.Readiness(ready, {"token": "ok" if ready else "is being started"})

app = Starlette(routes=operations.routes(CollectorRegistry(), readiness))
asyncio.run(listen.serve(app, [Address.parse("unix:run/one.sock")], asyncio.Event()))
"""
SUPERVISING = """
import sys, time
from pathlib import Path
from cli.supervisor import ServiceSpec, Supervisor
folder = Path(sys.argv[1])
program = (sys.executable, "-c", "import time; time.sleep(600)")
with Supervisor(folder, [ServiceSpec("one", program, None)], print) as supervisor:
    supervisor.wait_ready(20)
    print(supervisor.processes["one"].pid, flush=True)
    time.sleep(600)
"""


def service(code: str, name: str = "one", address: Address | None = None) -> ServiceSpec:
    """A service that runs `code`."""
    return ServiceSpec(name, (sys.executable, "-c", code), address)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something comes to hold in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def is_gone(pid: int) -> bool:
    """Whether no such process runs any more (a zombie that nobody reaped has ended, too)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def pid_of(supervisor: Supervisor, name: str = "one") -> int:
    """The process id of a service that runs."""
    pid = supervisor.processes[name].pid
    assert pid is not None
    return pid


@pytest.fixture
def said() -> list[str]:
    """What the supervisor reported."""
    return []


@pytest.fixture
def supervise(tmp_path: Path, said: list[str]) -> Iterator[Callable[..., Supervisor]]:
    """Start a supervisor over services; it is closed at the end."""
    started: list[Supervisor] = []

    def supervise(*services: ServiceSpec) -> Supervisor:
        supervisor = Supervisor(tmp_path, services, said.append).__enter__()
        started.append(supervisor)
        return supervisor

    yield supervise
    for supervisor in started:
        supervisor.close()


def test_a_killed_process_is_started_again_and_said_so(supervise: Callable[..., Supervisor], said: list[str]) -> None:
    """A process that is killed gets a successor, and the supervisor says how it died."""
    supervisor = supervise(service(SLEEP))
    supervisor.wait_ready(20)
    first = pid_of(supervisor)
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: supervisor.processes["one"].pid not in {None, first})
    assert "one died (signal SIGKILL) and starts again in 0.2 s" in said[0]
    assert supervisor.processes["one"].restarts == 1


def test_what_dies_at_once_is_started_ever_more_slowly(supervise: Callable[..., Supervisor], said: list[str]) -> None:
    """The pause before a restart doubles while a process keeps dying."""
    supervise(service("raise SystemExit(7)"))
    assert eventually(lambda: len(said) >= 3)
    assert [line.split(";")[0] for line in said[:3]] == [
        "one died (exit code 7) and starts again in 0.2 s",
        "one died (exit code 7) and starts again in 0.4 s",
        "one died (exit code 7) and starts again in 0.8 s",
    ]


def test_waiting_ends_for_what_does_not_stay_up(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """A service that keeps dying is not waited for until the time is up; its log is named."""
    address = Address(path=tmp_path / "run" / "one.sock")
    supervisor = supervise(service("raise SystemExit(7)", address=address), service(SLEEP, "two"))
    with pytest.raises(UnreachableError, match=r"does not stay up: one: ") as caught:
        supervisor.wait_ready(60)
    assert caught.value.advice == f"see {tmp_path / 'logs' / 'one.log'}"


def test_leaving_stops_all_processes(tmp_path: Path, said: list[str]) -> None:
    """After the supervisor is closed none of its processes runs, and nothing was called a death."""
    with Supervisor(tmp_path, [service(SLEEP), service(SLEEP, "two")], said.append) as supervisor:
        supervisor.wait_ready(20)
        pids = [pid_of(supervisor, "one"), pid_of(supervisor, "two")]
    assert [is_gone(pid) for pid in pids] == [True, True]
    assert said == []


def test_what_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """A process that ignores SIGTERM is killed when its time is up."""
    monkeypatch.setattr("cli.supervisor.STOP_SECONDS", 0.5)
    with Supervisor(tmp_path, [service(STUBBORN)], said.append) as supervisor:
        assert eventually((tmp_path / "logs" / "one.log").exists)
        assert eventually(lambda: "up" in (tmp_path / "logs" / "one.log").read_text())
        pid = pid_of(supervisor)
    assert is_gone(pid)
    assert "one did not stop within" in said[0]


def test_children_of_a_dead_process_are_swept(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """When a service is killed, what it had started (a token worker, say) is killed with it."""
    supervisor = supervise(service(WITH_CHILD))
    file = tmp_path / "child.pid"
    assert eventually(lambda: file.exists() and bool(file.read_text()))
    child = int(file.read_text())
    assert not is_gone(child)
    os.kill(pid_of(supervisor), signal.SIGKILL)
    assert eventually(lambda: is_gone(child))


def test_no_orphan_when_the_supervisor_itself_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the supervisor ends its processes: the kernel kills what is tethered to it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", SUPERVISING, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        assert not is_gone(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert eventually(lambda: is_gone(child))


def test_one_service_is_stopped_and_started(supervise: Callable[..., Supervisor], said: list[str]) -> None:
    """A service that was stopped on purpose stays stopped until it is started again; the others go on."""
    supervisor = supervise(service(SLEEP), service(SLEEP, "two"))
    supervisor.wait_ready(20)
    first, other = pid_of(supervisor, "one"), pid_of(supervisor, "two")
    supervisor.stop("one")
    assert is_gone(first)
    time.sleep(0.5)
    assert supervisor.state("one") == "stopped"
    supervisor.start("one")
    supervisor.wait_ready(20, ["one"])
    assert pid_of(supervisor, "one") != first
    assert pid_of(supervisor, "two") == other
    assert said == []


def test_a_folder_has_one_supervisor(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """A second supervisor on a folder is refused, and told who holds it."""
    assert not is_supervised(tmp_path)
    supervisor = supervise(service(SLEEP))
    supervisor.wait_ready(20)
    assert is_supervised(tmp_path)
    with pytest.raises(UsageError, match=rf"runs already \(process {os.getpid()}\)"):
        Supervisor(tmp_path, [], print).__enter__()
    supervisor.close()
    assert not is_supervised(tmp_path)


def test_readiness_is_asked_of_the_service(supervise: Callable[..., Supervisor], tmp_path: Path) -> None:
    """A service is ready when its own health says so; until then the reason is its own, and waiting ends."""
    environment = f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
    address = Address(path=tmp_path / "run" / "one.sock")
    supervisor = supervise(service(environment + HEALTHY, address=address))
    assert eventually(lambda: supervisor.state("one") == "token: is being started")
    with pytest.raises(UnreachableError, match=r"not ready within 0 s: one: token: is being started"):
        supervisor.wait_ready(0.3)
    (tmp_path / "ready").touch()
    supervisor.wait_ready(20)
    assert supervisor.state("one") == "ready"
