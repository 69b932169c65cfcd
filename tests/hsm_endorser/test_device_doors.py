"""The typed doors, through the real HTTP application: what they sign, and everything that they do not."""

import datetime as dt
import hashlib
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsm_endorser import der
from protocol import block as blocks
from protocol import canonical, renewal, rotation, transaction, x509_tbs
from protocol.block import Block
from protocol.envelope import Envelope, pae
from protocol.messages import SignCertificate, SignCrl, Signed, SignRegistration
from protocol.registry import Node, NodeKey, Registrar, Revocation
from protocol.transaction import TransactionPayload
from tests import software_keys
from tests.chain_builder import builtins
from tests.hsm_endorser.device_world import NAME, RunningDevice, World, running
from tests.software_keys import SoftwareKey

NOW = dt.datetime.now(tz=dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)
CLIENT = software_keys.ecdsa("door client")
IMPOSTOR = software_keys.ecdsa("no ca at all")
signed_decoder = msgspec.json.Decoder(Signed)


async def ask(device: RunningDevice, door: str, body: Any) -> tuple[str, Signed | None]:
    """The code of the refusal, or an empty one and the signature."""
    content = body if isinstance(body, bytes) else canonical.encode(body)
    answer = await device.http.post(f"/v1/{door}", content=content)
    if answer.status_code == 200:
        return "", canonical.decode(answer.content, signed_decoder)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"]
    return problem["type"].rpartition(":")[2], None


# --- headers -------------------------------------------------------------------------------------------------


def draft(world: World, *, time: int | None = None, name: str = "x") -> Block:
    """An unsigned next block with one endorsed transaction."""
    wish = world.network.evidence(name)
    trees = world.network.endorse([wish], by=("B", "C"), height=world.copy.height)
    return world.copy.draft(world.copy.time + 500 if time is None else time, [wish], trees).block


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """For headers the clock stands one second after the genesis block; certificates use the real one."""
    monkeypatch.setattr("hsm_endorser.doors.clock", lambda: world.network.time + 1000)


@pytest.mark.requirement("M-4", "E-13")
async def test_a_correct_header_is_signed(world: World, device: RunningDevice) -> None:
    """The block verifies under the center's key, and the device applies it like everybody else."""
    block = draft(world)
    code, answer = await ask(device, "sign-header", block.encode())
    assert code == ""
    signed = block.signed(Envelope(block.envelope.payload, blocks.PAYLOAD_TYPE, (answer.signature,)))
    blocks.verify_header(signed.envelope, [world.keys["center/center-1"]], 1)
    await device.apply(signed.encode())
    rows = device.parts.guard.journal(key=world.keys["center/center-1"].id)
    assert [row.entry.purpose for row in rows] == ["header"]
    message = pae(blocks.PAYLOAD_TYPE, block.envelope.payload)
    assert rows[0].entry.digest == hashlib.sha256(message).hexdigest()


@pytest.mark.requirement("K-10", "M-6")
async def test_a_second_header_for_a_height_is_refused(world: World) -> None:
    """The same header is signed again, another one never, also by a later process."""
    one, two = draft(world), draft(world, name="y")
    async with running(world.config) as first:
        assert (await ask(first, "sign-header", one.encode()))[0] == ""
    async with running(world.config) as second:
        assert (await ask(second, "sign-header", two.encode()))[0] == "guard-conflict"
        assert (await ask(second, "sign-header", one.encode()))[0] == ""


@pytest.mark.requirement("M-4")
@pytest.mark.parametrize("field", ["outcome_root", "registry_root", "transaction_root"])
async def test_a_header_that_is_not_the_blocks_is_refused(world: World, device: RunningDevice, field: str) -> None:
    """The device executes the block itself and compares every root."""
    block = draft(world)
    header = msgspec.structs.replace(block.header, **{field: "00" * 32})
    lie = blocks.unsigned(header, block.transactions, block.trees)
    assert (await ask(device, "sign-header", lie.encode()))[0] in {"diverged", "bad-copy"}
    assert (await ask(device, "sign-header", block.encode()))[0] == ""


