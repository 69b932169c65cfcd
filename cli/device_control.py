"""What an operator says to a running device, over the control socket that its configuration names."""

from pathlib import Path
from typing import Any, Final

import msgspec

from cli.api import Service
from cli.errors import UnreachableError, UsageError
from protocol import canonical

DRAIN_SECONDS: Final = 30
TIMEOUT_SECONDS: Final = 60.0
LONGEST_SECONDS: Final = TIMEOUT_SECONDS + 600


class DeviceControl(Service):
    """The operator's listener of the device that a configuration describes. Raises `UsageError`, `UnreachableError`."""

    def __init__(self, config: Path) -> None:
        from hsm_endorser.config import load  # noqa: PLC0415  this room is loaded by device commands alone
        from hsm_endorser.errors import ConfigError  # noqa: PLC0415

        try:
            settings = load(config)
        except ConfigError as error:
            raise UsageError(str(error)) from None
        if settings.control is None:
            raise UsageError(
                f"{config} has no control listener",
                advice='write control = "unix:control.sock" into it, and restart the device',
            )
        try:
            super().__init__(settings.control, timeout=TIMEOUT_SECONDS + DRAIN_SECONDS)
        except UnreachableError as error:
            raise UnreachableError(
                error.reason, advice=f"start the device first: hsm-endorser device --config {config}"
            ) from None

    def status(self) -> dict[str, Any]:
        """What the device says of itself."""
        found: dict[str, Any] = msgspec.json.decode(self._get("/v1/status"))
        return found

    def order(self, path: str, body: bytes = b"") -> dict[str, Any]:
        """Give an order; what the device says of itself afterwards."""
        answer: dict[str, Any] = msgspec.json.decode(self._post(path, body, timeout=LONGEST_SECONDS))
        return answer

    def ask(self, path: str, body: object) -> bytes:
        """Give an order in canonical JSON; the answer as it came."""
        return self._post(path, canonical.encode(body), timeout=LONGEST_SECONDS)
