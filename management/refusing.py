"""Why a transaction was not endorsed, in words and as data: who approved, who refused, who was not even asked."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from ledger.endorsement_rule import EndorsementRule
from management.outcome import Refusal, Tried
from management.pool import Record
from management.routing import Candidate
from protocol.policy import PolicyResult


class Votes(Protocol):
    """What was gathered."""

    rejected: dict[str, str]
    tried: list[Tried]


def no_policy(record: Record) -> Refusal:
    """Nobody could endorse it any more."""
    return Refusal(
        code="no-policy",
        detail=f"no endorsement policy covers {record.transaction.kind} any more",
        transaction=record.id,
    )


def endorsement_refused(record: Record, rule: EndorsementRule, result: PolicyResult, votes: Votes) -> Refusal:
    """Signed rejects made the policy impossible to satisfy: that is final."""
    reasons = sorted(set(votes.rejected.values()))
    return Refusal(
        code="endorsement-refused",
        detail=(
            f"{rule.policy.text} cannot be satisfied any more: "
            f"{', '.join(f'{node} says {reason}' for node, reason in sorted(votes.rejected.items()))}; "
            f"{_approvals(result)}"
        ),
        final=True,
        reason=reasons[0] if len(reasons) == 1 else None,
        devices=tuple(votes.tried),
        transaction=record.id,
    )


def endorsement_unavailable(
    record: Record,
    rule: EndorsementRule,
    result: PolicyResult,
    votes: Votes,
    *,
    devices: Mapping[str, Candidate],
    lapsed: Sequence[Tried],
    seconds: float,
) -> Refusal:
    """Time is up. Devices that could have voted and were not even asked are named too, with what they lack.

    `lapsed` are those whose keys do not count.
    """
    asked = {each.device for each in votes.tried}
    tried = [*votes.tried, *lapsed]
    for name in sorted({device for node in result.missing for device in rule.holders[node]} - asked):
        device = devices.get(name)
        nodes = tuple(node for node in result.missing if name in rule.holders[node])
        if device is None:
            tried.append(Tried(name, nodes, "not-asked", "not configured here"))
        elif not device.is_ready:
            tried.append(Tried(name, nodes, "not-ready", device.reason))
    return Refusal(
        code="endorsement-unavailable",
        detail=(
            f"{rule.policy.text} was not satisfied within {seconds:.1f} s: {_asked(asked, result, tried)}; "
            f"missing {', '.join(result.missing) or 'nobody'}; send it again later"
        ),
        devices=tuple(tried),
        transaction=record.id,
    )


def _asked(asked: Collection[str], result: PolicyResult, tried: Sequence[Tried]) -> str:
    if asked or result.approved:
        return _approvals(result)
    away = ", ".join(each.device for each in tried)
    return f"no device was asked, because those that are ready are too few for it (not ready: {away or 'none'})"


def _approvals(result: PolicyResult) -> str:
    return f"approved by {', '.join(result.approved)}" if result.approved else "nobody approved"