@pytest.mark.requirement("E-14")
async def test_a_header_over_too_few_endorsements_is_refused(world: World, device: RunningDevice) -> None:
    """A center's key signs no block that breaks a policy."""
    wish = world.network.evidence("x")
    good = draft(world)
    trees = world.network.endorse([wish], by=("B",))
    header = msgspec.structs.replace(good.header, transaction_root=blocks.transaction_root([wish], trees))
    block = blocks.unsigned(header, [wish], trees)
    assert (await ask(device, "sign-header", block.encode()))[0] == "policy-not-met"


@pytest.mark.requirement("M-4")
async def test_a_header_from_the_future_is_refused(world: World, device: RunningDevice) -> None:
    """At most five seconds ahead of this machine's clock."""
    now = world.network.time + 1000
    assert (await ask(device, "sign-header", draft(world, time=now + 5001).encode()))[0] == "time-ahead"
    assert (await ask(device, "sign-header", draft(world, time=now + 5000).encode()))[0] == ""


async def test_a_header_out_of_step_is_refused(world: World, device: RunningDevice) -> None:
    """A block of another height than the next is not signed."""
    old = draft(world)
    await device.apply(world.block([]))
    assert (await ask(device, "sign-header", old.encode()))[0] == "not-next"


async def test_a_body_that_is_no_block_is_refused(device: RunningDevice) -> None:
    """No digest, no other bytes."""
    assert (await ask(device, "sign-header", b"ab" * 32))[0] == "malformed"


# --- certificates --------------------------------------------------------------------------------------------


def certificate(world: World, **changed: Any) -> x509.Certificate:
    """A client's certificate as the CA would draft it, under a key that is not the CA's; `changed` bends it."""
    ca = x509.load_der_x509_certificate(world.enrolled.ca_certificate)
    common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, changed.get("name", "c9"))])
    builder = (
        x509.CertificateBuilder()
        .subject_name(changed.get("subject", common_name))
        .issuer_name(changed.get("issuer", ca.subject))
        .public_key(changed.get("key", CLIENT).private.public_key())
        .serial_number(changed.get("serial", serial(world, changed.get("key", CLIENT))))
        .not_valid_before(changed.get("begins", NOW - DAY))
        .not_valid_after(changed.get("ends", NOW + 100 * DAY))
    )
    basic = changed.get("basic", x509.BasicConstraints(ca=False, path_length=None))
    if basic:
        builder = builder.add_extension(basic, critical=True)
    purposes = changed.get("purposes", [ExtendedKeyUsageOID.CLIENT_AUTH])
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    for extension, critical in changed.get("extensions", ()):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(IMPOSTOR.private, changed.get("hash", hashes.SHA256()))


def serial(world: World, key: Any) -> int:
    """The serial number that a certificate of this key has to have."""
    spki = key.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return x509_tbs.serial_number(world.keys["ca/ca"].id, hashlib.sha256(spki).hexdigest())


def named(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    """A subject."""
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def usage(*, cert_sign: bool) -> x509.KeyUsage:
    """A key usage that may or may not certify."""
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    more = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=cert_sign, **more)


@pytest.mark.requirement("E-1")
async def test_a_clients_certificate_is_signed(world: World, device: RunningDevice) -> None:
    """The finished certificate verifies as directly issued by the CA."""
    tbs = certificate(world, extensions=[(usage(cert_sign=False), True)]).tbs_certificate_bytes
    code, answer = await ask(device, "sign-certificate", SignCertificate(tbs))
    assert code == ""
    issued = x509.load_der_x509_certificate(der.wrap(tbs, "ecdsa-p256-sha256", answer.signature.sig))
    issued.verify_directly_issued_by(x509.load_der_x509_certificate(world.enrolled.ca_certificate))
    (row,) = device.parts.guard.journal(key=world.keys["ca/ca"].id)
    assert (row.entry.purpose, row.entry.digest) == ("certificate", hashlib.sha256(tbs).hexdigest())


