"""A network with one bad token: what its clients notice, what the other devices keep, what the journals say.

`./test.sh -m slow tests/flow/test_flow_bad_token.py -o log_cli=true -o log_cli_level=INFO` prints the figures.
"""

import logging
import statistics
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from cli.api import Device
from tests.flow.running_network import Load, RunningNetwork
from tests.flow.shimmed_network import Shimmed, shimmed_network
from transport.problem import ProblemError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
figures = logging.getLogger("figures")

WINDOW_SECONDS = 2.0
ROUNDS = 5
KILLS = 5
BAD, OTHERS = "device-c", ("device-a", "device-b")


@pytest.fixture(scope="module")
def shimmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shimmed]:
    """A network of three devices, one node each; two of three endorse."""
    with shimmed_network(tmp_path_factory.mktemp("bad")) as made:
        yield made


@pytest.mark.requirement("K-9", "E-12")
def test_the_others_keep_their_rate(shimmed: Shimmed) -> None:
    """All devices are asked without a pause: while one hangs at every call, the others sign at 90 % of their rate.

    Windows with and without the hang take turns, and their medians are compared: the machine may have other work.
    """
    network = shimmed.network
    askers = [Asker(network, name) for name in (*OTHERS, BAD)]
    for asker in askers:
        asker.start()
    good: list[float] = []
    beside: list[float] = []
    try:
        time.sleep(WINDOW_SECONDS)
        for _ in range(ROUNDS):
            order(network, "/v1/drain?wait=5")
            good.append(rate(shimmed))
            order(network, "/v1/resume")
            shimmed.controls[BAD].set("sign", "hang")
            time.sleep(1.0)
            beside.append(rate(shimmed))
            shimmed.controls[BAD].behave()
    finally:
        shimmed.controls[BAD].behave()
        for asker in askers:
            asker.stop()
    share = statistics.median(beside) / statistics.median(good)
    figures.info("C_Sign/s of the others, without %s: %s; beside it, hanging: %s; share %.2f", BAD, good, beside, share)
    assert min(len(asker.failures) for asker in askers if asker.device_name in OTHERS) == 0
    assert share >= 0.9
    network.supervisor.wait_ready(60)


@pytest.mark.requirement("E-12", "K-9")
def test_a_client_is_answered_in_two_seconds(shimmed: Shimmed) -> None:
    """One token begins to hang under way: each transaction is committed with the others, within two seconds."""
    network = shimmed.network
    took = []
    shimmed.controls[BAD].set("sign", "hang")
    try:
        for number in range(10):
            wish = network.evidence(f"patient-{number}")
            began = time.monotonic()
            with network.management() as management:
                status = management.submit(wish.raw, wait=10)
            took.append(time.monotonic() - began)
            assert (status.status, status.code) == ("committed", "valid")
    finally:
        shimmed.controls[BAD].behave()
    figures.info("answers beside a hanging token: longest %.2f s, shortest %.2f s", max(took), min(took))
    assert max(took) < 2.0
    network.supervisor.wait_ready(60)


@pytest.mark.requirement("K-9")
def test_a_crash_of_the_module_takes_no_service_with_it(shimmed: Shimmed) -> None:
    """SIGSEGV inside C_Sign: no process of the network ends but the worker; the device is ready again."""
    network = shimmed.network
    pids = {name: process.pid for name, process in network.supervisor.processes.items()}
    before = restarts(network)
    shimmed.controls[BAD].set("sign", "crash", times=1)
    until = time.monotonic() + 20
    while restarts(network) == before:
        assert time.monotonic() < until
        time.sleep(0.2)
    network.supervisor.wait_ready(60)
    assert {name: process.pid for name, process in network.supervisor.processes.items()} == pids


@pytest.mark.requirement("K-8", "K-10")
def test_kills_interrupt_calls_and_add_none(shimmed: Shimmed) -> None:
    """A device is killed five times under load: every signature stands in its journal; what was cut off may be missing.

    Recorded and not yet signed at one moment are at most the head of one batch and one challenge.
    """
    network, name = shimmed.network, "device-b"
    load = Load(network, "killed", batch=20, pause=0.05)
    load.start()
    for _ in range(KILLS):
        time.sleep(0.7)
        network.kill(name)
        network.supervisor.wait_ready(60, [name])
    load.stop()
    ends = [network.ended(transaction) for transaction in load.acknowledged]
    assert {(end.status, end.code) for end in ends} == {("committed", "valid")}
    network.supervisor.stop(name)
    control, journalled = shimmed.controls[name], len(shimmed.journal_of(name))
    missing = journalled - control.successes("sign")
    figures.info("%d kills: journal %d, C_Sign %d", KILLS, journalled, control.successes("sign"))
    assert 0 <= missing <= 2 * KILLS
    network.supervisor.start(name)


class Asker(threading.Thread):
    """Asks one device for the same votes, over and over: each answer costs it a new tree head."""

    def __init__(self, network: RunningNetwork, name: str) -> None:
        super().__init__(daemon=True)
        self.failures: list[str] = []
        self.device_name = name
        self._network = network
        self._wish = network.evidence(f"asked-of-{name}")
        self._stopping = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        node = self.device_name.rpartition("-")[2].upper()
        with Device(self._network.layout.socket(self.device_name)) as device:
            while not self._stopping.is_set():
                try:
                    answer = device.endorse(self._wish.raw, (node,))
                except ProblemError as error:
                    self.failures.append(error.problem.code)
                    time.sleep(0.05)
                    continue
                if answer.failure:
                    self.failures.append(answer.failure.code)

    def stop(self) -> None:
        """End after the answer under way."""
        self._stopping.set()
        self.join(30)


def rate(shimmed: Shimmed) -> float:
    """Signatures per second of the good devices' tokens over one window."""
    before, began = [shimmed.controls[name].successes("sign") for name in OTHERS], time.monotonic()
    time.sleep(WINDOW_SECONDS)
    after, seconds = [shimmed.controls[name].successes("sign") for name in OTHERS], time.monotonic() - began
    return round((sum(after) - sum(before)) / seconds, 1)


def restarts(network: RunningNetwork) -> float:
    """Workers that the bad device has started after its first; asking for readiness makes it sign."""
    with Device(network.layout.socket(BAD)) as device:
        device.readiness()
        return device.figure("hsm_endorser_device_token_restarts_total")


def order(network: RunningNetwork, path: str) -> None:
    """An operator's order to the bad device."""
    with Device(network.layout.socket(f"{BAD}-control")) as device:
        msgspec.json.decode(device._post(path, b""))
