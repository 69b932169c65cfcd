"""Runs a ceremony, from its first step or from where it was interrupted (requirement K-11).

The transcript is the state: what stands in it is done and is never done again, what does not is done now. Each step is
on the disk before the next begins. So a crash at any point costs one step at most, and never makes a second key: a key
that was generated for a step that was not kept is found again by the device's journal.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from cli import plan as folders
from cli import role_holder
from cli.ceremony import words
from cli.ceremony.devices import Devices, spoilt
from cli.ceremony.people import People
from cli.ceremony.plan import URI, Plan, token_config
from cli.ceremony.record import Record
from cli.errors import CommandError, UsageError, VerificationFailedError
from cli.plan import Layout, write_settings
from cli.role_holder import Signer
from hsm_endorser.errors import DeviceError
from ledger.errors import LedgerError
from ledger.genesis import check_genesis, draft_genesis, genesis_payload
from protocol import canonical, ceremony
from protocol.block import Block
from protocol.ceremony import (
    CA,
    CENTER,
    PAYLOAD_TYPE,
    Act,
    Audited,
    Authorized,
    Certified,
    Declared,
    Expected,
    Founded,
    Generated,
    Proposed,
)
from protocol.envelope import Envelope, Signature
from protocol.errors import ProtocolError
from protocol.keys import PublicKey
from protocol.transaction import PAYLOAD_TYPE as TRANSACTION
from protocol.transcript import Transcript

FOLDER: Final = "ceremony"
TRANSCRIPT: Final = "transcript"
PLAN: Final = "plan.toml"
PREPARED: Final = (Declared, Authorized)
"""Steps that change nothing on a token: what they say is shown before anybody agrees."""

Say = Callable[[str], None]


def transcript_path(folder: Path) -> Path:
    """Where the transcript stands in a network's folder."""
    return folder / FOLDER / TRANSCRIPT


async def run(plan: Plan, folder: Path, people: People, say: Say) -> Transcript:
    """Run the ceremony of `plan` into `folder`, which becomes a network's folder; the complete transcript.

    Raises `CommandError` (`NotAgreedError` where somebody does not sign), and what was done until then stays done.
    """
    folder = _prepare(folder)
    record, torn = Record.open(transcript_path(folder))
    try:
        if torn:
            say("The last step was interrupted while it was written; it is done again.")
        _require_same(plan, record.transcript, folder)
        if not record.transcript.steps:
            _write(folder / FOLDER / PLAN, plan.data)  # what everybody read, beside what they sign
        if record.transcript.steps:
            say(f"Taking the ceremony up again after step {len(record.transcript.steps)}.")
        ceremony_ = _Ceremony(plan, Layout(folder), people, record, say)
        return await ceremony_.run()
    except DeviceError as error:
        raise CommandError(
            f"the ceremony stopped: {error}",
            code=error.code,
            advice="put that right, then run the same command again; what was done stays",
        ) from None
    except (LedgerError, ProtocolError) as error:
        raise CommandError(f"the ceremony stopped: {error}", code="not-made") from None
    finally:
        record.close()


