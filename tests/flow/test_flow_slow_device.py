"""Replicated routing on real tokens: a device that becomes ten times slower costs next to nothing.

`./test.sh -m slow tests/flow/test_flow_slow_device.py -o log_cli=true -o log_cli_level=INFO` prints the figures.
"""

import logging
import statistics
import time
from pathlib import Path

import pytest

from cli.api import Management
from tests.flow.running_network import Load, RunningNetwork
from tests.flow.shimmed_network import shimmed_network
from transport.connect import connect_blocking
from transport.problem import raise_for_problem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
figures = logging.getLogger("figures")

SLOW = "device-3"
SIGN_MILLISECONDS = 10
"""What each C_Sign takes on the healthy tokens; on the slow one ten times that."""
ROUNDS = 4
SETTLE_SECONDS = 2.0
WINDOW_SECONDS = 4.0


@pytest.mark.requirement("E-7", "E-21")
def test_a_slow_device_is_left_alone(tmp_path: Path) -> None:
    """Beside a device slowed ten times, two healthy ones keep 90 % of what they endorse without it."""
    with shimmed_network(tmp_path, "--layout", "replicated", "--devices", "3") as shimmed:
        network = shimmed.network
        for name, control in shimmed.controls.items():
            control.set("sign", "delay", milliseconds=SIGN_MILLISECONDS * (10 if name == SLOW else 1))
        loads = [Load(network, f"slow-{number}", batch=20, pause=0.0) for number in range(2)]
        for load in loads:
            load.start()
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(ROUNDS):
            _order(network, "/v1/drain?wait=5")
            alone.append(_rate(network))
            _order(network, "/v1/resume")
            beside.append(_rate(network))
        for load in loads:
            load.stop()
        shares = [one / other for one, other in zip(beside, alone, strict=True)]
        figures.info(
            "endorsed/s, two healthy: %s; with a third, ten times slower: %s; shares %s", alone, beside, shares
        )
        assert all(load.refused == [] for load in loads)
        assert statistics.median(shares) >= 0.9


def _order(network: RunningNetwork, path: str) -> None:
    with connect_blocking(network.layout.socket(f"{SLOW}-control"), timeout=10) as http:
        answer = http.post(path)
        raise_for_problem(answer.status_code, answer.content)


def _rate(network: RunningNetwork) -> float:
    time.sleep(SETTLE_SECONDS)
    with network.management() as management:
        began, before = time.monotonic(), _endorsed(management)
        time.sleep(WINDOW_SECONDS)
        return (_endorsed(management) - before) / (time.monotonic() - began)


def _endorsed(management: Management) -> float:
    return management.figure("hsm_endorser_management_time_to_endorse_seconds_count")