@pytest.mark.requirement("E-1")
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"basic": x509.BasicConstraints(ca=True, path_length=0)}, "not-an-end-entity"),
        ({"basic": None}, "not-an-end-entity"),
        ({"extensions": [(usage(cert_sign=True), True)]}, "not-an-end-entity"),
        ({"extensions": [(x509.NameConstraints([x509.DNSName("a")], None), True)]}, "unknown-extension"),
        ({"issuer": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])}, "wrong-issuer"),
        ({"subject": x509.Name([])}, "wrong-subject"),
        ({"ends": NOW + 732 * DAY}, "validity-too-long"),
        ({"begins": NOW + DAY}, "not-valid-now"),
        ({"begins": NOW - 3 * DAY, "ends": NOW - DAY}, "not-valid-now"),
        ({"hash": hashes.SHA384()}, "wrong-algorithm"),
        ({"serial": 7}, "wrong-serial"),
        ({"name": "c9\x00"}, "wrong-subject"),
        ({"name": "c9\nCN=c1"}, "wrong-subject"),
        ({"name": "ĉ9"}, "wrong-subject"),
        ({"subject": named((NameOID.COMMON_NAME, "c9"), (NameOID.COMMON_NAME, "c1"))}, "wrong-subject"),
        ({"subject": named((NameOID.ORGANIZATION_NAME, "node"), (NameOID.COMMON_NAME, "c9"))}, "wrong-subject"),
        ({"purposes": []}, "wrong-purpose"),
        ({"purposes": [ExtendedKeyUsageOID.SERVER_AUTH]}, "wrong-purpose"),
        ({"purposes": [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]}, "wrong-purpose"),
        ({"extensions": [(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), False)]}, "wrong-subject"),
        ({"extensions": [(x509.UnrecognizedExtension(NameOID.USER_ID, b"x"), False)]}, "unknown-extension"),
        ({"extensions": [(x509.AuthorityKeyIdentifier(b"another key", None, None), False)]}, "wrong-issuer"),
    ],
)
async def test_other_certificates_are_refused(world: World, device: RunningDevice, changed: dict, code: str) -> None:
    """A certificate that could certify, lasts too long, or is another CA's: refused with its reason, unsigned."""
    before = device.signatures()
    tbs = certificate(world, **changed).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs)))[0] == code
    assert device.signatures() == before


@pytest.mark.requirement("E-18")
async def test_weak_keys_get_no_certificate(world: World, device: RunningDevice) -> None:
    """A key that no party may register gets no certificate."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  used here alone

    class Weak:
        private = ec.generate_private_key(ec.SECP384R1())

    tbs = certificate(world, key=Weak).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs)))[0] == "unacceptable-key"


@pytest.mark.parametrize("tbs", [b"", b"\x30", b"\x00" * 32, bytes(range(64)), b"\x30\x80\x00\x00"])
async def test_bytes_that_are_no_certificate_are_refused(device: RunningDevice, tbs: bytes) -> None:
    """The door takes no digest and nothing else that is not a TBSCertificate."""
    for door, body in (("sign-certificate", SignCertificate(tbs)), ("sign-crl", SignCrl(tbs))):
        assert (await ask(device, door, body))[0] == "malformed"


async def test_bytes_after_the_certificate_are_refused(world: World, device: RunningDevice) -> None:
    """What is signed is one structure, whole."""
    tbs = certificate(world).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs + b"\x05\x00")))[0] == "malformed"


def crl(world: World, **changed: Any) -> bytes:
    """A TBSCertList as the CA would draft it."""
    ca = x509.load_der_x509_certificate(world.enrolled.ca_certificate)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(changed.get("issuer", ca.subject))
        .last_update(changed.get("begins", NOW - DAY))
        .next_update(changed.get("ends", NOW + 7 * DAY))
    )
    for number in changed.get("serials", ()):
        revoked = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(NOW - DAY).build()
        builder = builder.add_revoked_certificate(revoked)
    if "authority" in changed:
        own = changed["authority"].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        builder = builder.add_extension(authority, critical=False)
    if "extension" in changed:
        builder = builder.add_extension(changed["extension"], critical=False)
    return builder.sign(IMPOSTOR.private, hashes.SHA256()).tbs_certlist_bytes


async def test_a_revocation_list_is_signed(world: World, device: RunningDevice) -> None:
    """The finished list verifies under the CA's certificate."""
    tbs = crl(world)
    code, answer = await ask(device, "sign-crl", SignCrl(tbs))
    assert code == ""
    issued = x509.load_der_x509_crl(der.wrap(tbs, "ecdsa-p256-sha256", answer.signature.sig))
    public = x509.load_der_x509_certificate(world.enrolled.ca_certificate).public_key()
    assert issued.is_signature_valid(public)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"issuer": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another CA")])}, "wrong-issuer"),
        ({"begins": NOW + DAY}, "not-valid-now"),
        ({"ends": NOW + 60 * DAY}, "validity-too-long"),
    ],
)
async def test_other_revocation_lists_are_refused(
    world: World, device: RunningDevice, changed: dict, code: str
) -> None:
    """Another CA's list, one of the future, one for ever: refused with the reason."""
    assert (await ask(device, "sign-crl", SignCrl(crl(world, **changed))))[0] == code


