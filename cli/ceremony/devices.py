"""The devices at a ceremony: their folders, their guards, and what their tokens do, each signature by way of the guard.

A key that is found on a token under a planned label is taken only when this device's own journal says that it was made
there: what somebody put on the token by hand is refused (requirements K-10, K-11).
"""

import contextlib
import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from cli import plan as folders
from cli.ceremony.people import People
from cli.ceremony.plan import Plan
from cli.errors import CommandError
from cli.plan import Layout
from hsm_endorser import dry_run, provision
from hsm_endorser.config import Config, load
from hsm_endorser.dry_run import Sight
from hsm_endorser.errors import GuardDamagedError, TokenRefusedError
from hsm_endorser.guard import Guard
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token import Pinned
from hsm_endorser.token_key import TokenKey
from hsm_endorser.worker_messages import Pin
from protocol import block as blocks
from protocol import canonical, ceremony, x509_tbs
from protocol.block import Block
from protocol.canonical import KeyId
from protocol.ceremony import CA, IDENTITY, Authorized, Generated, MadeKey, PlannedKey
from protocol.envelope import Envelope, Signature, pae
from protocol.transcript import Transcript

GUARD_FILES: Final = ("", "-wal", "-shm", ".mark")

SPOILT: Final = "ceremony/spoilt"

Say = Callable[[str], None]


