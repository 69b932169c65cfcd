"""Run the services of one folder as processes of their own: start, restart what dies, stop without orphans.

One thread starts and reaps all of them (a tethered process dies with the thread that started it). Others ask it by
`start`, `stop` and `close`, and read `processes`.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import httpx2

from cli import exit_codes, tether
from cli.api import PROBE_SECONDS, Service
from cli.errors import UnreachableError, UsageError
from transport.address import Address

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 10.0
STEADY_SECONDS: Final = 30.0
"""A process that ran this long starts again with the first pause."""
STOP_SECONDS: Final = 8.0
TICK_SECONDS: Final = 0.1
PROBE_PAUSE_SECONDS: Final = 0.3
MOST_DEATHS: Final = 4
"""A service that dies so often while its readiness is awaited will not become ready."""


@dataclass(frozen=True)
class ServiceSpec:
    """A service: its name, its program, and where it answers `/health/ready` (nowhere: ready while it runs)."""

    name: str
    program: tuple[str, ...]
    address: Address | None


@dataclass
class Process:
    """A service as it runs now. Written by the supervisor's thread alone."""

    spec: ServiceSpec
    wanted: bool = True
    running: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started: float = 0.0
    next_start: float = 0.0
    pause: float = FIRST_PAUSE_SECONDS
    kill_at: float = field(default=float("inf"))

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.running.pid if self.running else None


class Supervisor:
    """The services of one network folder. A context manager: leaving it stops all of them."""

    def __init__(self, folder: Path, services: Sequence[ServiceSpec], report: Callable[[str], None]) -> None:
        self.folder = folder
        self.processes = {spec.name: Process(spec) for spec in services}
        self._report = report
        self._changed = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._lock: IO[str] | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._lock = _claim(self.folder)
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all services and wait for their ends; they have `STOP_SECONDS`, then they are killed."""
        with self._changed:
            self._closing = True
            for process in self.processes.values():
                process.wanted = False
            self._changed.notify_all()
        self._thread.join()
        if self._lock:
            self._lock.close()
            self._lock = None

    def stop(self, name: str) -> None:
        """Stop one service and keep it stopped; returns when it has ended."""
        self._want(name, wanted=False)

    def start(self, name: str) -> None:
        """Start a stopped service again; returns when its process runs (see `wait_ready`)."""
        self._want(name, wanted=True)

    def wait_ready(self, seconds: float, names: Sequence[str] = ()) -> None:
        """Wait until the services (all that are wanted, or those named) are ready; raises `UnreachableError`."""
        deadline = time.monotonic() + seconds
        deaths = {name: process.restarts for name, process in self.processes.items()}
        waiting = dict.fromkeys(names or [name for name, process in self.processes.items() if process.wanted], "")
        while waiting:
            for name in list(waiting):
                state = self.state(name)
                if state == "ready":
                    del waiting[name]
                else:
                    waiting[name] = state
            dying = [name for name in waiting if self.processes[name].restarts - deaths[name] >= MOST_DEATHS]
            if dying or (waiting and time.monotonic() > deadline):
                named = "; ".join(f"{name}: {waiting[name]}" for name in dying or waiting)
                logs = ", ".join(str(self.folder / "logs" / f"{name}.log") for name in dying or waiting)
                reason = "does not stay up" if dying else f"not ready within {seconds:.0f} s"
                raise UnreachableError(f"{reason}: {named}", advice=f"see {logs}")
            time.sleep(PROBE_PAUSE_SECONDS if waiting else 0)

    def state(self, name: str) -> str:
        """`ready`, or what it waits for, in words."""
        process = self.processes[name]
        if self._failure:
            raise UnreachableError(f"the supervisor failed: {self._failure}")
        if not process.wanted:
            return "stopped"
        if process.running is None:
            return "starting" if process.restarts == 0 else f"died {process.restarts} times, starts again"
        return "ready" if process.spec.address is None else probe(process.spec.address)

    def _want(self, name: str, *, wanted: bool) -> None:
        with self._changed:
            process = self.processes[name]
            process.wanted = wanted
            process.next_start = 0.0
            process.pause = FIRST_PAUSE_SECONDS
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._failure is not None or (process.running is not None) == wanted, STOP_SECONDS + 5
            )

    # ---- the supervisor's own thread

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    for process in self.processes.values():
                        self._step(process, time.monotonic())
                    self._changed.notify_all()
                    if self._closing and all(process.running is None for process in self.processes.values()):
                        return
                    self._changed.wait(TICK_SECONDS)
        except BaseException as error:
            self._failure = error
            raise

    def _step(self, process: Process, now: float) -> None:
        running = process.running
        if running is not None and running.poll() is not None:
            self._ended(process, running, now)
        elif running is not None and not process.wanted:
            if process.kill_at == float("inf"):
                process.kill_at = now + STOP_SECONDS
                running.terminate()
            elif now > process.kill_at:
                self._report(f"{process.spec.name} did not stop within {STOP_SECONDS:.0f} s and is killed")
                _sweep(running.pid)
        elif running is None and process.wanted and now >= process.next_start:
            self._begin(process, now)

    def _begin(self, process: Process, now: float) -> None:
        name = process.spec.name
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            process.running = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *process.spec.program],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is for the supervisor, which stops them in order
            )
        process.started = now
        process.kill_at = float("inf")

    def _ended(self, process: Process, running: subprocess.Popen[bytes], now: float) -> None:
        _sweep(running.pid)  # what it may have left behind
        process.running = None
        if not process.wanted:
            return
        process.restarts += 1
        if now - process.started > STEADY_SECONDS:
            process.pause = FIRST_PAUSE_SECONDS
        if running.returncode == exit_codes.USAGE:  # its configuration is wrong: only a person changes that
            process.pause = LONGEST_PAUSE_SECONDS
        process.next_start = now + process.pause
        self._report(
            f"{process.spec.name} died ({_how(running.returncode)}) and starts again in {process.pause:.1f} s; "
            f"see {self.folder / 'logs' / process.spec.name}.log"
        )
        process.pause = min(2 * process.pause, LONGEST_PAUSE_SECONDS)


def probe(address: Address) -> str:
    """`ready`, or why the service at `address` is not, in words."""
    try:
        with Service(address, timeout=PROBE_SECONDS) as service:
            ready, checks = service.readiness()
    except (httpx2.HTTPError, UnreachableError):
        return "does not answer"
    if ready:
        return "ready"
    return ", ".join(f"{check}: {state}" for check, state in checks.items() if state != "ok") or "not ready"


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor holds the folder now."""
    try:
        _claim(folder).close()
    except UsageError:
        return True
    return False


def _claim(folder: Path) -> IO[str]:
    """The folder's lock, held until it is closed; raises `UsageError` when another supervisor holds it."""
    path = folder / "run" / "supervisor.lock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "?"
        lock.close()
        raise UsageError(
            f"the network in {folder} runs already (process {holder})", advice="stop that one first: Ctrl-C, or kill it"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _sweep(group: int) -> None:
    """Kill what is left of a service's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
