"""Who signs headers: the device on whose token this center's key lives, through its typed door."""

import time
from collections.abc import Mapping
from typing import Final, Protocol

from ledger.replica import Replica
from management.errors import DeviceUnreachableError
from protocol.envelope import Signature
from protocol.messages import DeviceStatus

DOOR: Final = "sign-header"
SIGN_SECONDS: Final = 15.0
"""The device brings its replica up to date and executes the block before it signs."""


class Doors(Protocol):
    """A device with typed doors."""

    status: DeviceStatus | None
    reason: str

    async def sign(self, door: str, body: bytes, seconds: float = ...) -> Signature:
        """The signature that a door gives for a body."""
        ...


class HeaderSigner:
    """Finds the device of a center and asks it."""

    def __init__(self, replica: Replica, devices: Mapping[str, Doors], center: str) -> None:
        self._replica = replica
        self._devices = devices
        self._center = center

    def trouble(self) -> str:
        """Why no header can be signed now; empty when one can."""
        try:
            device = self._device()
        except DeviceUnreachableError as error:
            return str(error)
        if device.status is None or not device.status.ready:
            return f"the device with the key of center {self._center} is not ready: {device.reason}"
        if DOOR not in device.status.doors:
            return f"the device that should hold the key of center {self._center} offers no {DOOR}"
        if self._replica.takes_repairs_only(max(self._replica.time, time.time_ns() // 1_000_000)):
            return (
                f"the key of center {self._center} is expired or below the channel's tier: only registry transactions "
                "are committed; rotate it, or register a better custody statement (docs/key-life-cycle.md)"
            )
        return ""

    async def sign_header(self, body: bytes) -> Signature:
        """The center's signature under the header of an unsigned block (canonical bytes). Raises `ManagementError`."""
        return await self._device().sign(DOOR, body, SIGN_SECONDS)

    def _device(self) -> Doors:
        entry = self._replica.registry.center(self._center)
        if entry is None:
            raise DeviceUnreachableError(
                f"center {self._center} is not in the registry; correct `name` in the configuration"
            )
        device = self._devices.get(entry.device)
        if device is None:
            raise DeviceUnreachableError(
                f"the key of center {self._center} lives on device {entry.device}; name it in the configuration"
            )
        return device