def milliseconds(moment: dt.datetime) -> int:
    """A certificate's time as the registry says it."""
    return round(moment.timestamp()) * 1000


# --- registrations -------------------------------------------------------------------------------------------


async def issued(world: World, device: RunningDevice) -> bytes:
    """A client's certificate that the device signed."""
    tbs = certificate(world).tbs_certificate_bytes
    _, answer = await ask(device, "sign-certificate", SignCertificate(tbs))
    return der.wrap(tbs, "ecdsa-p256-sha256", answer.signature.sig)


def registration(world: World, certificate_der: bytes, **changed: Any) -> TransactionPayload:
    """The payload that puts client c9 on the whitelist."""
    arguments = {
        "name": "c9",
        "key": canonical.encode(CLIENT.spki).decode().strip('"'),
        "certificate": hashlib.sha256(certificate_der).hexdigest(),
        "not_before": milliseconds(NOW - DAY),
        "until": milliseconds(NOW + 100 * DAY),
        **changed.pop("arguments", {}),
    }
    fields = {"client": "ca", **changed}
    contract, operation = fields.pop("contract", "registry"), fields.pop("operation", "add_client")
    return world.network.payload(contract, operation, arguments, **fields)


@pytest.mark.requirement("E-1")
async def test_a_certified_client_is_registered(world: World, device: RunningDevice) -> None:
    """The signed registration is a transaction that the ledger takes: afterwards the client is on the whitelist."""
    der_bytes = await issued(world, device)
    payload = canonical.encode(registration(world, der_bytes))
    code, answer = await ask(device, "sign-registration", SignRegistration(payload, der_bytes))
    assert code == ""
    envelope = Envelope(payload, transaction.PAYLOAD_TYPE, (answer.signature,))
    signed = transaction.Transaction.decode(canonical.encode(envelope))
    await device.apply(world.block([signed]))
    assert device.parts.chain.registry.client("c9") == CLIENT.public


@pytest.mark.requirement("E-1", "S-2")
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"operation": "put"}, "not-a-registration"),
        ({"contract": "assets", "operation": "issue"}, "not-a-registration"),
        ({"network": "other"}, "wrong-network"),
        ({"client": "admin-1"}, "wrong-registrar"),
        ({"arguments": {"name": "c1"}}, "wrong-name"),
        ({"arguments": {"certificate": "00" * 32}}, "wrong-certificate"),
        ({"arguments": {"key": canonical.encode(IMPOSTOR.spki).decode().strip('"')}}, "wrong-key"),
        ({"arguments": {"more": 1}}, "bad-arguments"),
        ({"arguments": {"until": milliseconds(NOW + 101 * DAY)}}, "wrong-lifetime"),
        ({"arguments": {"not_before": 0}}, "wrong-lifetime"),
        ({"operation": "renew_client"}, "bad-arguments"),
    ],
)
async def test_other_registry_transactions_are_refused(
    world: World, device: RunningDevice, changed: dict, code: str
) -> None:
    """The CA's key may add the client that it certified, and nothing else."""
    der_bytes = await issued(world, device)
    before = device.signatures()
    payload = canonical.encode(registration(world, der_bytes, **changed))
    assert (await ask(device, "sign-registration", SignRegistration(payload, der_bytes)))[0] == code
    assert device.signatures() == before


