"""The transcript of a ceremony: whole it verifies, and with anything changed, left out, moved or added it does not."""

import dataclasses
import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical, ceremony, custody, registry
from protocol.ceremony import (
    PAYLOAD_TYPE,
    Act,
    Audited,
    Authorized,
    Certified,
    Declaration,
    Declared,
    Founded,
    Generated,
    Holder,
    Lifetimes,
    MadeKey,
    PlannedDevice,
    PlannedKey,
    Proposed,
    Step,
)
from protocol.custody import AuditedKey, AuditedToken, Predicate
from protocol.envelope import Envelope, Signature, pae
from protocol.errors import BadTranscriptError, ProtocolError
from protocol.registry import Channel, EndorsementPolicy, Node
from protocol.tier import Tier
from protocol.transaction import PAYLOAD_TYPE as TRANSACTION
from protocol.transaction import TransactionPayload
from protocol.transcript import Transcript
from tests.software_keys import SoftwareKey, ecdsa, ed25519_key, high_s, rsa_key

pytestmark = pytest.mark.requirement("K-11")

DAY = 24 * 3600 * 1000
START = 1_700_000_000_000
HOLDERS = ("anna", "bert", "carla")
PRESENT = ("anna", "bert")
LABELS = {"device-a": ("identity", "node/A", "center/center-1", "ca/ca"), "device-b": ("identity", "node/B")}


def secret(device: str, label: str) -> SoftwareKey:
    """The key that stands for one on a token."""
    if label == "node/A":
        return ed25519_key(f"{device} {label}")
    return rsa_key(f"{device} {label}") if label == "node/B" else ecdsa(f"{device} {label}")


def declaration(**changes: Any) -> Declaration:
    """Three role holders of whom two sign, two devices, two nodes."""
    return Declaration(
        **{
            "network": "prod",
            "plan": hashlib.sha256(b"plan").hexdigest(),
            "holders": tuple(Holder(name, ecdsa(name).spki) for name in HOLDERS),
            "needed": 2,
            "devices": tuple(
                PlannedDevice(device, tuple(PlannedKey(each, secret(device, each).public.scheme) for each in labels))
                for device, labels in LABELS.items()
            ),
            "policies": (EndorsementPolicy("assets", "AND('A', 'B')"),),
            "lifetimes": Lifetimes(730 * DAY, 365 * DAY, 3652 * DAY, 1095 * DAY, 3652 * DAY),
            "longest_validity": 3_600_000,
            "rules_version": 1,
        }
        | changes
    )


def token(device: str) -> registry.Token:
    """The token of a device."""
    return registry.Token("maker", "model", f"serial-{device}")


