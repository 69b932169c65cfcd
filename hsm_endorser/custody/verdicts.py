"""Rows in the making: what was tried becomes a row, with what it came to."""

from collections.abc import Iterable
from typing import Final

from hsm_endorser.custody.cryptoki import code
from hsm_endorser.worker_messages import Failed
from protocol.custody import Row

LONGEST: Final = 900
REFUSALS: Final = frozenset(
    """
    ActionProhibited AttributeReadOnly AttributeSensitive CopyProhibited FunctionNotSupported FunctionRejected
    KeyFunctionNotPermitted KeyNotWrappable KeyUnextractable ObjectHandleInvalid KeyHandleInvalid
    UserNotLoggedIn
    """.split()  # noqa: SIM905  a dozen quoted words are harder to read
)
"""Return codes that say no to what was tried, rather than to how it was tried."""


class Rows:
    """The rows of an audit, in order."""

    def __init__(self) -> None:
        self.all: list[Row] = []

    def passed(self, check: str, target: str, tried: str, answer: str) -> None:
        """It holds."""
        self.all.append(Row(check, target, cut(tried), cut(answer), "pass"))

    def failed(self, check: str, target: str, tried: str, answer: str, reason: str) -> None:
        """It does not, and why that matters."""
        self.all.append(Row(check, target, cut(tried), cut(answer), "fail", cut(reason)))

    def untested(self, check: str, target: str, tried: str, reason: str, answer: str = "") -> None:
        """It could not be tried, and why."""
        self.all.append(Row(check, target, cut(tried), cut(answer), "not-tested", cut(reason)))

    def attack(
        self, check: str, target: str, tried: str, reply: object, harm: str, *, control: bool | None = None
    ) -> bool:
        """An attack's row; whether it was refused.

        `control`: whether the same worked on a key to which it is allowed. Where it did, every refusal counts; where
        it did not, or nobody could try, only a code that says no to the deed does.
        """
        if not isinstance(reply, Failed):
            self.failed(check, target, tried, "CKR_OK", harm)
            return False
        if control or reply.ckr in REFUSALS:
            self.passed(check, target, tried, code(reply))
            return True
        why = "does not work here with a key to which it is allowed" if control is False else "says nothing of the key"
        self.untested(check, target, tried, f"{code(reply)}: it {why}", code(reply))
        return False

    def of(self, *targets: str) -> list[Row]:
        """The rows of these targets."""
        return [row for row in self.all if row.target in targets]

    def tried(self, check: str, target: str) -> bool:
        """Whether there is a row of this check and target."""
        return any(row.check == check and row.target == target for row in self.all)


def cut(text: str) -> str:
    """Text fit for a row: printable, and not longer than a row is read."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= LONGEST else f"{clean[: LONGEST - 1]}…"


def listed(names: Iterable[str]) -> str:
    """Names in one line."""
    return ", ".join(names) or "none"
