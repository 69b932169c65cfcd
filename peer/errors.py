"""The error family of this room."""


class PeerError(Exception):
    """What a peer cannot do; the message says what to do about it."""


class ConfigError(PeerError):
    """A configuration that cannot be used; the message names the file, and the field where it is one."""


class UnknownError(PeerError):
    """A query for what this peer's chain does not hold; `what` is of which kind."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