def _prepare(folder: Path) -> Path:
    """The folder by its absolute path: a new one, or one in which this ceremony was begun."""
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / FOLDER).is_dir():
        raise UsageError(f"{folder} is not empty, and no ceremony was begun in it", advice="choose a new folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in (FOLDER, "devices", "peers", "clients", "administrators", "run", "logs"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    if error := spoilt(folder):
        raise error
    return folder


def _require_same(plan: Plan, transcript: Transcript, folder: Path) -> None:
    if transcript.steps and transcript.declaration != plan.declaration:
        raise VerificationFailedError(
            f"the ceremony in {folder} was begun with another plan (SHA-256 {transcript.declaration.plan[:16]}…, this "
            f"one has {plan.declaration.plan[:16]}…)",
            code="other-plan",
            advice="go on with the plan that was declared, or begin a new ceremony in another folder",
        )


class _Ceremony:
    """One run: who is there, which devices are open, and the transcript."""

    def __init__(self, plan: Plan, layout: Layout, people: People, record: Record, say: Say) -> None:
        self._plan = plan
        self._layout = layout
        self._people = people
        self._record = record
        self._say = say
        self._devices = Devices(plan, layout, people, say)
        self._signers: dict[str, Signer] = {}

    @property
    def _transcript(self) -> Transcript:
        return self._record.transcript

    async def run(self) -> Transcript:
        remaining = self._transcript.remaining if self._transcript.steps else ceremony.sequence(self._plan.declaration)
        if remaining:
            async with self._assembled():
                for expected in remaining:
                    await self._step(expected)
        self._write_folder()
        return self._transcript

    @contextlib.asynccontextmanager
    async def _assembled(self) -> AsyncIterator[None]:
        """Those present with their keys, and all devices that have theirs."""
        async with contextlib.AsyncExitStack() as held:
            held.push_async_callback(self._devices.close)
            for name, where in (await self._people.present(self._plan.file.administrator)).items():
                table = self._plan.administrator(name)
                public = next(PublicKey.load(each.key) for each in self._plan.declaration.holders if each.name == name)
                signer = await role_holder.open_signer(
                    name,
                    where,
                    public,
                    environment=table.environment,
                    base=self._plan.path.parent,
                    ask_pin=self._people.pin,
                )
                held.push_async_callback(signer.close)
                self._signers[name] = signer
                _write_held(self._layout, self._plan, name, where, public)
            needed = self._plan.declaration.needed
            if len(self._signers) < needed:
                raise UsageError(
                    f"{', '.join(self._signers) or 'nobody'} is present where {needed} role holders are needed: "
                    "nothing is generated by one person alone",
                    advice="bring another role holder, then run the same command again",
                )
            await self._devices.reopen(self._transcript)
            yield

    async def _step(self, expected: Expected) -> None:
        """Let those present agree to a step, do it, sign it, keep it."""
        number = len(self._transcript.steps) + 1
        present = tuple(self._signers)
        act = await self._do(expected) if expected.kind in PREPARED else None
        text = words.done(act) if act is not None else words.intention(expected, self._plan.declaration)
        await self._people.agree(present, number, text)
        if act is None:
            act = await self._do(expected)
        step = self._transcript.draft(act, time=_now(), present=present)
        payload = ceremony.encode(step)
        signatures: list[Signature] = [await self._signers[name].sign(payload, PAYLOAD_TYPE) for name in present]
        signatures += [await self._devices.sign(name, payload) for name in step.devices]
        self._record.append(canonical.encode(Envelope(payload, PAYLOAD_TYPE, tuple(signatures))))
        self._say(f"{number}. {' '.join(words.done(act))}")

    async def _do(self, expected: Expected) -> Act:
        declaration, device = self._plan.declaration, expected.device
        if expected.kind is Declared:
            return Declared(declaration)
        if expected.kind is Authorized:
            return await self._authorize(device)
        if expected.kind is Generated:
            authorized = self._transcript.steps[-1].act
            assert isinstance(authorized, Authorized)  # noqa: S101  the sequence of steps says so
            return await self._devices.generate(authorized, self._transcript.digest)
        if expected.kind is Certified:
            ca, holder = declaration.place(CA)
            return Certified(await self._devices.certify(holder, ca))
        if expected.kind is Audited:
            return Audited(device, await self._devices.audit(device))
        if expected.kind is Proposed:
            return await self._propose()
        return await self._found()

    async def _authorize(self, device: str) -> Authorized:
        planned = next(each.keys for each in self._plan.declaration.devices if each.name == device)
        sight = await self._devices.look(device)
        taken = sorted({key.label for key in planned} & set(sight.labels))
        if taken:
            raise CommandError(
                f"the token of {device} holds keys labelled {', '.join(taken)} already",
                code="label-taken",
                advice="a ceremony generates its keys itself: take an empty token",
            )
        return Authorized(device, sight.token, planned, sight.objects)

    async def _propose(self) -> Proposed:
        payload = genesis_payload(self._plan.declaration.network, self._transcript.entries())
        signatures = [await signer.sign(payload, TRANSACTION) for signer in self._signers.values()]
        transaction = canonical.encode(Envelope(payload, TRANSACTION, tuple(signatures)))
        at = max(_now(), self._transcript.steps[-1].time)
        draft_genesis(transaction, at)  # refused here, before it is signed as a step
        return Proposed(transaction, at)

    async def _found(self) -> Founded:
        proposed = self._transcript.act(Proposed)
        draft = draft_genesis(proposed.transaction, proposed.time)
        center, device = self._plan.declaration.place(CENTER)
        if not _is_founded(self._layout.genesis, draft):
            block = await self._devices.sign_genesis(device, center, draft)
            check_genesis(Block.decode(block.encode()))
            _write(self._layout.genesis, block.encode())
        return Founded(draft.authentication)

    def _write_folder(self) -> None:
        """What makes it a network's folder, `network.toml` at the end; the same again changes nothing."""
        network, declaration = self._plan.network_plan, self._plan.declaration
        self._layout.management.mkdir(mode=0o700, exist_ok=True)
        settings = folders.management_settings(network)
        settings |= {"name": declaration.place(CENTER)[0], "ca_name": declaration.place(CA)[0]}
        write_settings(self._layout.management / "management.toml", settings)
        for name in network.peers:
            self._layout.peer(name).mkdir(mode=0o700, exist_ok=True)
            write_settings(self._layout.peer(name) / "peer.toml", folders.peer_settings(name))
        digest = self._transcript.steps[-2].previous  # the step before `proposed`
        write_settings(self._layout.network_file, folders.network_settings(network) | {"ceremony": digest})


def _write_held(layout: Layout, plan: Plan, name: str, where: str, public: PublicKey) -> None:
    """Where an administrator's key is, and not the key itself: the same commands find it there later."""
    base, environment = plan.path.parent, plan.administrator(name).environment
    place, resolved = str((base / where).absolute()), dict(environment)
    if where.startswith(URI):
        token = token_config(plan.path, where, environment)
        place, resolved = token.uri.format(), dict(token.environment)
    settings = {"where": place, "public_key": public.spki.hex(), "environment": resolved}
    write_settings(layout.folder / "administrators" / f"{name}{role_holder.HELD}", settings)


def _is_founded(path: Path, draft: Block) -> bool:
    """Whether an interrupted run has written block 0 already."""
    try:
        block = Block.decode(path.read_bytes())
        check_genesis(block)
    except (FileNotFoundError, ProtocolError, LedgerError):
        return False
    return block.authentication == draft.authentication


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole, and durably, or not at all."""
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> int:
    return time.time_ns() // 1_000_000
