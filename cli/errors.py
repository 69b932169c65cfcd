"""The error family of this room: what went wrong, what to do, and the exit code that says so."""

from typing import TYPE_CHECKING, Any

from cli import exit_codes

if TYPE_CHECKING:  # who verifies offline needs nothing that knows of connections
    from transport.problem import Problem


class CommandError(Exception):
    """A command that cannot go on. `code` is stable, `advice` says what to do; both stand in `--json` answers."""

    exit_code = exit_codes.FAILED
    code = "failed"

    def __init__(self, reason: str, *, advice: str = "", code: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice
        self.code = code or type(self).code

    def document(self) -> dict[str, Any]:
        """The error as `--json` shows it."""
        return {"code": self.code, "reason": self.reason, "advice": self.advice}


class UsageError(CommandError):
    """Arguments, files or folders that cannot be used; nothing was tried."""

    exit_code = exit_codes.USAGE
    code = "usage"


class UnreachableError(CommandError):
    """A service that does not answer."""

    exit_code = exit_codes.UNREACHABLE
    code = "unreachable"


class VerificationFailedError(CommandError):
    """Something is not what it claims."""

    exit_code = exit_codes.VERIFICATION_FAILED
    code = "verification-failed"


class RefusedError(CommandError):
    """A service's refusal: the problem that it answered, with every device that was tried."""

    exit_code = exit_codes.REFUSED
    code = "refused"

    def __init__(self, problem: "Problem") -> None:
        advice = ADVICE.get(problem.reason or "") or ADVICE.get(problem.code, "")
        super().__init__(problem.detail, advice=advice, code=problem.code)
        self.problem = problem

    def document(self) -> dict[str, Any]:
        """The error as `--json` shows it, with the devices that were tried."""
        problem = self.problem
        return super().document() | {
            "agreed": problem.reason,
            "devices": list(problem.devices),
            "transaction": problem.transaction,
        }


ADVICE = {
    "unknown-client": "register the client first: hsm-endorser client register NAME --network DIR",
    "bad-signature": "sign with the key that the client registered (DIR/clients/NAME.key)",
    "wrong-network": "sign for the network that the genesis file names",
    "expired": "sign a new transaction with a later valid_until",
    "validity-too-long": "choose an earlier valid_until; the network limits how far ahead it may lie",
    "client-expired": "let the administrators remove the client (client remove NAME), then register it with a new key",
    "already-executed": "this transaction is on the chain already; look it up by its id",
    "already-spent": "the coin was spent by another transaction; choose an unspent one",
    "already-recorded": "the subject has its record; records are put once",
    "endorsement-unavailable": "see which devices are down: hsm-endorser network status DIR",
    "pool-full": "try again a little later",
    "lock-out": "bring another key first (key rotate, registry): enough that are not revoked must be left",
    "not-authorized": "let more administrators sign: --administrator NAME, once for each",
    "unknown-transaction": "take the id that submit told, and ask a peer that has come so far",
    "tier-too-low": "audit the device (hsm-endorser custody audit), register the statement, then try again",
}
"""What a person can do about a refusal, by its stable code."""