@pytest.mark.requirement("E-1")
async def test_a_certificate_of_somebody_else_registers_nobody(world: World, device: RunningDevice) -> None:
    """The certificate must be signed by the CA's own key."""
    der_bytes = certificate(world).public_bytes(Encoding.DER)
    payload = canonical.encode(registration(world, der_bytes))
    assert (await ask(device, "sign-registration", SignRegistration(payload, der_bytes)))[0] == "not-issued-here"


async def test_a_registration_that_is_not_canonical_is_refused(world: World, device: RunningDevice) -> None:
    """The payload is refused when it is not canonical."""
    der_bytes = await issued(world, device)
    payload = canonical.encode(registration(world, der_bytes)).replace(b'":', b'": ', 1)
    assert (await ask(device, "sign-registration", SignRegistration(payload, der_bytes)))[0] == "malformed"


# --- renewals, nodes, services -------------------------------------------------------------------------------

NEXT = software_keys.ecdsa("door client's next key")


async def registered(world: World, device: RunningDevice) -> bytes:
    """Client c9 is on the whitelist with CLIENT's key; its certificate."""
    der_bytes = await issued(world, device)
    payload = canonical.encode(registration(world, der_bytes))
    _, answer = await ask(device, "sign-registration", SignRegistration(payload, der_bytes))
    envelope = Envelope(payload, transaction.PAYLOAD_TYPE, (answer.signature,))
    await device.apply(world.block([transaction.Transaction.decode(canonical.encode(envelope))]))
    return der_bytes


def proof(*signers: SoftwareKey, **changed: str) -> Envelope:
    """The request of c9 for a certificate for its next key."""
    said = {"network": "test", "client": "c9", "old": CLIENT.id, "new": NEXT.id, **changed}
    payload = canonical.encode(renewal.RenewalRequest(**said))
    return software_keys.envelope(renewal.PAYLOAD_TYPE, payload, list(signers or (CLIENT,)))


@pytest.mark.requirement("E-1", "K-12")
async def test_a_clients_next_key_is_certified_on_the_word_of_its_key(world: World, device: RunningDevice) -> None:
    """For a client on the whitelist, another key gets a certificate with the old key's request alone."""
    await registered(world, device)
    tbs = certificate(world, key=NEXT).tbs_certificate_bytes
    before = device.signatures()
    for wrong in (
        None,
        proof(NEXT),
        proof(CLIENT, NEXT),
        proof(client="c1"),
        proof(network="other"),
        proof(new=IMPOSTOR.id),
        proof(old=NEXT.id),
    ):
        assert (await ask(device, "sign-certificate", SignCertificate(tbs, wrong)))[0] == "bad-renewal"
    assert device.signatures() == before
    assert (await ask(device, "sign-certificate", SignCertificate(tbs, proof())))[0] == ""


async def renewed(world: World, device: RunningDevice, **changed: Any) -> tuple[TransactionPayload, bytes]:
    """The registrar's payload that puts c9's next key in the place of the old one, and the new certificate."""
    tbs = certificate(world, key=NEXT).tbs_certificate_bytes
    _, answer = await ask(device, "sign-certificate", SignCertificate(tbs, proof()))
    der_bytes = der.wrap(tbs, "ecdsa-p256-sha256", answer.signature.sig)
    signers = changed.pop("signers", [CLIENT, NEXT])
    fields = {
        "network": "test",
        "holder": "client/c9",
        "old": CLIENT.id,
        "new": NEXT.spki,
        "device": "",
        "since": 0,
        "overlap": 0,
        "not_before": milliseconds(NOW - DAY),
        "until": milliseconds(NOW + 100 * DAY),
        "certificate": der_bytes,
    }
    payload = canonical.encode(rotation.Announcement(**{**fields, **changed}))
    envelope = software_keys.envelope(rotation.PAYLOAD_TYPE, payload, signers)
    arguments = {"announcement": msgspec.json.decode(canonical.encode(envelope))}
    return world.network.payload("registry", "renew_client", arguments, client="ca"), der_bytes


