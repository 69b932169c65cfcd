"""The error family of this room. Messages say what was expected, what came, and what to do; never a PIN."""

from typing import ClassVar


class DeviceError(Exception):
    """Something kept the device from signing. `code` is stable; the message is for people."""

    code: ClassVar[str] = "device-error"


class ConfigError(DeviceError):
    """A configuration that cannot be used; the message names the file and the field."""

    code = "bad-configuration"


class UriError(ConfigError):
    """Not a PKCS#11 URI (RFC 7512) that this device accepts."""

    code = "bad-uri"


class PinFileError(ConfigError):
    """A PIN file that is missing, or that others could read (requirement S-6)."""

    code = "bad-pin-file"


class TokenError(DeviceError):
    """The family of everything that the token did not do."""

    code = "token-error"


class TokenUnavailableError(TokenError):
    """The token did not answer, or not in time; it is being recovered."""

    code = "token-unavailable"


class TokenBusyError(TokenUnavailableError):
    """Too many calls wait for the token already."""

    code = "token-busy"


class PinRefusedError(TokenError):
    """The token did not accept the PIN. Nothing tries it again: tokens lock themselves after a few wrong ones."""

    code = "pin-refused"


class TokenQuarantinedError(TokenError):
    """Not the token that was enrolled, or it signed wrongly: nothing is signed with it any more (requirement K-9)."""

    code = "token-quarantined"


class TokenStoppedError(TokenError):
    """The token could not be opened for a reason that only an operator can remove; it is not tried again."""

    code = "token-stopped"


class TokenLockedError(TokenError):
    """No PIN file is configured, and nobody has entered the PIN since the start."""

    code = "token-locked"


class TokenRefusedError(TokenError):
    """The token is there and refused this one call; `ckr` names its return code."""

    code = "token-refused"

    def __init__(self, ckr: str, text: str) -> None:
        super().__init__(f"{ckr}: {text}")
        self.ckr = ckr


class UnknownKeyError(TokenError):
    """A key that is not on this token."""

    code = "unknown-key"


class GuardError(DeviceError):
    """The guard is missing, damaged, held by another process or behind the chain: nothing is signed (K-10)."""

    code = "guard-failed"


class GuardDamagedError(GuardError):
    """The guard is missing, cannot be written, or has lost what it knew. The device starts all the same, to say so."""


class GuardInUseError(GuardError):
    """Another process holds the guard: this one must not go on."""


class GuardConflictError(GuardError):
    """Something else is recorded already for what was about to be signed."""

    code = "guard-conflict"


class BusyError(DeviceError):
    """The device's queue is full; try again in a moment."""

    code = "busy"


class NotReadyError(DeviceError):
    """The device cannot judge yet or any more: it is behind, or its replica has halted."""

    code = "not-ready"


class DrainingError(NotReadyError):
    """The device finishes what it has and takes nothing new until an operator resumes it."""

    code = "draining"


class RefusedError(DeviceError):
    """A typed door does not sign this; `reason` is a stable code."""

    code = "refused"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
