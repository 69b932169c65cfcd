"""The typed doors of the device that holds the CA's key, as the CA uses them."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from management.errors import DeviceUnreachableError
from protocol.envelope import Signature
from protocol.messages import DeviceStatus

DOOR_SECONDS: Final = 5.0
DOOR_POLL_SECONDS: Final = 0.1
SIGN_SECONDS: Final = 5.0

Door = Literal["sign-certificate", "sign-crl", "sign-registration"]


class Doors(Protocol):
    """A device with typed doors."""

    status: DeviceStatus | None

    async def sign(self, door: str, body: bytes, seconds: float = ...) -> Signature:
        """The signature that a door gives for a body."""
        ...


class CaDoors:
    """Whichever device offers them now."""

    def __init__(self, name: str, devices: Mapping[str, Doors]) -> None:
        self._name = name
        self._devices = devices

    async def sign(self, door: Door, body: bytes, seconds: float = SIGN_SECONDS) -> Signature:
        """The signature that a door gives for a body within so many seconds; raises `ManagementError`."""
        return await (await self._offering(door)).sign(door, body, seconds)

    async def _offering(self, door: Door) -> Doors:
        """The device that offers a door; one that has just started is waited for. Raises `DeviceUnreachableError`."""
        deadline = time.monotonic() + DOOR_SECONDS
        while True:
            for device in self._devices.values():
                if device.status is not None and door in device.status.doors:
                    return device
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(DOOR_POLL_SECONDS)
        raise DeviceUnreachableError(f"no device offers {door} now; start the one that holds the key of {self._name}")