def certificate(key: SoftwareKey) -> bytes:
    """A CA's own certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.private.public_key(), 7, now, now + dt.timedelta(days=1))
    return builder.sign(key.private, hashes.SHA256()).public_bytes(Encoding.DER)


def statement(device: str, tier: Tier, *, network: str = "prod", signer: SoftwareKey | None = None) -> bytes:
    """A custody statement that gives every key of a device a tier."""
    keys = tuple(AuditedKey(secret(device, each).id, each, "00", tier, "pass") for each in LABELS[device])
    payload = custody.encode(
        Predicate(
            device=device,
            network=network,
            time=START,
            tool="test",
            profile=custody.Profile("strict", "0" * 64),
            token=AuditedToken(device, "maker", "model", f"serial-{device}", "1", software=False),
            keys=keys,
            rows=(),
            verdict="pass",
            read_only=False,
        )
    )
    signing = signer or secret(device, "identity")
    return canonical.encode(signing.envelope(custody.PAYLOAD_TYPE, payload))


@dataclasses.dataclass
class Making:
    """Makes a transcript, and lets a test change what is made."""

    declared: Declaration = dataclasses.field(default_factory=declaration)
    present: tuple[str, ...] = PRESENT
    tier: Tier = "probed"
    transcript: Transcript = dataclasses.field(default_factory=Transcript)

    def act(self) -> Act:
        """The act that comes next."""
        expected = ceremony.sequence(self.declared)[len(self.transcript.steps)]
        device = expected.device
        if expected.kind is Declared:
            return Declared(self.declared)
        if expected.kind is Authorized:
            planned = next(each.keys for each in self.declared.devices if each.name == device)
            return Authorized(device, token(device), planned, 0)
        if expected.kind is Generated:
            return Generated(device, token(device), tuple(self.made(device, each) for each in LABELS[device]))
        if expected.kind is Certified:
            return Certified(certificate(secret("device-a", "ca/ca")))
        if expected.kind is Audited:
            return Audited(device, statement(device, self.tier))
        if expected.kind is Proposed:
            return Proposed(self.transaction(), START + 9000)
        return Founded("ab" * 32)

    def made(self, device: str, label: str, *, by: SoftwareKey | None = None) -> MadeKey:
        """A generated key with its proof of possession."""
        key = secret(device, label)
        message = ceremony.possession("prod", device, label, key.spki, self.transcript.digest)
        return MadeKey(label, key.spki, (by or key).sign(message))

    def transaction(
        self, change: Callable[[list[Any]], Any] = lambda entries: entries, signers: Any = PRESENT
    ) -> bytes:
        """The first set as the transcript gives it, with a change."""
        entries = change(msgspec.json.decode(canonical.encode(self.transcript.entries())))
        payload = canonical.encode(
            TransactionPayload(
                1, "prod", "genesis", "registry", "genesis", {"entries": entries}, "0" * 32, 0, canonical.MAX_INTEGER
            )
        )
        signatures = tuple(ecdsa(name).signature(TRANSACTION, payload) for name in signers)
        return canonical.encode(Envelope(payload, TRANSACTION, signatures))

    def draft(self, act: Act | None = None, **changes: Any) -> Step:
        """The next step, with changes."""
        number = len(self.transcript.steps)
        step = self.transcript.draft(act or self.act(), time=START + 1000 * number, present=self.present)
        return msgspec.structs.replace(step, **changes)

    def line(self, step: Step, signers: Sequence[SoftwareKey] | None = None) -> bytes:
        """A step under the signatures of those whom it names, or of others."""
        payload = ceremony.encode(step)
        if signers is None:
            signers = [ecdsa(name) for name in step.present]
            signers += [secret(name, "identity") for name in step.devices]
        return canonical.encode(
            Envelope(payload, PAYLOAD_TYPE, tuple(k.signature(PAYLOAD_TYPE, payload) for k in signers))
        )

    def to(self, kind: type[Act], device: str = "") -> "Making":
        """Take all steps before the one of a kind."""
        for expected in ceremony.sequence(self.declared)[len(self.transcript.steps) :]:
            if expected.kind is kind and device in {"", expected.device}:
                break
            self.transcript.take(self.line(self.draft()))
        return self

    def complete(self) -> bytes:
        """The whole transcript's file."""
        while self.transcript.steps == [] or self.transcript.remaining:
            self.transcript.take(self.line(self.draft()))
        return b"".join(line + b"\n" for line in self.transcript.lines)

    def refused(self, line: bytes) -> str:
        """Why the next line is refused; its number is that of the step."""
        before = list(self.transcript.lines)
        with pytest.raises(BadTranscriptError) as caught:
            self.transcript.take(line)
        assert (self.transcript.lines, caught.value.step) == (before, len(before) + 1)
        return str(caught.value)


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A complete transcript of nine steps, with an audit of both devices."""
    return Making(declaration(least_tier="probed")).complete()


def test_a_whole_transcript_verifies(whole: bytes) -> None:
    """Whoever reads it gets the steps, the keys and the set that follows from them."""
    transcript = Transcript.read(whole)
    transcript.require_complete()
    assert len(transcript.steps) == 10
    assert transcript.enrolled == ("device-a", "device-b")
    assert transcript.key("device-b", "node/B") == secret("device-b", "node/B").public
    entries = transcript.entries()
    (channel,) = [each for each in entries if isinstance(each, Channel)]
    assert channel.ceremony == transcript.steps[-2].previous
    assert channel.least_tier == "probed"
    (node,) = [each for each in entries if isinstance(each, Node) and each.name == "A"]
    assert (node.keys[0].not_before, node.keys[0].until) == (START, START + 730 * DAY)


def test_first_steps_are_signed_by_people_alone(whole: bytes) -> None:
    """Until a device has an identity key it signs nothing; from then on every device that has one signs every step."""
    steps = Transcript.read(whole).steps
    assert [step.devices for step in steps[:5]] == [
        (),
        (),
        ("device-a",),
        ("device-a",),
        ("device-a", "device-b"),
    ]
    assert {step.devices for step in steps[5:]} == {("device-a", "device-b")}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_refused_with_its_step(whole: bytes, data: st.DataObject) -> None:
    """One byte, anywhere: the step in whose line it stands does not hold, or the one whose link it breaks."""
    at = data.draw(st.integers(0, len(whole) - 2))
    changed = bytearray(whole)
    changed[at] = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    line = whole[:at].count(b"\n") + 1
    with pytest.raises(BadTranscriptError) as caught:
        Transcript.read(bytes(changed)).require_complete()
    assert caught.value.step == line


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), step=st.binary(max_size=300))
def test_nothing_else_is_raised_for_any_bytes(data: bytes, step: bytes) -> None:
    """Rubbish is refused as such, as a file and as a signed step."""
    with pytest.raises(BadTranscriptError):
        Transcript.read(data).require_complete()
    making = Making()
    signatures = tuple(ecdsa(name).signature(PAYLOAD_TYPE, step) for name in PRESENT)
    assert making.refused(canonical.encode(Envelope(step, PAYLOAD_TYPE, signatures))).startswith("step 1: ")


@pytest.mark.parametrize("gone", range(9))
def test_a_removed_step_is_refused(whole: bytes, gone: int) -> None:
    """The step that stands in its place does not follow."""
    lines = whole.splitlines(keepends=True)
    with pytest.raises(BadTranscriptError, match=f"^step {gone + 1}: it calls itself step {gone + 2}"):
        Transcript.read(b"".join(lines[:gone] + lines[gone + 1 :]))


@pytest.mark.parametrize("first", range(9))
def test_exchanged_steps_are_refused(whole: bytes, first: int) -> None:
    """Order is part of what was signed."""
    lines = whole.splitlines(keepends=True)
    lines[first], lines[first + 1] = lines[first + 1], lines[first]
    with pytest.raises(BadTranscriptError, match=f"^step {first + 1}: "):
        Transcript.read(b"".join(lines))


@pytest.mark.parametrize("kept", range(1, 10))
def test_a_shortened_transcript_is_not_complete(whole: bytes, kept: int) -> None:
    """Without its end it says so, with the number of the step that is missing."""
    transcript = Transcript.read(b"".join(whole.splitlines(keepends=True)[:kept]))
    with pytest.raises(BadTranscriptError, match=rf"^step {kept + 1}: .* not complete"):
        transcript.require_complete()


def test_a_cut_line_and_a_further_step_are_refused(whole: bytes) -> None:
    """A last line without its end is no step, and after the last step nothing follows."""
    with pytest.raises(BadTranscriptError, match=r"^step 10: its line is cut short"):
        Transcript.read(whole[:-1])
    making = Making(transcript=Transcript.read(whole))
    again = making.transcript.draft(Founded("cd" * 32), time=START, present=PRESENT)
    assert "the ceremony has ended before it" in making.refused(making.line(again))
    with pytest.raises(BadTranscriptError, match=r"^step 1: the transcript is empty"):
        Transcript.read(b"").require_complete()


def test_a_replaced_step_is_refused() -> None:
    """A step of another ceremony by the same people, signed as it should be, does not link."""
    other = Making(declaration(plan="1" * 64))
    other.to(Authorized, "device-b")
    mine = Making().to(Authorized, "device-b")
    stolen = other.line(other.draft())
    assert "it follows a step with digest" in mine.refused(stolen)


# ---- who signs


def test_nothing_is_generated_by_one_person_alone() -> None:
    """One role holder cannot authorize the generation of keys, nor be named twice, nor declare that one is enough."""
    making = Making().to(Authorized)
    assert "anna was present where 2 role holders are needed" in making.refused(
        making.line(making.draft(present=("anna",)))
    )
    twice = making.draft(present=("anna", "anna"))
    assert "named twice" in making.refused(making.line(twice))
    alone = Making(declaration(needed=1), present=("anna",))
    assert "`int` >= 2" in alone.refused(alone.line(alone.draft()))


def test_keys_follow_their_authorization() -> None:
    """Generated keys without the step before them are refused."""
    making = Making().to(Authorized)
    early = Generated(
        "device-a", token("device-a"), tuple(making.made("device-a", each) for each in LABELS["device-a"])
    )
    assert "it is generated (device-a) where authorized (device-a) is expected" in making.refused(
        making.line(making.draft(early))
    )


@pytest.mark.parametrize(
    ("signers", "reason"),
    [
        (["anna"], "1 signatures where 2 are expected"),
        (["anna", "bert", "carla"], "3 signatures where 2 are expected"),
        (["anna", "carla"], "where that of role holder bert is expected"),
        (["bert", "anna"], "where that of role holder anna is expected"),
        (["anna", "mallory"], "where that of role holder bert is expected"),
    ],
)
def test_those_present_sign_and_nobody_else(signers: list[str], reason: str) -> None:
    """Each once, in the order in which they are named."""
    making = Making()
    assert reason in making.refused(making.line(making.draft(), [ecdsa(name) for name in signers]))


def test_a_stranger_cannot_be_present() -> None:
    """Role holders are those whom the declaration names."""
    making = Making().to(Authorized)
    assert "mallory holds no role" in making.refused(making.line(making.draft(present=("anna", "mallory"))))


def test_every_enrolled_device_signs() -> None:
    """A step without a device's signature, or with that of another key of it, does not hold."""
    making = Making().to(Certified)
    people = [ecdsa(name) for name in PRESENT]
    without = making.draft(devices=("device-a",))
    assert "not those that are enrolled" in making.refused(making.line(without))
    wrong = [*people, secret("device-a", "identity"), secret("device-b", "node/B")]
    assert "where that of device device-b is expected" in making.refused(making.line(making.draft(), wrong))