@pytest.mark.requirement("K-12", "E-1")
async def test_a_clients_next_key_is_registered(world: World, device: RunningDevice) -> None:
    """What both keys announced is signed, and the ledger takes it: the next key is on the whitelist. Once."""
    await registered(world, device)
    payload, der_bytes = await renewed(world, device)
    body = SignRegistration(canonical.encode(payload), der_bytes)
    code, answer = await ask(device, "sign-registration", body)
    assert code == ""
    envelope = Envelope(body.payload, transaction.PAYLOAD_TYPE, (answer.signature,))
    await device.apply(world.block([transaction.Transaction.decode(canonical.encode(envelope))]))
    assert device.parts.chain.registry.client("c9") == NEXT.public
    assert (await ask(device, "sign-registration", body))[0] == "bad-renewal"  # the old key is not in force any more


@pytest.mark.requirement("K-12", "S-2")
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"signers": [CLIENT]}, "bad-renewal"),
        ({"signers": [NEXT]}, "bad-renewal"),
        ({"signers": [IMPOSTOR, NEXT]}, "bad-renewal"),
        ({"holder": "client/c1"}, "bad-renewal"),
        ({"holder": "client/nobody"}, "unknown-client"),
        ({"holder": "node/A"}, "bad-arguments"),
        ({"network": "other"}, "bad-arguments"),
        ({"until": milliseconds(NOW + 101 * DAY)}, "wrong-lifetime"),
        ({"certificate": b"another"}, "wrong-certificate"),
        ({"new": IMPOSTOR.spki, "signers": [CLIENT, IMPOSTOR]}, "wrong-key"),
    ],
)
async def test_other_renewals_are_refused(world: World, device: RunningDevice, changed: dict, code: str) -> None:
    """A renewal that one key alone announced, or that says something else than the certificate, is not signed."""
    await registered(world, device)
    payload, der_bytes = await renewed(world, device, **changed)
    before = device.signatures()
    body = SignRegistration(canonical.encode(payload), der_bytes)
    assert (await ask(device, "sign-registration", body))[0] == code
    assert device.signatures() == before


@pytest.mark.requirement("K-14", "K-12")
async def test_a_revoked_client_renews_nothing(world: World, device: RunningDevice) -> None:
    """Neither a certificate nor a registration is signed on the word of a revoked key; its own is never certified."""
    await registered(world, device)
    payload, der_bytes = await renewed(world, device)
    await device.apply(world.block([world.network.put(Revocation(CLIENT.id, "client/c9", "key-compromise", 0))]))
    assert (await ask(device, "sign-registration", SignRegistration(canonical.encode(payload), der_bytes)))[
        0
    ] == "revoked"
    tbs = certificate(world, key=NEXT).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs, proof())))[0] == "revoked"
    own = certificate(world).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(own)))[0] == "revoked"


def node_key(world: World) -> Any:
    """Node A's key, as a certificate's builder wants it: its public half."""

    class Held:
        class private:  # noqa: N801  stands where software keys have their private half
            @staticmethod
            def public_key() -> Any:
                return load_der_public_key(world.keys["node/A"].spki)

    return Held


