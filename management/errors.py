"""The error family of this room: what was expected and what came."""

from typing import ClassVar


class ManagementError(Exception):
    """`code` is stable; the message is for people."""

    code: ClassVar[str] = "management-error"


class ConfigError(ManagementError):
    """A configuration file that cannot be used; the message names file and field."""

    code = "bad-config"


class DeviceUnreachableError(ManagementError):
    """A device did not answer, or not in time."""

    code = "unreachable"


class BadAnswerError(ManagementError):
    """A device answered, and what it said does not hold (requirement E-12)."""

    code = "bad-answer"


class DeviceRefusedError(ManagementError):
    """A device said no, as a problem; `code` is the device's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.said = code


class EnrolmentError(ManagementError):
    """Somebody may not have a certificate (requirement E-1). `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BusyError(ManagementError):
    """More is under way than this service has room for; come back in `seconds`."""

    code = "busy"

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class StoppingError(ManagementError):
    """The service is about to stop; what was acknowledged is kept."""

    code = "stopping"