def test_a_signature_has_one_form() -> None:
    """The other form of the same ECDSA signature is refused: no byte can be changed unseen."""
    making = Making()
    envelope = msgspec.json.decode(making.line(making.draft()), type=Envelope)
    first, second = envelope.signatures
    other = msgspec.structs.replace(envelope, signatures=(first, Signature(second.keyid, high_s(second.sig))))
    assert "the signature of role holder bert does not hold" in making.refused(canonical.encode(other))


# ---- what the steps say


def test_a_key_that_does_not_prove_its_possession_is_refused() -> None:
    """A public key that somebody wrote in, and a proof for another step."""
    making = Making().to(Generated, "device-a")
    labels = LABELS["device-a"]
    forged = tuple(making.made("device-a", each, by=ed25519_key("x") if each == "node/A" else None) for each in labels)
    line = making.line(making.draft(Generated("device-a", token("device-a"), forged)))
    assert "key node/A of device-a does not prove its possession" in making.refused(line)
    key = secret("device-a", "identity")
    stale = MadeKey(
        "identity", key.spki, key.sign(ceremony.possession("prod", "device-a", "identity", key.spki, "0" * 64))
    )
    act = Generated("device-a", token("device-a"), (stale, *forged[1:]))
    assert "key identity of device-a does not prove" in making.refused(making.line(making.draft(act)))


