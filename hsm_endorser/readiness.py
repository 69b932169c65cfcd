"""Whether the device can do its work now: only a real signature proves that its token can (requirement E-20)."""

import asyncio
import contextlib
import time
from typing import Final

from hsm_endorser.chain import Chain
from hsm_endorser.device import Device
from hsm_endorser.doors import Doors
from hsm_endorser.errors import DeviceError, RefusedError, TokenUnavailableError
from hsm_endorser.identity import STATEMENT_TYPE, IdentityStatement
from hsm_endorser.lifetimes import Lifetimes
from hsm_endorser.metrics import Metrics
from hsm_endorser.signing import GuardedToken
from ledger.errors import RegistryError
from protocol import canonical
from protocol.envelope import Envelope, pae
from protocol.keys import key_id
from protocol.messages import DeviceStatus
from transport.operations import Readiness

FRESH_SECONDS: Final = 2.0
"""How long an answered challenge counts."""
WARNING: Final = "keys"
"""The check that keeps nothing from going on."""


class Health:
    """What operators, routing and verifiers are told about one device."""

    def __init__(
        self,
        device: Device,
        chain: Chain,
        doors: Doors,
        signer: GuardedToken,
        *,
        lifetimes: Lifetimes,
        metrics: Metrics,
    ) -> None:
        self._device = device
        self._chain = chain
        self._doors = doors
        self._signer = signer
        self._lifetimes = lifetimes
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._asked = float("-inf")
        self._token = "not asked yet"

    async def readiness(self) -> Readiness:
        """The checks: the token answered a challenge within `FRESH_SECONDS`, the guard is sound, the chain goes on,
        and no operator drains the device. A key that expires soon is told of, and keeps nothing from going on (K-13).
        """
        checks = {
            "token": await self._token_check(),
            "guard": self._signer.guard.trouble or "ok",
            "chain": f"halted: {self._chain.halted}" if self._chain.halted else "ok",
            "gate": self._device.gate.closed_because or "ok",
        }
        ready = all(check == "ok" for check in checks.values())
        self._metrics.ready.set(ready)
        return Readiness(ready, {**checks, WARNING: self._lifetimes.warning() or "ok"})

    async def status(self) -> DeviceStatus:
        """The live state, as routing sees it (requirement E-7)."""
        readiness = await self.readiness()
        return DeviceStatus(
            device=self._device.name,
            nodes=tuple(sorted(self._served_nodes())),
            doors=self._doors.open_doors,
            height=self._chain.height,
            ready=readiness.ready,
            reason="; ".join(f"{name}: {check}" for name, check in readiness.checks.items() if _hinders(name, check)),
            queued=self._device.queued,
            token_restarts=self._signer.token.restarts,
            batch_microseconds=round(1e6 * self._device.batch_seconds),
            failed_permille=round(1000 * self._device.failed_share),
        )

    def _served_nodes(self) -> set[str]:
        """The nodes for which a key on the token counts in the next block."""
        registry, device = self._chain.registry, self._device.name
        height, block_time = self._chain.height + 1, self._chain.time
        served = set()
        for key, node in registry.keys_on_device(device).items():
            if key in self._signer.token.keys:
                with contextlib.suppress(RegistryError):
                    registry.node_key(node, key, device=device, height=height, time=block_time)
                    served.add(node)
        return served

    async def statement(self, nonce: str) -> Envelope:
        """Who this is, signed by the identity key over the asker's nonce (requirement E-20).

        A device that counts no more is nobody: it says so instead (requirements K-13, K-14).
        """
        self._require_in_force()
        token, identity = self._signer.token, self._signer.token.identity
        if identity is None or token.info is None:
            raise TokenUnavailableError(token.trouble or "the token holds no identity key")
        payload = canonical.encode(
            IdentityStatement(device=self._device.name, network=self._chain.network, token=token.info, nonce=nonce)
        )
        signature = await self._signer.sign("statement", identity.public_key.id, pae(STATEMENT_TYPE, payload))
        return Envelope(payload, STATEMENT_TYPE, (signature,))

    def _require_in_force(self) -> None:
        registry, name = self._chain.registry, self._device.name
        lapse = registry.device_lapse(name, height=self._chain.height + 1, time=self._chain.time)
        entry = registry.device(name)
        if entry is not None and registry.revocation(key_id(entry.identity)):
            raise RefusedError("revoked", f"{lapse}; its identity key signs nothing more")
        if lapse:
            raise RefusedError("key-expired", f"{lapse}; put another in its place: hsm-endorser device replace {name}")

    async def _token_check(self) -> str:
        async with self._lock:
            token = self._signer.token
            if token.trouble:
                return token.trouble
            if time.monotonic() - self._asked > FRESH_SECONDS:
                self._token = await self._challenge()
                if self._token == "ok":  # a no is not remembered: the token may be back at the next question
                    self._asked = time.monotonic()
            return self._token

    async def _challenge(self) -> str:
        identity = self._signer.token.identity
        if identity is None:
            return "the token holds no identity key"
        try:
            await self._signer.token.challenge(identity.public_key.id)
        except DeviceError as error:
            return f"{error.code}: {error}"
        return "ok"


def _hinders(name: str, check: str) -> bool:
    return check != "ok" and name != WARNING
