"""The error family of this room: what was expected and what came."""


class LedgerError(Exception):
    """`code` is stable; the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StoreError(LedgerError):
    """The database is missing, exists already, is damaged, or is of another release."""

    def __init__(self, message: str) -> None:
        super().__init__("store", message)


class GenesisError(LedgerError):
    """The genesis block that was given cannot be read, or the stored chain begins with another one."""

    def __init__(self, message: str) -> None:
        super().__init__("other-genesis", message)


class AuthorizationError(LedgerError):
    """A transaction that nobody on the whitelist stands behind.

    Codes: `wrong-network`, `unknown-client`, `client-expired`, `revoked`, `bad-signature`, `not-authorized`.
    """


class RegistryError(LedgerError):
    """The registry does not have what was asked for, or not in force."""

    def __init__(self, message: str) -> None:
        super().__init__("not-registered", message)


class RejectedError(LedgerError):
    """A contract's no: the transaction is well made and does not apply. The code goes into the outcome."""


class BadCopyError(LedgerError):
    """These bytes are not the block that its header describes: another source may have it."""

    def __init__(self, message: str) -> None:
        super().__init__("bad-copy", message)


class NotNextError(LedgerError):
    """A good block perhaps, but not the one that comes next."""

    def __init__(self, got: int, expected: int) -> None:
        super().__init__("not-next", f"block {got} where block {expected} comes next")
        self.expected = expected


class BlockRefusedError(LedgerError):
    """A matching, signed block that breaks a rule: whoever follows the chain halts here.

    `transaction` is the id of the one that breaks it, where there is one.
    """

    def __init__(self, code: str, message: str, transaction: str | None = None) -> None:
        super().__init__(code, message)
        self.transaction = transaction


class DivergedError(LedgerError):
    """Executing a good block here gives another result than its header states: never go on."""

    def __init__(self, message: str) -> None:
        super().__init__("diverged", message)
