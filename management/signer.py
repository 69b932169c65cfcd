"""Who signs headers: the device on whose token this center's key lives, through its typed door."""

from collections.abc import Mapping
from typing import Final, Protocol

from ledger.replica import Replica
from management.errors import DeviceUnreachableError
from protocol.envelope import Signature

SIGN_SECONDS: Final = 15.0
"""The device brings its replica up to date and executes the block before it signs."""


class Doors(Protocol):
    """A device with typed doors."""

    async def sign(self, door: str, body: bytes, seconds: float = ...) -> Signature:
        """The signature that a door gives for a body."""
        ...


class HeaderSigner:
    """Finds the device of a center and asks it."""

    def __init__(self, replica: Replica, devices: Mapping[str, Doors], center: str) -> None:
        self._replica = replica
        self._devices = devices
        self._center = center

    async def sign_header(self, body: bytes) -> Signature:
        """The center's signature under the header of an unsigned block (canonical bytes). Raises `ManagementError`."""
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
        return await device.sign("sign-header", body, SIGN_SECONDS)
