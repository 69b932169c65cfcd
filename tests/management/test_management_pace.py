"""What is learnt of a device's pace."""

import pytest

from management.pace import Pace


@pytest.mark.requirement("E-7")
def test_time_is_told_apart_by_request_and_proposal() -> None:
    """From answers to requests of different sizes, the time of a request and that of a proposal are known."""
    pace = Pace()
    for size in (1, 40, 7, 100, 20, 60, 3, 80):
        pace.answered(size, 0.01 + 0.002 * size)
    assert pace.fixed == pytest.approx(0.01)
    assert pace.each == pytest.approx(0.002)
    assert pace.expected(2, 50) == pytest.approx(0.12)


@pytest.mark.requirement("E-7")
def test_slow_down_is_known_after_a_few_answers() -> None:
    """A device that takes ten times as long is known for it after five answers."""
    pace = Pace()
    for size in (1, 40, 7, 100, 20):
        pace.answered(size, 0.01 + 0.002 * size)
    before = pace.expected(1, 32)
    for size in (30, 5, 50, 10, 20):
        pace.answered(size, 0.1 + 0.02 * size)
    assert pace.expected(1, 32) > 5 * before


def test_one_size_says_little_about_more() -> None:
    """Who was only ever asked for one at a time is not believed to do a thousand in the same time."""
    pace = Pace()
    for _ in range(5):
        pace.answered(1, 0.06)
    assert pace.expected(1, 1) == pytest.approx(0.06)
    assert pace.expected(1, 32) > 0.9


@pytest.mark.requirement("E-7")
def test_errors_cost_until_they_are_over() -> None:
    """Failures make a device look slow, and good answers make it look well again."""
    pace = Pace()
    pace.answered(10, 0.01)
    well = pace.expected(1, 1)
    for _ in range(3):
        pace.failed()
    assert pace.error_rate == pytest.approx(0.488)
    assert pace.expected(1, 1) == pytest.approx(well + 0.488)
    for _ in range(30):
        pace.answered(10, 0.01)
    assert pace.expected(1, 1) == pytest.approx(well, abs=0.001)


def test_network_time_is_that_of_the_quickest_poll() -> None:
    """Polls that waited for the token do not count; old ones are forgotten."""
    pace = Pace()
    for seconds in (0.03, 0.002, 0.04):
        pace.polled(seconds)
    assert pace.network == 0.002
    for _ in range(8):
        pace.polled(0.01)
    assert pace.network == 0.01


def test_report_of_the_device_counts_until_something_is_seen() -> None:
    """A new center begins with what each device says of itself."""
    pace = Pace()
    pace.reported(0.05)
    assert pace.expected(1, 0) == pytest.approx(0.05)
    pace.answered(1, 0.01)
    pace.reported(0.05)
    assert pace.expected(1, 1) == pytest.approx(0.01)
