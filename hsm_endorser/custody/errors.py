"""Why a custody audit could not be made. What it found is no error."""

from hsm_endorser.errors import DeviceError
from hsm_endorser.worker_messages import Failed


class CustodyError(DeviceError):
    """The audit could not run."""


class ProbeRefusedError(CustodyError):
    """The token or its module refused what every audit needs; `ckr` is the return code's name."""

    def __init__(self, ckr: str, text: str) -> None:
        super().__init__(text)
        self.ckr = ckr

    @staticmethod
    def of(what: str, reply: object) -> "ProbeRefusedError":
        """The error for a reply that is not the one that was needed."""
        if isinstance(reply, Failed):
            return ProbeRefusedError(reply.ckr, f"{what}: {reply.ckr}{': ' if reply.text else ''}{reply.text}")
        return ProbeRefusedError("OddAnswer", f"{what}: the worker answered {type(reply).__name__}")


class ProbeLostError(CustodyError):
    """The module hung or took its process with it, and the worker was ended."""