def test_keys_are_generated_where_and_as_was_agreed() -> None:
    """Another token, other labels, another scheme, or a key that occurs before."""
    making = Making().to(Generated, "device-a")
    keys = tuple(making.made("device-a", each) for each in LABELS["device-a"])
    elsewhere = Generated("device-a", token("device-b"), keys)
    assert "on another token than was authorized" in making.refused(making.line(making.draft(elsewhere)))
    fewer = Generated("device-a", token("device-a"), keys[:-1])
    assert "other keys were generated on device-a" in making.refused(making.line(making.draft(fewer)))
    swapped = msgspec.structs.replace(keys[1], key=ecdsa("other").spki)
    other = Generated("device-a", token("device-a"), (keys[0], swapped, *keys[2:]))
    assert "authorized was ed25519" in making.refused(making.line(making.draft(other)))
    anna = ecdsa("anna")
    proof = anna.sign(ceremony.possession("prod", "device-a", "ca/ca", anna.spki, making.transcript.digest))
    reused = Generated("device-a", token("device-a"), (*keys[:3], MadeKey("ca/ca", anna.spki, proof)))
    assert "occurs before" in making.refused(making.line(making.draft(reused)))


def test_the_cas_certificate_is_for_its_generated_key() -> None:
    """Another key's certificate, and bytes that are none."""
    making = Making().to(Certified)
    assert "for another key" in making.refused(making.line(making.draft(Certified(certificate(ecdsa("other"))))))
    assert "cannot be read" in making.refused(making.line(making.draft(Certified(b"no certificate"))))


