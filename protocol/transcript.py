"""Verifies a ceremony's transcript, step by step: the state is what has been verified so far, and there is no I/O.

`Transcript.take` is the one way in: whoever writes a transcript and whoever verifies one goes through it (K-11).
"""

import hashlib
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from protocol import canonical, ceremony, custody, registry, tier
from protocol.ceremony import (
    CA,
    CENTER,
    IDENTITY,
    MAX_LINE_BYTES,
    NO_PREVIOUS,
    NODE,
    PAYLOAD_TYPE,
    Act,
    Audited,
    Authorized,
    Certified,
    Declaration,
    Declared,
    Expected,
    Generated,
    PlannedKey,
    Proposed,
    Step,
    check_declaration,
    possession,
    sequence,
)
from protocol.envelope import Envelope, pae
from protocol.errors import BadTranscriptError, ProtocolError
from protocol.keys import PublicKey, key_id
from protocol.registry import Entry
from protocol.transaction import Transaction


class Transcript:
    """The steps that were taken and verified, in order."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.steps: list[Step] = []
        self._keys: dict[tuple[str, str], PublicKey] = {}
        """Keys that were generated, by device and label."""

    @staticmethod
    def read(data: bytes) -> "Transcript":
        """The transcript in a file's bytes: one line for each step; raises `BadTranscriptError`."""
        transcript = Transcript()
        lines = data.split(b"\n")
        if lines.pop() != b"":
            raise BadTranscriptError(len(lines) + 1, "its line is cut short: it has no end")
        for line in lines:
            transcript.take(line)
        return transcript

    @property
    def declaration(self) -> Declaration:
        """What the first step declares."""
        act = self.steps[0].act if self.steps else None
        if not isinstance(act, Declared):
            raise BadTranscriptError(1, "the transcript is empty")
        return act.declaration

    @property
    def digest(self) -> str:
        """The digest of the last line, and thereby of everything before it."""
        return hashlib.sha256(self.lines[-1]).hexdigest() if self.lines else NO_PREVIOUS

    @property
    def remaining(self) -> tuple[Expected, ...]:
        """The steps that are still to be taken; only for a transcript that has its first."""
        return sequence(self.declaration)[len(self.steps) :]

    @property
    def enrolled(self) -> tuple[str, ...]:
        """The devices that have an identity key, in order."""
        return tuple(step.act.device for step in self.steps if isinstance(step.act, Generated))

    def key(self, device: str, label: str) -> PublicKey:
        """A key that was generated; raises `ProtocolError` when it was not."""
        found = self._keys.get((device, label))
        if found is None:
            raise ProtocolError(f"no key {label} was generated on {device}")
        return found

    def token(self, device: str) -> registry.Token:
        """The token of an enrolled device."""
        for step in self.steps:
            if isinstance(step.act, Generated) and step.act.device == device:
                return step.act.token
        raise ProtocolError(f"{device} has no keys yet")

    def act(self, kind: type[Any]) -> Any:
        """The one act of a kind that occurs once (`Certified`, `Proposed`, `Founded`); None when it is not done."""
        return next((step.act for step in self.steps if isinstance(step.act, kind)), None)

    def require_complete(self) -> None:
        """Refuse a transcript that does not reach its end; raises `BadTranscriptError`."""
        remaining = self.remaining
        if remaining:
            raise BadTranscriptError(
                len(self.steps) + 1, f"the transcript ends before its step {remaining[0].words}: it is not complete"
            )

    def draft(self, act: Act, *, time: int, present: tuple[str, ...]) -> Step:
        """The next step, to be signed by those present and by `signing_devices`."""
        network = act.declaration.network if isinstance(act, Declared) else self.declaration.network
        time = max([time, *(step.time for step in self.steps[-1:])])  # clocks may be set back, time may not
        return Step(len(self.steps) + 1, self.digest, network, time, present, self.signing_devices(act), act)

    def signing_devices(self, act: Act) -> tuple[str, ...]:
        """The devices whose identity keys sign a step: all that have one, the one that it is about included."""
        return (*self.enrolled, act.device) if isinstance(act, Generated) else self.enrolled

    def take(self, line: bytes) -> Step:
        """Verify the next line and keep it; raises `BadTranscriptError` with the number of the step.

        1. it is a canonical envelope around a canonical step
        2. it has the next number, and names the digest of the line before
        3. it is the step that the declaration asks for now, for the same network, not before the step before
        4. enough role holders were present, each a declared one, and all enrolled devices sign
        5. they signed it, in this order, each once and in the one form of a signature, and nobody else
        6. what the step says holds together with everything before it
        """
        number = len(self.steps) + 1
        try:
            envelope = canonical.decode(line, _envelope_decoder, limit=MAX_LINE_BYTES)
            envelope.require_type(PAYLOAD_TYPE)
            step = canonical.decode(envelope.payload, _step_decoder, limit=MAX_LINE_BYTES)
            self._require_linked(step)
            declaration = self._declaration(step)
            self._require_next(step, declaration)
            self._require_signed(step, envelope, declaration)
            made = self._check(step, declaration)
        except ProtocolError as error:
            raise BadTranscriptError(number, str(error)) from None
        self._keys |= made
        self.lines.append(line)
        self.steps.append(step)
        return step

    def entries(self) -> tuple[Entry, ...]:
        """The first set of the registry, as it follows from the steps before `proposed`, and from nothing else."""
        at = next((i for i, step in enumerate(self.steps) if isinstance(step.act, Proposed)), len(self.steps))
        before = self.steps[:at]
        digest = hashlib.sha256(self.lines[at - 1]).hexdigest()
        certified = next((step.act for step in before if isinstance(step.act, Certified)), None)
        if certified is None:
            raise ProtocolError("the CA has no certificate yet")
        statements = {step.act.device: step.act.statement for step in before if isinstance(step.act, Audited)}
        keys = {place: key.spki for place, key in self._keys.items()}
        tokens = {device: self.token(device) for device in self.enrolled}
        return ceremony.entries(
            self.declaration,
            start=self.steps[0].time,
            ceremony=digest,
            keys=keys,
            tokens=tokens,
            certificate=certified.certificate,
            statements=statements,
        )

    # --- the checks of one step ---------------------------------------------------------------------------

    def _declaration(self, step: Step) -> Declaration:
        if self.steps:
            return self.declaration
        if not isinstance(step.act, Declared):
            raise ProtocolError(f"the first step is {_word(step.act)} where declared is expected")
        check_declaration(step.act.declaration)
        return step.act.declaration

    def _require_linked(self, step: Step) -> None:
        if step.number != len(self.steps) + 1:
            raise ProtocolError(f"it calls itself step {step.number}")
        if step.previous != self.digest:
            raise ProtocolError(
                f"it follows a step with digest {step.previous[:16]}…, the step before has {self.digest[:16]}…"
            )

    def _require_next(self, step: Step, declaration: Declaration) -> None:
        expected = sequence(declaration)
        if step.number > len(expected):
            raise ProtocolError("the ceremony has ended before it")
        wanted = expected[step.number - 1]
        device = getattr(step.act, "device", "")
        if not isinstance(step.act, wanted.kind) or device != wanted.device:
            raise ProtocolError(f"it is {Expected(type(step.act), device).words} where {wanted.words} is expected")
        if step.network != declaration.network:
            raise ProtocolError(f"it is for network {step.network}, the ceremony is that of {declaration.network}")
        if self.steps and step.time < self.steps[-1].time:
            raise ProtocolError("it lies before the step before")

    def _require_signed(self, step: Step, envelope: Envelope, declaration: Declaration) -> None:
        holders = {holder.name: PublicKey.load(holder.key) for holder in declaration.holders}
        strangers = [name for name in step.present if name not in holders]
        if strangers:
            raise ProtocolError(f"{', '.join(strangers)} holds no role")
        if len(set(step.present)) != len(step.present):
            raise ProtocolError("a role holder is named twice among those present")
        if len(step.present) < declaration.needed:
            raise ProtocolError(
                f"{', '.join(step.present) or 'nobody'} was present where {declaration.needed} role holders are needed"
            )
        if step.devices != self.signing_devices(step.act):
            raise ProtocolError(f"devices {', '.join(step.devices) or 'none'} sign, and not those that are enrolled")
        signers = [(f"role holder {name}", holders[name]) for name in step.present]
        signers += [(f"device {name}", self._identity(name, step.act)) for name in step.devices]
        if len(envelope.signatures) != len(signers):
            raise ProtocolError(f"it carries {len(envelope.signatures)} signatures where {len(signers)} are expected")
        message = pae(PAYLOAD_TYPE, envelope.payload)
        for (who, key), signature in zip(signers, envelope.signatures, strict=True):
            if signature.keyid != key.id:
                raise ProtocolError(f"key {signature.keyid[:16]}… signs where that of {who} is expected")
            try:
                key.verify(signature.sig, message, low_s=True)
            except ProtocolError as error:
                raise ProtocolError(f"the signature of {who} does not hold: {error}") from None

    def _identity(self, device: str, act: Act) -> PublicKey:
        if isinstance(act, Generated) and act.device == device:
            identity = next((key.key for key in act.keys if key.label == IDENTITY), None)
            if identity is None:
                raise ProtocolError(f"no identity key was generated on {device}")
            return PublicKey.load(identity)
        return self.key(device, IDENTITY)

    def _check(self, step: Step, declaration: Declaration) -> dict[tuple[str, str], PublicKey]:
        """What a step says must hold together with everything before; the keys that it brings."""
        match step.act:
            case Authorized(device=device, keys=keys):
                if keys != _planned(declaration, device):
                    raise ProtocolError(f"it authorizes other keys for {device} than the declaration")
            case Generated() as act:
                return self._check_generated(step, act, declaration)
            case Certified(certificate=certificate):
                name, device = declaration.place(CA)
                _check_certificate(certificate, self.key(device, CA + name))
            case Audited(device=device, statement=statement):
                self._check_audited(device, statement, declaration)
            case Proposed() as act:
                self._check_proposed(act, declaration)
            case _:
                pass
        return {}

    def _check_generated(
        self, step: Step, act: Generated, declaration: Declaration
    ) -> dict[tuple[str, str], PublicKey]:
        authorized = self.steps[-1].act
        if isinstance(authorized, Authorized) and authorized.token != act.token:
            raise ProtocolError(f"the keys of {act.device} were generated on another token than was authorized")
        planned = _planned(declaration, act.device)
        if [key.label for key in act.keys] != [key.label for key in planned]:
            raise ProtocolError(f"other keys were generated on {act.device} than were authorized")
        known = {PublicKey.load(holder.key).id for holder in declaration.holders}
        known |= {key.id for key in self._keys.values()}
        made: dict[tuple[str, str], PublicKey] = {}
        for wanted, each in zip(planned, act.keys, strict=True):
            key = PublicKey.load(each.key)
            if key.scheme != wanted.scheme:
                raise ProtocolError(f"key {each.label} of {act.device} is {key.scheme}, authorized was {wanted.scheme}")
            if key.id in known:
                raise ProtocolError(f"key {each.label} of {act.device} occurs before: one key, one holder")
            known.add(key.id)
            try:
                message = possession(step.network, act.device, each.label, each.key, step.previous)
                key.verify(each.proof, message, low_s=True)
            except ProtocolError as error:
                raise ProtocolError(
                    f"key {each.label} of {act.device} does not prove its possession: {error}"
                ) from None
            made[act.device, each.label] = key
        return made

    def _check_audited(self, device: str, data: bytes, declaration: Declaration) -> None:
        envelope = canonical.decode(data, _envelope_decoder)
        statement = custody.verify(envelope, self.key(device, IDENTITY))
        predicate = statement.predicate
        if (predicate.network, predicate.device) != (declaration.network, device):
            raise ProtocolError(
                f"the custody statement is about {predicate.device} on {predicate.network}, not about {device}"
            )
        for (place, label), key in self._keys.items():
            found = custody.tier_of(statement, key.id)
            needs = label.startswith((NODE, CENTER))
            if place == device and needs and not tier.reaches(found, declaration.least_tier):
                raise ProtocolError(f"{label} on {device} reaches tier {found}, {declaration.least_tier} is demanded")

    def _check_proposed(self, act: Proposed, declaration: Declaration) -> None:
        transaction = Transaction.decode(act.transaction)
        if transaction.kind != "registry.genesis" or transaction.payload.network != declaration.network:
            raise ProtocolError(f"it proposes {transaction.kind} for network {transaction.payload.network}")
        got = transaction.payload.arguments.get("entries")
        wanted = msgspec.json.decode(canonical.encode(self.entries()))
        if got != wanted:
            raise ProtocolError(f"the first set is not the one that the transcript gives: {_first(wanted, got)}")
        holders: dict[str, PublicKey] = {key_id(each.key): PublicKey.load(each.key) for each in declaration.holders}
        message = pae(transaction.envelope.payload_type, transaction.envelope.payload)
        for signature in transaction.envelope.signatures:
            if signature.keyid not in holders:
                raise ProtocolError(f"key {signature.keyid[:16]}… signs the first set, and is no role holder's")
            holders[signature.keyid].verify(signature.sig, message)
        if len(set(transaction.signers)) < declaration.needed:
            raise ProtocolError(
                f"{len(set(transaction.signers))} role holders sign the first set where {declaration.needed} are needed"
            )


def _planned(declaration: Declaration, device: str) -> tuple[PlannedKey, ...]:
    return next(each.keys for each in declaration.devices if each.name == device)


def _check_certificate(data: bytes, key: PublicKey) -> None:
    try:
        certificate = x509.load_der_x509_certificate(data)
        found = PublicKey.of(certificate.public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProtocolError(f"the CA's certificate cannot be read: {error}") from None
    if found != key:
        raise ProtocolError("the CA's certificate is for another key than was generated")
    key.verify(certificate.signature, certificate.tbs_certificate_bytes)


def _word(act: Act) -> str:
    return type(act).__name__.lower()


def _first(wanted: Any, got: Any) -> str:
    if not isinstance(got, list) or len(got) != len(wanted):
        return f"{len(wanted)} entries are expected"
    pairs = zip(wanted, got, strict=True)
    wrong = next(left for left, right in pairs if left != right)
    return f"the entry of {wrong.get('type')} {wrong.get('name', '')} differs".replace("  ", " ")


_envelope_decoder = msgspec.json.Decoder(Envelope)
_step_decoder = msgspec.json.Decoder(Step)
