"""Domain values as the bytes that clients read. No HTTP statuses here."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from management.outcome import Refusal, Status

ProblemOf = Callable[[Refusal], Mapping[str, Any]]


def status_members(status: Status, problem_of: ProblemOf) -> dict[str, Any]:
    """The members of a status: where the transaction stands, and under which link to ask again."""
    return {
        "transaction": status.transaction,
        "status": status.status,
        "height": status.height,
        "code": status.code,
        "problem": problem_of(status.refusal) if status.refusal else None,
        "links": {"status": f"/v1/transactions/{status.transaction}"},
    }


def batch_body(answers: list[Status | Refusal], problem_of: ProblemOf) -> bytes:
    """The answer to a batch: one result a line, in order."""
    return msgspec.json.encode(
        {
            "results": [
                {"problem": problem_of(answer)}
                if isinstance(answer, Refusal)
                else {"transaction": answer.transaction, "status": answer.status}
                if not answer.is_settled
                else status_members(answer, problem_of)
                for answer in answers
            ]
        }
    )
