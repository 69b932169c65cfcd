"""The suspected time of a revocation, which is as final as the revocation (K-14)."""

import pytest

from cli import revoking, trace
from cli.errors import UsageError
from protocol.trace import Signing


@pytest.mark.requirement("K-14")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2999-01-01T00:00:00Z", "has not come yet"),
        ("99999999999999", "has not come yet"),
        ("9" * 30, "is no time"),
        ("2026-11-21T10:00:00", "has no time zone"),
        ("yesterday", "is no time"),
    ],
)
def test_a_time_that_cannot_be_meant_is_not_put_on_the_chain(text: str, reason: str) -> None:
    """A time ahead, beyond the calendar, without a zone, or in other words is refused."""
    with pytest.raises(UsageError, match=reason):
        revoking.moment(text)


def test_an_empty_suspected_time_is_no_time() -> None:
    """`--suspected ''`, as an unset variable in a script leaves it, does not hide what is in doubt."""
    with pytest.raises(UsageError, match="is no time"):
        trace.point_in_time("")


@pytest.mark.requirement("K-14")
@pytest.mark.parametrize(("holder", "told"), [("registrar/ca", True), ("node/A", False), ("", False)])
def test_a_trace_says_that_the_holder_had_a_key_before(holder: str, told: bool) -> None:
    """A CA's entry names its latest key alone; nobody takes that key's signatures for all that the CA signed."""
    announced = Signing("announcement", 9, 1_767_312_000_000, "0" * 64, "the announcement of a new key")
    assert bool(trace._earlier(holder, [announced])) is told
    assert not trace._earlier(holder, [])
