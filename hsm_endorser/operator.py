"""What an operator may do with a running device: drain, resume, unlock, release, change the PIN, make keys, audit.

Nobody else reaches it: the control listener is a Unix socket of mode 0600 (see `docs/operations.md`).

The order of a PIN change, and what a crash after each step leaves behind:

    1  the gate closes, and what is under way ends          nothing has changed
    2  a worker that is logged in with the old PIN is there nothing has changed
    3  the new PIN is written to `pin.new`, synced          the next start tries `pin.new` once; refused, it says so
    4  C_SetPIN on the token                                the same; accepted, the start goes on with step 5
    5  `pin.new` is renamed to `pin`, synced                done: the next start uses the new PIN
    6  a new worker logs in and proves the identity         done
    7  the gate opens, if it was open before                done

No step deletes a PIN before the token has accepted its successor, and no PIN is tried twice.
"""

import contextlib
from typing import Final

import structlog

from hsm_endorser.custody.statement import Auditor
from hsm_endorser.errors import PinFileError
from hsm_endorser.gate import Gate
from hsm_endorser.pin import checked
from hsm_endorser.rotation import Rotations
from hsm_endorser.signing import GuardedToken
from hsm_endorser.worker_messages import Pin

DRAIN_SECONDS: Final = 30.0

log = structlog.get_logger()


class Operator:
    """The operator's acts on one device. All raise `DeviceError`."""

    def __init__(self, gate: Gate, signer: GuardedToken, rotations: Rotations, auditor: Auditor) -> None:
        self._gate = gate
        self._signer = signer
        self.auditor = auditor
        """Audits the token (see `custody.statement`), while the device works or stands drained."""
        self.rotations = rotations
        """Makes and announces keys (see `rotation`); a drained device does so, too."""

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Take nothing new; returns when nothing is under way any more."""
        self._gate.close()
        log.info("draining", under_way=self._gate.under_way)
        await self._gate.idle(seconds)
        log.info("drained")

    def resume(self) -> None:
        """Take requests again."""
        self._gate.open()
        log.info("resumed")

    async def unlock(self, pin: bytes) -> None:
        """Log in with a PIN that the operator entered: one try."""
        await self._signer.token.unlock(_entered(pin))
        log.info("unlocked")

    async def release(self) -> None:
        """End a quarantine, or what a refused PIN has stopped; the token proves itself as at any start."""
        log.warning("the operator puts the token back into service")
        await self._signer.token.release()

    async def change_pin(self, old: bytes | None, new: bytes) -> None:
        """Change the PIN; `old` None is the one that the device has. The steps stand at the top."""
        wanted, before = _entered(new), _entered(old) if old is not None else None
        closed_before = self._gate.closed_because
        self._gate.close(closed_before or "the PIN is being changed")
        try:
            await self._gate.idle(DRAIN_SECONDS)
            await self._signer.token.change_pin(before, wanted)
        finally:
            if not closed_before:
                self._gate.open()
        log.info("the PIN was changed")


def _entered(data: bytes) -> Pin:
    with contextlib.suppress(PinFileError):
        return Pin(checked(data.removesuffix(b"\n"), "the PIN"))
    raise PinFileError("the PIN that was entered must be one line of 4 to 255 bytes of UTF-8")