@pytest.mark.requirement("E-1")
async def test_a_nodes_key_is_certified_in_its_name_alone(world: World, device: RunningDevice) -> None:
    """The registry says whose key it is: another node's name, or another key, gets no certificate."""
    documents = [x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")]
    unit = (NameOID.ORGANIZATIONAL_UNIT_NAME, "node")

    async def answer(name: str, key: Any) -> str:
        subject = named(unit, (NameOID.COMMON_NAME, name))
        tbs = certificate(world, subject=subject, key=key, purposes=documents).tbs_certificate_bytes
        return (await ask(device, "sign-certificate", SignCertificate(tbs)))[0]

    assert await answer("A", node_key(world)) == ""
    assert await answer("B", node_key(world)) == "wrong-key"
    assert await answer("A", CLIENT) == "wrong-key"
    assert await answer("nobody", CLIENT) == "wrong-key"


@pytest.mark.requirement("E-1")
async def test_a_services_certificate_is_no_clients(world: World, device: RunningDevice) -> None:
    """A service has alternative names and TLS purposes; its certificate registers nobody."""
    subject = named((NameOID.ORGANIZATIONAL_UNIT_NAME, "service"), (NameOID.COMMON_NAME, "c9"))
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    names = x509.SubjectAlternativeName([x509.DNSName("peer-1.example")])

    def tbs(*extensions: x509.ExtensionType) -> bytes:
        return certificate(
            world, subject=subject, purposes=purposes, extensions=[(each, False) for each in extensions]
        ).tbs_certificate_bytes

    assert (await ask(device, "sign-certificate", SignCertificate(tbs())))[0] == "wrong-subject"
    mail = x509.SubjectAlternativeName([x509.RFC822Name("root@example")])
    assert (await ask(device, "sign-certificate", SignCertificate(tbs(mail))))[0] == "wrong-subject"
    code, answer = await ask(device, "sign-certificate", SignCertificate(tbs(names)))
    assert code == ""
    der_bytes = der.wrap(tbs(names), "ecdsa-p256-sha256", answer.signature.sig)
    payload = canonical.encode(registration(world, der_bytes))
    assert (await ask(device, "sign-registration", SignRegistration(payload, der_bytes)))[0] == "wrong-name"


@pytest.mark.requirement("K-14", "E-1")
async def test_a_list_without_a_revoked_key_is_refused(world: World, device: RunningDevice) -> None:
    """The device knows from its own copy of the chain who is revoked: a list that leaves one out is not signed."""
    await registered(world, device)
    await device.apply(world.block([world.network.put(Revocation(CLIENT.id, "client/c9", "key-compromise", 0))]))
    assert (await ask(device, "sign-crl", SignCrl(crl(world))))[0] == "incomplete-list"
    own = x509_tbs.serial_number(world.keys["ca/ca"].id, CLIENT.id)
    assert (await ask(device, "sign-crl", SignCrl(crl(world, serials=[own]))))[0] == ""


@pytest.mark.requirement("K-12", "E-1")
async def test_an_earlier_key_of_the_ca_signs_its_own_lists_and_nothing_else(
    world: World, device: RunningDevice
) -> None:
    """After a change of the CA's key the old one issues nothing, and still says what of its own is revoked."""
    before = x509.load_der_x509_certificate(world.enrolled.ca_certificate)
    successor = software_keys.ecdsa("the next CA")
    old_list = crl(world, authority=before)
    new_entry = Registrar("ca", world.keys["node/A"].spki, ca_certificate(world.keys["node/A"], before.subject))
    changed = world.network.registry("put", {"entries": [builtins(Node("A", (NodeKey(successor.spki, NAME),)))]})
    await device.apply(world.block([changed]))  # node A's key is free now, and lives on this token
    await device.apply(world.block([world.network.put(new_entry)]))
    tbs = certificate(world).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs)))[0] == "wrong-serial"
    code, answer = await ask(device, "sign-crl", SignCrl(old_list))
    assert code == ""
    assert answer.signature.keyid == world.keys["ca/ca"].id
    stranger = x509.AuthorityKeyIdentifier(b"nobody's", None, None)
    assert (await ask(device, "sign-crl", SignCrl(crl(world, extension=stranger))))[0] == "wrong-issuer"
    await device.apply(
        world.block([world.network.put(Revocation(world.keys["node/A"].id, "registrar/ca", "ca-compromise", 0))])
    )
    assert (await ask(device, "sign-certificate", SignCertificate(tbs)))[0] == "revoked"


def ca_certificate(key: Any, subject: x509.Name) -> bytes:
    """A CA's certificate for a key on the token; who signed it is of no matter here."""
    public = load_der_public_key(key.spki)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 3000 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(IMPOSTOR.private, hashes.SHA256()).public_bytes(Encoding.DER)


# --- keys that are elsewhere ---------------------------------------------------------------------------------


async def test_doors_without_a_key_are_shut(world: World, device: RunningDevice) -> None:
    """When center and CA are not on this device any more, their doors say so."""
    assert (await device.http.get("/v1/status")).json()["doors"] == [
        *("sign-header", "sign-certificate", "sign-crl", "sign-registration")
    ]
    await device.apply(world.block([world.network.registry("remove", {"keys": ["center/center-1", "registrar/ca"]})]))
    assert (await device.http.get("/v1/status")).json()["doors"] == []
    assert (await ask(device, "sign-header", draft(world).encode()))[0] == "no-center-key"
    tbs = certificate(world).tbs_certificate_bytes
    assert (await ask(device, "sign-certificate", SignCertificate(tbs)))[0] == "no-ca-key"