class Devices:
    """The devices of a plan whose folders stand in a network's folder; open ones stay open until `close`."""

    def __init__(self, plan: Plan, layout: Layout, people: People, say: Say) -> None:
        self._plan = plan
        self._layout = layout
        self._people = people
        self._say = say
        self._open: dict[str, GuardedToken] = {}
        self._pins: dict[str, Pin] = {}
        self._held = contextlib.AsyncExitStack()

    async def close(self) -> None:
        """Close all tokens and guards."""
        await self._held.aclose()

    async def look(self, name: str) -> Sight:
        """What is on a device's token; changes nothing."""
        return await dry_run.look(self._plan.token(name), await self._pin(name))

    async def reopen(self, transcript: Transcript) -> None:
        """Open all devices that have their keys; each must be the one that the transcript knows."""
        for name in transcript.enrolled:
            pinned = Pinned(transcript.token(name), transcript.key(name, IDENTITY).id)
            config = self._config(name)
            guard = Guard.open(config.guard, network=self._plan.file.network, device=name)
            await self._start(name, config, guard, pinned)

    async def generate(self, authorized: Authorized, after: str) -> Generated:
        """Generate the keys that were agreed upon, or find those that an interrupted run has made, and let each prove
        its possession over the step `after`.
        """
        name = authorized.device
        config = self._config(name)
        signer = await self._start(name, config, await self._new_guard(config, authorized), None)
        if signer.token.info != authorized.token:
            raise CommandError(
                f"{name}: this is token serial {getattr(signer.token.info, 'serial', '?')}, agreed upon was "
                f"{authorized.token.serial}",
                code="other-token",
                advice="plug the right token in, and run the same command again",
            )
        made = [await self._made(name, signer, planned, after) for planned in authorized.keys]
        return Generated(name, authorized.token, tuple(made))

    async def sign(self, name: str, payload: bytes) -> Signature:
        """The signature of a device's identity key over a step."""
        signer = self._open[name]
        identity = signer.token.identity
        if identity is None:
            raise CommandError(f"{name} has lost its identity key", code="token")
        return await signer.sign("statement", identity.public_key.id, pae(ceremony.PAYLOAD_TYPE, payload))

    async def certify(self, name: str, ca: str) -> bytes:
        """The certificate of the CA `ca` (DER), signed by its own key on the token of `name`."""
        signer, key = self._open[name], self._key(name, CA + ca).public_key
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self._plan.file.network} {ca}")])
        begins = dt.datetime.now(tz=dt.UTC).replace(microsecond=0)
        ends = begins + dt.timedelta(days=self._plan.file.lifetimes.ca)
        tbs = provision.ca_tbs(key, subject, begins=begins - provision.BACKDATED, ends=ends)
        signature = await signer.sign("certificate", key.id, tbs)
        return x509_tbs.wrap(tbs, key.scheme, signature.sig)

    async def audit(self, name: str) -> bytes:
        """The custody statement of a device: the canonical bytes of its envelope."""
        from hsm_endorser.custody import profile  # noqa: PLC0415  only where the plan demands a tier
        from hsm_endorser.custody.statement import Auditor  # noqa: PLC0415

        auditor = Auditor(name, self._plan.file.network, self._open[name])
        return canonical.encode(await auditor.audit(profile.load(self._plan.device(name).profile)))

    async def sign_genesis(self, name: str, center: str, draft: Block) -> Block:
        """Block 0 under the center's signature; the guard lets it sign this one and no other."""
        signer, key = self._open[name], self._key(name, ceremony.CENTER + center).public_key
        payload = draft.envelope.payload
        header = (draft.header.height, draft.authentication)
        signature = await signer.sign("header", key.id, pae(blocks.PAYLOAD_TYPE, payload), header=header)
        return draft.signed(Envelope(payload, blocks.PAYLOAD_TYPE, (signature,)))

    # --- one token ----------------------------------------------------------------------------------------

    async def _made(self, device: str, signer: GuardedToken, planned: PlannedKey, after: str) -> MadeKey:
        holder = _holder(device, planned.label)
        key = await self._found(signer, planned)
        if key is None:
            self._say(f"{device}: generating {planned.label} ({planned.scheme})")
            try:
                key = await signer.generate(planned.label, holder, planned.scheme)
            except TokenRefusedError as error:
                raise await self._not_generated(device, planned.label, error) from None
        public = key.public_key
        message = ceremony.possession(self._plan.file.network, device, planned.label, public.spki, after)
        proof = await signer.sign("challenge", public.id, message)
        return MadeKey(planned.label, public.spki, proof.sig)

    async def _not_generated(self, device: str, label: str, error: TokenRefusedError) -> CommandError:
        """Some tokens make a key otherwise than they were told, and keep it: it must never be taken for a good one."""
        reason = f"{device} did not generate {label} as it should have: {error}"
        if label not in (await self.look(device)).labels:
            return CommandError(reason, code="not-generated", advice="put that right, then run the same command again")
        spoil(self._layout.folder, reason)
        return spoilt(self._layout.folder) or CommandError(reason)

    async def _found(self, signer: GuardedToken, planned: PlannedKey) -> TokenKey | None:
        """The key that an interrupted run has made; a key from elsewhere under its label is refused."""
        labelled = [key for key in signer.token.keys.values() if key.label == planned.label]
        if not labelled:
            return None
        key = labelled[0]
        handle = KeyId(key.handle.hex())
        rows = await signer.in_guard_thread(lambda: signer.guard.journal(key=handle))
        made_here = any(row.entry.purpose == "generation" for row in rows)
        if len(labelled) > 1 or not made_here or key.public_key.scheme != planned.scheme:
            raise CommandError(
                f"the token holds {len(labelled)} keys {planned.label!r}, which this ceremony has not made",
                code="foreign-key",
                advice="somebody used this token meanwhile: initialise it anew, and begin a new ceremony",
            )
        return key

    def _key(self, device: str, label: str) -> TokenKey:
        return next(key for key in self._open[device].token.keys.values() if key.label == label)

    async def _start(self, name: str, config: Config, guard: Guard, pinned: Pinned | None) -> GuardedToken:
        pin = await self._pin(name)
        token = msgspec.structs.replace(config.token_config, note=None)  # a wrong PIN is said here, to those present
        signer = await GuardedToken.start(guard, token, pinned=pinned, patient=pin is not None)
        self._held.push_async_callback(signer.close)
        if pin is not None:
            await signer.token.unlock(pin)
        self._open[name] = signer
        return signer

    async def _pin(self, name: str) -> Pin | None:
        """The PIN of a token whose URI names no file: asked for once."""
        if self._plan.token(name).uri.pin_file is not None:
            return None
        if name not in self._pins:
            self._pins[name] = Pin(await self._people.pin(f"the token of {name}"))
        return self._pins[name]

    def _config(self, name: str) -> Config:
        """A device's configuration, written where the device will look for it."""
        folder = self._layout.device(name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        token, table = self._plan.token(name), self._plan.device(name)
        settings = folders.device_settings(name, token.uri.format(), token.environment)
        settings["token"] |= {"deadline_ms": table.deadline_ms, "rsa_bits": table.rsa_bits}
        folders.write_settings(folder / "device.toml", settings)
        return load(folder / "device.toml")

    async def _new_guard(self, config: Config, authorized: Authorized) -> Guard:
        """The guard of a device that has no keys yet, or of one whose generation was interrupted."""
        network = self._plan.file.network
        if not config.guard.exists():
            return Guard.create(config.guard, network=network, device=config.name)
        try:
            return Guard.open(config.guard, network=network, device=config.name)
        except GuardDamagedError:
            # An interrupted creation: no key was made behind this guard, unless the token shows one.
            sight = await self.look(config.name)
            if any(key.label in sight.labels for key in authorized.keys):
                raise
            _remove_guard(config.guard)
            return Guard.create(config.guard, network=network, device=config.name)


def spoil(folder: Path, reason: str) -> None:
    """Write down that the ceremony in `folder` cannot go on: a key on a token is not what it should be."""
    with (folder / SPOILT).open("w", encoding="utf-8") as file:
        file.write(reason)
        file.flush()
        os.fsync(file.fileno())


def spoilt(folder: Path) -> CommandError | None:
    """Why the ceremony in `folder` cannot go on; None when it can."""
    path = folder / SPOILT
    if not path.exists():
        return None
    advice = "initialise that token anew, and begin a new ceremony in another folder"
    return CommandError(path.read_text(encoding="utf-8"), code="spoilt", advice=advice)


def _remove_guard(path: Path) -> None:
    """What an interrupted creation has left; no signature was ever made behind it."""
    for suffix in GUARD_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _holder(device: str, label: str) -> str:
    """The registry entry that will hold a key."""
    if label == IDENTITY:
        return f"device/{device}"
    return f"registrar/{label.removeprefix(CA)}" if label.startswith(CA) else label
