"""Rotation: the device makes a new key on its token, and the old key and the new one announce it (requirement K-12).

No order names bytes to be signed: the announcement is built here, from the device's own copy of the chain.

    1. the copy of the chain goes on, the guard is sound, the token is there
    2. the holder is in the registry, and none of its keys here waits for the height from which it counts
    3. the key to be replaced lives here and counts in the next block, or it could announce nothing
    4. from when to when the new key is to count makes sense at this height and block time
    5. the new key: one that was made for this holder and is not announced yet, else a fresh one by the strict template
    6. a registrar's new key has its certificate
    7. both sign, each after it stands in the guard's journal

Whoever asks again, after whatever crash, gets an announcement of the same new key: step 5 records in the journal which
key is about to be made before the token makes it. A key that somebody put on the token by hand is never taken.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
import structlog
from cryptography import x509

from hsm_endorser import certificates, der, provision
from hsm_endorser.chain import Chain
from hsm_endorser.errors import BusyError, GuardError, NotReadyError, RefusedError
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token_key import TokenKey
from ledger import entry_history
from ledger.errors import RegistryError
from ledger.registry_view import RegistryView
from ledger.replica import Replica
from protocol import canonical, rotation
from protocol.canonical import Digest, Height, KeyId, Milliseconds
from protocol.envelope import Envelope, pae
from protocol.keys import PublicKey, Scheme, key_id
from protocol.registry import Lifetime, decode_entry, spkis_of
from protocol.rotation import MOST_OVERLAP, Announcement

Holder = Annotated[str, msgspec.Meta(pattern=r"\A(node|center|registrar)/[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
"""The registry entry that holds the key; clients and administrators have their keys elsewhere."""

FARTHEST: Final = 100_000
"""How many blocks ahead a key may be announced."""
WAIT_SECONDS: Final = 30.0
"""How long one order waits for another one."""
LABELS: Final = {"registrar": "ca"}
"""How the keys of a kind of holder are labelled where it is not by the kind itself."""

log = structlog.get_logger()


class RotationOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/rotations`: whose key, from which height on the new one counts, and how long both do."""

    holder: Holder
    since: Height
    overlap: Annotated[int, msgspec.Meta(ge=0, le=MOST_OVERLAP)]
    not_before: Milliseconds
    until: Milliseconds
    old: Digest | None = None
    """The id of the key to be replaced; without it, the one that signs for the holder on this device."""
    scheme: Scheme | None = None
    """Of the new key; that of the old one unless it is given."""
    certificate: bytes = b""
    """DER, of a registrar's new key; without it the new key certifies itself, as the one before it did."""


class KeyOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/keys`: a key to be made for a holder that is to have one on this device."""

    holder: Holder
    scheme: Scheme = "ecdsa-p256-sha256"
    until: Milliseconds | None = None
    """For a registrar: until when the key certifies itself; without it, no certificate is made."""


class Made(msgspec.Struct, frozen=True):
    """A key that is on the token and not in the registry: it has answered a challenge and signed nothing else."""

    holder: str
    label: str
    id: KeyId
    key: bytes
    """Its SubjectPublicKeyInfo, DER."""
    certificate: bytes = b""
    """DER, of a registrar's key that was ordered with an end."""


class Rotated(msgspec.Struct, frozen=True):
    """The announcement under both signatures, for the administrators' transaction, and the new key."""

    announcement: Envelope
    made: Made


class _Place(msgspec.Struct, frozen=True):
    """Where the device stands: what is in force for the next block, its height, and the last block's time (ms)."""

    registry: RegistryView
    height: int
    time: int
    ever: frozenset[str]
    """Every key that the holder has ever had, by id: none of them comes a second time."""


class Rotations:
    """Makes and announces keys of one device. Raises `RefusedError`, `NotReadyError`, `GuardError`, `TokenError`."""

    def __init__(self, device: str, chain: Chain, signer: GuardedToken) -> None:
        self._device = device
        self._chain = chain
        self._signer = signer
        self._one_at_a_time = asyncio.Lock()

    async def announce(self, order: RotationOrder) -> Rotated:
        """The announcement of a new key; the steps stand at the top."""
        async with self._alone():
            place = await self._place(order.holder)
            old = self._old(order, place)
            _check_dates(order, place)
            made = await self._make(order.holder, order.scheme or old.scheme, place)
            certificate = await self._certificate(order, place, made)
            payload = canonical.encode(
                Announcement(
                    network=self._chain.network,
                    holder=order.holder,
                    old=old.id,
                    new=made.public_key.spki,
                    device=self._device,
                    since=order.since,
                    overlap=order.overlap,
                    not_before=order.not_before,
                    until=order.until,
                    certificate=certificate,
                )
            )
            message = pae(rotation.PAYLOAD_TYPE, payload)
            signatures = [await self._signer.sign("rotation", key, message) for key in (old.id, made.public_key.id)]
            announcement = Envelope(payload, rotation.PAYLOAD_TYPE, tuple(signatures))
            rotation.verify(announcement, old)
        log.info("key announced", holder=order.holder, old=old.id, new=made.public_key.id, since=order.since)
        return Rotated(announcement, _told(order.holder, made))

    async def make(self, order: KeyOrder) -> Made:
        """A key for a holder; asked again, the same one, until it is in the registry."""
        async with self._alone():
            place = await self._place(order.holder)
            made = await self._make(order.holder, order.scheme, place)
            told = _told(order.holder, made)
            if order.until is None or not order.holder.startswith("registrar/"):
                return told
            certificate = await self._certify(order.holder, made, place, place.time, order.until)
            return msgspec.structs.replace(told, certificate=certificate)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One order at a time: two at once would make two keys."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            raise BusyError("another key is being made or announced on this device; try again in a moment") from None
        try:
            yield
        finally:
            self._one_at_a_time.release()

    async def _place(self, holder: str) -> _Place:
        """Step 1."""
        if self._chain.halted:
            raise NotReadyError(f"this device has halted: {self._chain.halted}")
        if self._signer.guard.trouble:
            raise GuardError(self._signer.guard.trouble)
        await self._signer.token.usable()
        return await self._chain.run(lambda replica: _stand(replica, holder))

    def _old(self, order: RotationOrder, place: _Place) -> PublicKey:
        """Steps 2 and 3: the key that is replaced."""
        known = _keys_of(place.registry, order.holder)
        if not known:
            raise RefusedError("unknown-holder", f"the registry has no {order.holder}")
        found = [(key, lifetime) for key, lifetime, device in known if device in {None, self._device}]
        waiting = [lifetime.since for _, lifetime in found if lifetime.since > place.height + 1]
        if waiting:
            raise RefusedError(
                "rotation-under-way",
                f"a key of {order.holder} that counts from height {max(waiting)} on is announced already; the chain "
                f"stands at {place.height}: wait for it, or let the administrators revoke that key",
            )
        why = f"no key of {order.holder} lives on device {self._device}"
        for key, _ in sorted(found, key=lambda each: -each[1].since):
            if order.old not in {None, key.id}:
                continue
            if key.id not in self._signer.token.keys:
                why = f"key {key.id[:16]}… of {order.holder} is not on this device's token"
                continue
            lapse = _lapse(place, order.holder, key, self._device)
            if not lapse:
                return key
            why = lapse
        raise RefusedError(
            "no-key-in-force",
            f"{why}; only a key that counts can announce its successor. Let the administrators register a new key "
            "(hsm-endorser device replace), or ask the device that holds the one in force",
        )

    async def _make(self, holder: str, scheme: Scheme, place: _Place) -> TokenKey:
        """Step 5."""
        for made in await self._signer.made_for(holder):
            key = made.public_key
            if key.scheme == scheme and key.id not in place.ever and place.registry.revocation(key.id) is None:
                return made
        kind, _, name = holder.partition("/")
        base = f"{LABELS.get(kind, kind)}/{name}"
        return await self._signer.generate(self._free_label(base), holder, scheme)

    def _free_label(self, base: str) -> str:
        """`node/A`, then `node/A/2` and so on: for people, nothing depends on it."""
        labels = {key.label for key in self._signer.token.keys.values()}
        if base not in labels:
            return base
        number = 2
        while f"{base}/{number}" in labels:
            number += 1
        return f"{base}/{number}"

    async def _certificate(self, order: RotationOrder, place: _Place, made: TokenKey) -> bytes:
        """Step 6."""
        if order.holder.startswith("registrar/"):
            if order.certificate:
                certificates.check_ca(order.certificate, made.public_key)
                return order.certificate
            return await self._certify(order.holder, made, place, order.not_before, order.until)
        if order.certificate:
            raise RefusedError("wrong-certificate", f"{order.holder} has no certificate; only a registrar has one")
        return b""

    async def _certify(self, holder: str, made: TokenKey, place: _Place, begins: int, ends: int) -> bytes:
        """The certificate of a CA's new key by itself, under the name that the CA has; times in ms."""
        entry = place.registry.registrar(holder.partition("/")[2])
        if entry is None:
            raise RefusedError("unknown-holder", f"the registry has no {holder}")
        subject = x509.load_der_x509_certificate(entry.certificate).subject
        first, last = (dt.datetime.fromtimestamp(ms // 1000, dt.UTC) for ms in (begins, ends))
        if last <= first:
            raise RefusedError("bad-rotation", f"the certificate would end at {ends} and begin at {begins} (ms)")
        key = made.public_key
        tbs = provision.ca_tbs(key, subject, begins=first - provision.BACKDATED, ends=last)
        signature = await self._signer.sign("certificate", key.id, tbs)
        return der.wrap(tbs, key.scheme, signature.sig)


def _stand(replica: Replica, holder: str) -> _Place:
    """In the ledger's thread."""
    versions = entry_history.versions(replica.store, holder.partition("/")[0])
    entries = [each.entry for each in versions if each.key == holder and each.entry is not None]
    ever = frozenset(key_id(spki) for entry in entries for spki in spkis_of(decode_entry(holder, entry)))
    return _Place(replica.registry, replica.height, replica.time, ever)


def _check_dates(order: RotationOrder, place: _Place) -> None:
    """Step 4."""
    if order.until <= max(order.not_before, place.time):
        raise RefusedError(
            "bad-rotation",
            f"the new key is to count from {order.not_before} until {order.until} (ms), the last block's time is "
            f"{place.time}: it would never count",
        )
    if order.holder.startswith("node/"):
        if not place.height < order.since <= place.height + FARTHEST:
            raise RefusedError(
                "bad-rotation",
                f"the new key is to count from height {order.since} on; the chain stands at {place.height}, and a key "
                f"is announced for {place.height + 1} to {place.height + FARTHEST}",
            )
    elif order.since > place.height + 1 or order.overlap or order.not_before > place.time:
        raise RefusedError(
            "bad-rotation",
            f"{order.holder} has one key, so the new one takes its place at once: give no later height than "
            f"{place.height + 1}, no later time than {place.time} and no overlap",
        )


def _keys_of(registry: RegistryView, holder: str) -> list[tuple[PublicKey, Lifetime, str | None]]:
    """All keys of a holder, each with its lifetime and its device (None where the registry names none)."""
    kind, _, name = holder.partition("/")
    found: list[tuple[PublicKey, Lifetime, str | None]] = []
    if kind == "node" and (node := registry.node(name)):
        found = [(PublicKey.load(each.key), each, each.device) for each in node.keys]
    elif kind == "center" and (center := registry.center(name)):
        found = [(PublicKey.load(center.key), center, center.device)]
    elif kind == "registrar" and (registrar := registry.registrar(name)):
        found = [(PublicKey.load(registrar.key), registrar, None)]
    return found


def _lapse(place: _Place, holder: str, key: PublicKey, device: str) -> str:
    """Why a key does not count in the next block; empty when it does."""
    kind, _, name = holder.partition("/")
    registry, height, time = place.registry, place.height + 1, place.time
    if kind == "node":
        try:
            registry.node_key(name, key.id, device=device, height=height, time=time)
        except RegistryError as error:
            return str(error)
        return ""
    standings = registry.center_standings if kind == "center" else registry.registrar_standings
    standing = standings.get(name)
    return standing.lapse(height, time) if standing else f"the registry has no {holder}"


def _told(holder: str, key: TokenKey) -> Made:
    return Made(holder, key.label, key.public_key.id, key.public_key.spki)