@pytest.mark.requirement("K-5")
def test_a_demanded_tier_must_be_reached() -> None:
    """A statement below the tier, about another network, or by another key stops the ceremony."""
    making = Making(declaration(least_tier="probed")).to(Audited)
    low = Audited("device-a", statement("device-a", "read-back"))
    assert "reaches tier read-back, probed is demanded" in making.refused(making.line(making.draft(low)))
    foreign = Audited("device-a", statement("device-a", "probed", network="other"))
    assert "is about device-a on other" in making.refused(making.line(making.draft(foreign)))
    forged = Audited("device-a", statement("device-a", "probed", signer=secret("device-a", "node/A")))
    assert "is not signed by identity key" in making.refused(making.line(making.draft(forged)))


def _add(entries: list[Any]) -> list[Any]:
    return [*entries, {"type": "policy", "name": "more", "expression": "'A'", "routing": {"strategy": "partitioned"}}]


def _swap_key(entries: list[Any]) -> list[Any]:
    return [each | {"keys": entries[-2]["keys"]} if each["type"] == "node" else each for each in entries]


def _none(entries: list[Any]) -> list[Any]:
    return [each | {"ceremony": "none"} if each["type"] == "channel" else each for each in entries]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_add, "entries are expected"),
        (lambda entries: entries[:-1], "entries are expected"),
        (_swap_key, "the entry of node A differs"),
        (_none, "the entry of channel differs"),
    ],
)
def test_the_first_set_is_what_the_transcript_gives(change: Callable[[list[Any]], Any], reason: str) -> None:
    """Not a key, not a policy, not a word more or less; and it names the transcript."""
    making = Making().to(Proposed)
    act = Proposed(making.transaction(change), START)
    assert reason in making.refused(making.line(making.draft(act)))


def test_the_first_set_is_signed_by_enough_role_holders() -> None:
    """One alone, or a stranger among them, is refused."""
    making = Making().to(Proposed)
    alone = Proposed(making.transaction(signers=("anna",)), START)
    assert "1 role holders sign the first set where 2 are needed" in making.refused(making.line(making.draft(alone)))
    stranger = Proposed(making.transaction(signers=("anna", "bert", "mallory")), START)
    assert "is no role holder's" in making.refused(making.line(making.draft(stranger)))


def test_time_goes_forward() -> None:
    """A step is not earlier than the one before; a draft takes the later of both, should the clock be set back."""
    making = Making().to(Authorized, "device-b")
    assert "before the step before" in making.refused(making.line(making.draft(time=START - 1)))
    assert making.transcript.draft(making.act(), time=0, present=PRESENT).time == making.transcript.steps[-1].time


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"needed": 4}, "4 of 3 role holders can never sign"),
        ({"holders": (Holder("anna", ecdsa("x").spki), Holder("bert", ecdsa("x").spki))}, "they are one"),
        ({"holders": (Holder("anna", ecdsa("x").spki), Holder("anna", ecdsa("y").spki))}, "anna is declared twice"),
        ({"devices": declaration().devices[:1] * 2}, "device device-a is declared twice"),
        ({"devices": declaration().devices[1:]}, r"0 keys center/… are declared where one is expected"),
        ({"devices": (PlannedDevice("d", declaration().devices[0].keys[1:]),)}, "where identity is expected"),
        ({"policies": declaration().policies * 2}, "policy assets is declared twice"),
    ],
)
def test_a_declaration_must_hold_together(changes: dict[str, Any], reason: str) -> None:
    """What contradicts itself is refused before anything is done."""
    with pytest.raises(ProtocolError, match=reason):
        ceremony.check_declaration(declaration(**changes))
    making = Making(declaration(**changes))
    assert reason in making.refused(making.line(making.draft()))


def test_a_message_of_another_kind_is_no_step() -> None:
    """The payload type is part of what is signed."""
    making = Making()
    payload = ceremony.encode(making.draft())
    signatures = tuple(ecdsa(name).signature(TRANSACTION, payload) for name in PRESENT)
    line = canonical.encode(Envelope(payload, TRANSACTION, signatures))
    assert "payload type" in making.refused(line)
    assert ceremony.possession("n", "d", "identity", b"k", "0" * 64) != pae(PAYLOAD_TYPE, payload)
