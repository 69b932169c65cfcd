"""The life of certificates: renewed, revoked, expired, listed; for clients, nodes and services."""

import asyncio
import base64
import datetime as dt
import ipaddress
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol import canonical, renewal, rotation, x509_tbs
from protocol.envelope import Envelope, pae
from protocol.keys import key_id
from protocol.registry import Node, NodeKey, Revocation
from tests.management.simulated_network import NETWORK, Author, Key, RunningCenter, SimulatedNetwork, now_ms, running

OPENSSL = shutil.which("openssl") or "openssl"
PREFIX = "urn:hsm-endorser:problem:"
DAY = dt.timedelta(days=1)


def csr(name: str, key: Key, *extensions: x509.ExtensionType, subject: x509.Name | None = None) -> str:
    """A certificate signing request (PEM)."""
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or common)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key.private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def enrolled(center: RunningCenter, name: str = "carol") -> tuple[Author, x509.Certificate]:
    """A client that has enrolled, and its certificate."""
    author = Author(name)
    invited = await center.control.post("/v1/enrolments", json={"name": name, "seconds": 60})
    body = {"name": name, "csr": author.csr().decode(), "secret": invited.json()["secret"]}
    answer = await center.http.post("/v1/enrol", json=body)
    assert answer.status_code == 201, answer.text
    return author, x509.load_pem_x509_certificate(answer.json()["certificate"].encode())


def members(envelope: Envelope) -> dict[str, Any]:
    """An envelope as it stands in a JSON body."""
    found: dict[str, Any] = msgspec.json.decode(canonical.encode(envelope))
    return found


def signed(payload_type: str, payload: bytes, *keys: Key) -> Envelope:
    """An envelope under the signatures of these keys."""
    return Envelope(payload, payload_type, tuple(key.sign(pae(payload_type, payload)) for key in keys))


def proof(name: str, old: Key, new: Key, by: Key | None = None) -> dict[str, Any]:
    """A client's request for a certificate for its new key."""
    request = renewal.RenewalRequest(network=NETWORK, client=name, old=old.id, new=new.id)
    return members(signed(renewal.PAYLOAD_TYPE, canonical.encode(request), by or old))


async def ask(center: RunningCenter, author: Author, new: Key) -> Any:
    """Step 1 of a renewal."""
    body = {"csr": csr(author.name, new), "proof": proof(author.name, author.key, new)}
    return await center.http.post(f"/v1/clients/{author.name}/certificate", json=body)


async def announce(center: RunningCenter, name: str, words: bytes, *keys: Key) -> Any:
    """Step 2 of a renewal."""
    body = {"announcement": members(signed(rotation.PAYLOAD_TYPE, words, *keys))}
    return await center.http.post(f"/v1/clients/{name}/key", json=body)


async def put(center: RunningCenter, network: SimulatedNetwork, *entries: Any) -> None:
    """A change of the registry that the administrator signs."""
    arguments = {"entries": [msgspec.json.decode(canonical.encode(each)) for each in entries]}
    answer = await center.submit(network.admin.transaction("registry.put", arguments), wait=10)
    assert answer.json()["status"] == "committed", answer.text
    assert answer.json()["code"] == "valid", answer.text


async def crl(center: RunningCenter, issuer: str = "") -> x509.CertificateRevocationList:
    """The list of revoked certificates."""
    answer = await center.http.get("/v1/ca/crl" + (f"?issuer={issuer}" if issuer else ""))
    assert answer.status_code == 200, answer.text
    return x509.load_der_x509_crl(answer.content)


def reason_of(listed: x509.RevokedCertificate | None) -> str | None:
    """Why a certificate is on the list."""
    return None if listed is None else listed.extensions.get_extension_for_class(x509.CRLReason).value.reason.value


def id_of(key: Key) -> str:
    """The id of a key."""
    return key_id(key.spki)


# --- renewal ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-12", "E-1")
async def test_a_client_renews_its_key(center: RunningCenter) -> None:
    """Both keys announce the new one; then it signs, the old one does not, and the old certificate is superseded."""
    carol, before = await enrolled(center)
    new = Key()
    offered = (await ask(center, carol, new)).json()
    certificate = x509.load_pem_x509_certificate(offered["certificate"].encode())
    words = offered["announcement"].encode()
    done = await announce(center, "carol", words, carol.key, new)
    assert done.status_code == 201, done.text
    assert x509.load_pem_x509_certificate(done.json()["certificate"].encode()) == certificate
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(done.json()["ca_certificate"].encode()))
    old_words = await center.submit(carol.transaction())
    assert old_words.json()["type"] == PREFIX + "bad-signature"
    carol.key = new
    assert (await center.submit(carol.transaction(), wait=10)).json()["status"] == "committed"
    listed = await crl(center)
    superseded = listed.get_revoked_certificate_by_serial_number(before.serial_number)
    assert reason_of(superseded) == "superseded"
    assert listed.get_revoked_certificate_by_serial_number(certificate.serial_number) is None


@pytest.mark.requirement("K-12")
async def test_each_step_of_a_renewal_may_be_repeated(center: RunningCenter) -> None:
    """The same key gets the same certificate; an announcement that is on the chain is answered as it stands."""
    carol, _ = await enrolled(center)
    new = Key()
    first, again = [(await ask(center, carol, new)).json() for _ in range(2)]
    assert first["certificate"] == again["certificate"]
    words = first["announcement"].encode()
    done = await announce(center, "carol", words, carol.key, new)
    repeated = await announce(center, "carol", words, carol.key, new)
    assert (repeated.status_code, repeated.json()) == (201, done.json())


@pytest.mark.requirement("K-12", "S-2")
async def test_a_renewal_needs_the_key_in_force(center: RunningCenter) -> None:
    """No certificate in a client's name on the word of any other key; none for a client that is not there."""
    carol, _ = await enrolled(center)
    mallory, new = Key(), Key()
    request = csr("carol", new)
    for by in (mallory, new):
        body = {"csr": request, "proof": proof("carol", carol.key, new, by=by)}
        answer = await center.http.post("/v1/clients/carol/certificate", json=body)
        assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "bad-renewal")
    other = {"csr": csr("carol", mallory), "proof": proof("carol", carol.key, new)}
    answer = await center.http.post("/v1/clients/carol/certificate", json=other)
    assert answer.json()["type"] == PREFIX + "bad-renewal"
    nobody = {"csr": csr("dave", new), "proof": proof("dave", carol.key, new)}
    answer = await center.http.post("/v1/clients/dave/certificate", json=nobody)
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "unknown-client")
    same = {"csr": csr("carol", carol.key), "proof": proof("carol", carol.key, carol.key)}
    answer = await center.http.post("/v1/clients/carol/certificate", json=same)
    assert (answer.status_code, answer.json()["type"]) == (409, PREFIX + "key-in-use")


@pytest.mark.requirement("K-12", "S-2")
async def test_an_announcement_by_wrong_keys_or_with_other_words_changes_nothing(center: RunningCenter) -> None:
    """One signature, a stranger's, another certificate or lifetime: refused, and the old key goes on."""
    carol, _ = await enrolled(center)
    new, mallory = Key(), Key()
    words = (await ask(center, carol, new)).json()["announcement"].encode()
    said = canonical.decode(words, msgspec.json.Decoder(rotation.Announcement))
    longer = canonical.encode(msgspec.structs.replace(said, until=said.until + 1000))
    swapped = canonical.encode(msgspec.structs.replace(said, certificate=b"another"))
    stolen = canonical.encode(msgspec.structs.replace(said, new=mallory.spki))
    for payload, keys in [
        (words, [carol.key]),
        (words, [new]),
        (words, [mallory, new]),
        (longer, [carol.key, new]),
        (swapped, [carol.key, new]),
        (stolen, [carol.key, mallory]),
    ]:
        answer = await announce(center, "carol", payload, *keys)
        assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "bad-announcement"), answer.text
    other = await announce(center, "alice", words, carol.key, new)
    assert other.json()["type"] == PREFIX + "bad-announcement"
    assert (await center.submit(carol.transaction(), wait=10)).json()["status"] == "committed"


@pytest.mark.requirement("K-12")
async def test_an_announcement_counts_once(center: RunningCenter) -> None:
    """After a further renewal the first announcement, replayed, is refused."""
    carol, _ = await enrolled(center)
    first, second = Key(), Key()
    words = (await ask(center, carol, first)).json()["announcement"].encode()
    old = carol.key
    assert (await announce(center, "carol", words, old, first)).status_code == 201
    carol.key = first
    again = (await ask(center, carol, second)).json()["announcement"].encode()
    assert (await announce(center, "carol", again, first, second)).status_code == 201
    replay = await announce(center, "carol", words, old, first)
    assert replay.json()["type"] == PREFIX + "bad-announcement"
    back = {"csr": csr("carol", old), "proof": proof("carol", second, old)}
    returned = await center.http.post("/v1/clients/carol/certificate", json=back)
    assert (returned.status_code, returned.json()["type"]) == (409, PREFIX + "key-retired")
    said = canonical.decode(again, msgspec.json.Decoder(rotation.Announcement))
    first_said = canonical.decode(words, msgspec.json.Decoder(rotation.Announcement))
    backwards = msgspec.structs.replace(first_said, old=second.id, since=said.since)
    answer = await announce(center, "carol", canonical.encode(backwards), second, first)
    assert (answer.status_code, answer.json()["type"]) == (409, PREFIX + "key-retired")


@pytest.mark.requirement("K-14", "K-12")
async def test_a_revoked_client_is_refused_listed_and_renews_nothing(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """From the block of its revocation on: no transaction, no renewal; and the next list names it, with the reason."""
    carol, certificate = await enrolled(center)
    new = Key()
    words = (await ask(center, carol, new)).json()["announcement"].encode()
    before = await crl(center)
    assert before.get_revoked_certificate_by_serial_number(certificate.serial_number) is None
    await put(center, network, Revocation(id_of(carol.key), "client/carol", "key-compromise", now_ms() - 5000))
    listed = await crl(center)
    found = listed.get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert found is not None
    assert reason_of(found) == "keyCompromise"
    since = found.extensions.get_extension_for_class(x509.InvalidityDate).value.invalidity_date_utc
    assert since < found.revocation_date_utc <= dt.datetime.now(dt.UTC)
    numbers = [each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for each in (before, listed)]
    assert numbers[0] < numbers[1]
    assert (await center.submit(carol.transaction())).json()["type"] == PREFIX + "revoked"
    for answer in (await ask(center, carol, Key()), await announce(center, "carol", words, carol.key, new)):
        assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "revoked")


@pytest.mark.requirement("K-14", "K-12")
async def test_a_certificate_goes_with_the_key_that_asked_for_it(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """Who stole a key and had another one certified has nothing of it once the stolen one is revoked or replaced."""
    serials = []
    for name, way in (("carol", "revoked"), ("dora", "renewed")):
        author, _ = await enrolled(center, name)
        stolen, new = Key(), Key()
        offered = (await ask(center, author, stolen)).json()
        serials.append(x509.load_pem_x509_certificate(offered["certificate"].encode()).serial_number)
        assert (await crl(center)).get_revoked_certificate_by_serial_number(serials[-1]) is None
        if way == "revoked":
            await put(center, network, Revocation(id_of(author.key), f"client/{name}", "key-compromise", 0))
            continue
        words = (await ask(center, author, new)).json()["announcement"].encode()
        assert (await announce(center, name, words, author.key, new)).status_code == 201
        author.key = new
        again = await ask(center, author, stolen)
        assert (again.status_code, again.json()["type"]) == (409, PREFIX + "key-retired")
        good = x509.load_pem_x509_certificate((await ask(center, author, Key())).json()["certificate"].encode())
        assert (await crl(center)).get_revoked_certificate_by_serial_number(good.serial_number) is None
    found = [(await crl(center)).get_revoked_certificate_by_serial_number(serial) for serial in serials]
    assert list(map(reason_of, found)) == ["keyCompromise", "superseded"]


async def test_a_client_that_announces_nothing_gets_no_end_of_certificates(center: RunningCenter) -> None:
    """Sixteen keys may wait for their announcement; the next one is refused."""
    carol, _ = await enrolled(center)
    answers = await asyncio.gather(*(ask(center, carol, Key()) for _ in range(17)))
    assert sorted(answer.status_code for answer in answers) == [201] * 16 + [409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert refused.json()["type"] == PREFIX + "too-many-keys"


@pytest.mark.requirement("E-1")
async def test_a_removed_client_may_enrol_anew(center: RunningCenter, network: SimulatedNetwork) -> None:
    """With a new key, once administrators have removed the old entry; its old key does not come back."""
    carol, _ = await enrolled(center)
    removal = network.admin.transaction("registry.remove", {"keys": ["client/carol"]})
    assert (await center.submit(removal, wait=10)).json()["code"] == "valid"
    secret = (await center.control.post("/v1/enrolments", json={"name": "carol", "seconds": 60})).json()["secret"]
    old = await center.http.post("/v1/enrol", json={"name": "carol", "csr": carol.csr().decode(), "secret": secret})
    assert (old.status_code, old.json()["type"]) == (409, PREFIX + "key-retired")
    again, certificate = await enrolled(center)
    assert (await center.submit(again.transaction(), wait=10)).json()["status"] == "committed"
    assert (await crl(center)).get_revoked_certificate_by_serial_number(certificate.serial_number) is None


@pytest.mark.requirement("K-13", "E-1")
async def test_an_expired_client_is_refused(center: RunningCenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate's end is the key's end: afterwards nothing is taken, and the key names no successor."""
    monkeypatch.setattr("management.certificate.VALIDITY", dt.timedelta(seconds=2))
    carol, certificate = await enrolled(center)
    assert (await center.submit(carol.transaction(), wait=10)).json()["status"] == "committed"
    ends = certificate.not_valid_after_utc
    await asyncio.sleep(max(0.0, (ends - dt.datetime.now(dt.UTC)).total_seconds()) + 0.1)
    network = center.network
    assert (await center.submit(network.alice.transaction(), wait=10)).json()["status"] == "committed"  # time goes on
    refused = await center.submit(carol.transaction())
    assert (refused.status_code, refused.json()["type"]) == (403, PREFIX + "client-expired")
    answer = await ask(center, carol, Key())
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "client-expired")
    listed = (await center.control.get("/v1/certificates")).json()["certificates"]
    assert [(each["name"], each["state"], each["days_left"]) for each in listed] == [("carol", "expired", 0)]


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-14", "E-1")
async def test_openssl_sees_what_is_revoked(center: RunningCenter, network: SimulatedNetwork, tmp_path: Path) -> None:
    """`openssl verify -crl_check` takes a client's certificate before its revocation, and not after it."""
    carol, certificate = await enrolled(center)
    _, other = await enrolled(center, "dora")
    paths = {name: tmp_path / f"{name}.pem" for name in ("carol", "dora", "ca", "crl")}
    for name, each in (("carol", certificate), ("dora", other)):
        paths[name].write_bytes(each.public_bytes(serialization.Encoding.PEM))
    paths["ca"].write_bytes((await center.http.get("/v1/ca/certificate")).content)

    async def verify(name: str) -> str:
        paths["crl"].write_bytes((await crl(center)).public_bytes(serialization.Encoding.PEM))
        command = [OPENSSL, "verify", "-crl_check", "-CAfile", paths["ca"], "-CRLfile", paths["crl"], paths[name]]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "carol.pem: OK" in await verify("carol")
    await put(center, network, Revocation(id_of(carol.key), "client/carol", "key-compromise", 0))
    assert "certificate revoked" in await verify("carol")
    assert "dora.pem: OK" in await verify("dora")


@pytest.mark.requirement("K-14")
async def test_a_list_is_kept_until_something_changes(center: RunningCenter, network: SimulatedNetwork) -> None:
    """The token signs a list when it says something new, also across a restart; who joins is no reason."""
    carol, _ = await enrolled(center)
    first = await crl(center)
    await enrolled(center, "dora")
    assert await crl(center) == first
    await center.stop()
    async with running(network) as again:
        assert await crl(again) == first
        await put(again, network, Revocation(id_of(carol.key), "client/carol", "superseded", 0))
        assert await crl(again) != first


@pytest.mark.requirement("K-14")
async def test_the_list_outlives_the_loss_of_the_cas_own_tables(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """What is revoked, superseded or removed, since when and why, is read from the chain alone."""
    carol, _ = await enrolled(center)
    dora, _ = await enrolled(center, "dora")
    erna, _ = await enrolled(center, "erna")
    new = Key()
    words = (await ask(center, carol, new)).json()["announcement"].encode()
    assert (await announce(center, "carol", words, carol.key, new)).status_code == 201
    await put(center, network, Revocation(id_of(dora.key), "client/dora", "affiliation-changed", 0))
    removal = network.admin.transaction("registry.remove", {"keys": ["client/erna"]})
    assert (await center.submit(removal, wait=10)).json()["code"] == "valid"
    before = list(await crl(center))
    assert sorted(filter(None, map(reason_of, before))) == ["affiliationChanged", "cessationOfOperation", "superseded"]
    await center.stop()
    forget(network)
    async with running(network) as again:
        after = list(await crl(again))
    told = [
        [(each.serial_number, each.revocation_date_utc, reason_of(each)) for each in one] for one in (before, after)
    ]
    assert told[0] == told[1]
    serial = x509_tbs.serial_number(network.ca_key.id, id_of(dora.key))
    assert serial in {each.serial_number for each in after}
    assert erna.key is not None


@pytest.mark.requirement("K-12", "E-1")
async def test_each_key_of_the_ca_has_its_own_list(center: RunningCenter, network: SimulatedNetwork) -> None:
    """After a change of the CA's key, both certificates are given out, the new key issues, each key signs its list."""
    carol, under_old = await enrolled(center)
    old_key, new_key = network.ca_key, Key()
    before = x509.load_pem_x509_certificate((await center.http.get("/v1/ca/certificate")).content)
    network.device_a.ca_keys = {id_of(old_key): old_key, id_of(new_key): new_key}
    network.device_a.ca = new_key
    entry = network.registrar(new_key)
    await put(center, network, entry)
    bundle = x509.load_pem_x509_certificates((await center.http.get("/v1/ca/certificate")).content)
    assert [each.public_key() for each in bundle] == [new_key.private.public_key(), old_key.private.public_key()]
    assert bundle[1] == before
    dora, under_new = await enrolled(center, "dora")
    under_new.verify_directly_issued_by(bundle[0])
    under_old.verify_directly_issued_by(bundle[1])
    for each, issuer in ((under_new, bundle[0]), (under_old, bundle[1])):
        authority = each.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        assert authority == x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    for author in (carol, dora):
        await put(center, network, Revocation(id_of(author.key), f"client/{author.name}", "unspecified", 0))
    new_list, old_list = await crl(center), await crl(center, id_of(old_key))
    assert new_list.is_signature_valid(new_key.private.public_key())
    assert old_list.is_signature_valid(old_key.private.public_key())
    assert old_list.get_revoked_certificate_by_serial_number(under_old.serial_number) is not None
    assert new_list.get_revoked_certificate_by_serial_number(under_new.serial_number) is not None
    unknown = await center.http.get(f"/v1/ca/crl?issuer={'ab' * 32}")
    assert (unknown.status_code, unknown.json()["type"]) == (404, PREFIX + "unknown-issuer")


# --- nodes and services -------------------------------------------------------------------------------------------


@pytest.mark.requirement("E-1")
async def test_a_nodes_keys_are_certified(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Each key of a node that counts gets one certificate in the node's name, and the same one again."""
    answer = await center.control.post("/v1/certificates/node", json={"node": "A"})
    assert answer.status_code == 201, answer.text
    (issued,) = answer.json()["certificates"]
    certificate = x509.load_pem_x509_certificate(issued["certificate"].encode())
    assert certificate.public_key() == network.node_keys["A"].private.public_key()
    assert certificate.subject.rfc4514_string() == "CN=A,OU=node"
    again = await center.control.post("/v1/certificates/node", json={"node": "A", "device": "device-a"})
    assert again.json()["certificates"] == [issued]
    for body in ({"node": "Z"}, {"node": "A", "device": "device-b"}):
        nobody = await center.control.post("/v1/certificates/node", json=body)
        assert (nobody.status_code, nobody.json()["type"]) == (404, PREFIX + "unknown-node")
    successor = Key()
    await put(center, network, Node("A", (NodeKey(successor.spki, "device-a"),)))
    listed = (await crl(center)).get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert reason_of(listed) == "superseded"


@pytest.mark.requirement("K-12", "K-14")
async def test_a_nodes_old_certificate_is_superseded_when_the_overlap_is_over(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """As long as both keys of a node count, so do both certificates; then the old one is on the list, at once."""
    (issued,) = (await center.control.post("/v1/certificates/node", json={"node": "C"})).json()["certificates"]
    serial, old = int(issued["serial"], 16), network.node_keys["C"]
    height = (await center.http.get("/v1/network")).json()["height"]
    both = Node(
        "C", (NodeKey(old.spki, "device-c", last=height + 2), NodeKey(Key().spki, "device-c", since=height + 2))
    )
    await put(center, network, both)
    (fresh,) = [
        each
        for each in (await center.control.post("/v1/certificates/node", json={"node": "C"})).json()["certificates"]
        if each["serial"] != issued["serial"]
    ]
    assert (await crl(center)).get_revoked_certificate_by_serial_number(serial) is None
    assert (await center.submit(network.alice.transaction(), wait=10)).json()["height"] == height + 2
    listed = await crl(center)
    found = listed.get_revoked_certificate_by_serial_number(serial)
    assert reason_of(found) == "superseded"
    assert found is not None
    assert abs(found.revocation_date_utc - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)
    assert listed.get_revoked_certificate_by_serial_number(int(fresh["serial"], 16)) is None
    again = (await center.control.post("/v1/certificates/node", json={"node": "C"})).json()["certificates"]
    assert again == [fresh]


@pytest.mark.requirement("K-14")
async def test_a_lost_device_takes_its_nodes_certificates_along(
    center: RunningCenter, network: SimulatedNetwork
) -> None:
    """With a device's identity key every node key on it is revoked: the list says so."""
    (issued,) = (await center.control.post("/v1/certificates/node", json={"node": "C"})).json()["certificates"]
    identity = network.device_c.identity
    await put(center, network, Revocation(id_of(identity), "device/device-c", "key-compromise", 0))
    listed = (await crl(center)).get_revoked_certificate_by_serial_number(int(issued["serial"], 16))
    assert reason_of(listed) == "keyCompromise"
    (shown,) = (await center.control.get("/v1/certificates?kind=node")).json()["certificates"]
    assert (shown["name"], shown["state"], shown["reason"]) == ("C", "key-compromise", "key-compromise")


@pytest.mark.requirement("E-1")
async def test_a_services_key_is_certified_with_its_names(center: RunningCenter) -> None:
    """A service's certificate serves TLS under the names in its CSR; the operator's own list replaces them."""
    names = x509.SubjectAlternativeName(
        [x509.DNSName("peer-1.example"), x509.IPAddress(ipaddress.ip_address("10.0.0.7"))]
    )
    body = {"name": "peer-1", "csr": csr("anything", Key(), names)}
    answer = await center.control.post("/v1/certificates/service", json=body)
    assert answer.status_code == 201, answer.text
    certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=peer-1,OU=service"
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found == names
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    other = {"name": "peer-2", "csr": csr("x", Key(), names), "dns": ["peer-2.example"], "addresses": ["::1"]}
    told = await center.control.post("/v1/certificates/service", json=other)
    certificate = x509.load_pem_x509_certificate(told.json()["certificate"].encode())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["peer-2.example"]
    refused = await center.http.post("/v1/certificates/service", json=body)
    assert refused.status_code == 404  # the public listener has no such door


@pytest.mark.requirement("E-1", "K-14")
async def test_a_services_certificate_is_revoked_by_the_operator(center: RunningCenter) -> None:
    """It is on the list at once, and its key gets no other certificate."""
    key = Key()
    body = {"name": "peer-1", "csr": csr("peer-1", key), "dns": ["peer-1.example"]}
    issued = (await center.control.post("/v1/certificates/service", json=body)).json()
    await crl(center)
    answer = await center.control.post("/v1/certificates/service/peer-1:revoke", json={"reason": "key-compromise"})
    assert answer.json() == {"name": "peer-1", "revoked": [issued["serial"]]}
    listed = (await crl(center)).get_revoked_certificate_by_serial_number(int(issued["serial"], 16))
    assert reason_of(listed) == "keyCompromise"
    again = await center.control.post("/v1/certificates/service", json=body)
    assert (again.status_code, again.json()["type"]) == (409, PREFIX + "key-retired")
    nothing = await center.control.post("/v1/certificates/service/peer-1:revoke", json={})
    assert (nothing.status_code, nothing.json()["type"]) == (404, PREFIX + "not-issued")


@pytest.mark.requirement("E-1", "K-14")
async def test_a_forgotten_service_certificate_can_be_revoked(center: RunningCenter, network: SimulatedNetwork) -> None:
    """After the loss of the tables the operator brings the certificate; another CA's, or a client's, is not taken."""
    body = {"name": "peer-1", "csr": csr("peer-1", Key()), "dns": ["peer-1.example"]}
    issued = (await center.control.post("/v1/certificates/service", json=body)).json()
    carol, certificate = await enrolled(center)
    await center.stop()
    forget(network)
    async with running(network) as again:
        other = x509.load_pem_x509_certificate(issued["certificate"].encode())
        forged = (
            x509.CertificateBuilder(*(other.issuer, other.subject, other.public_key(), other.serial_number))
            .not_valid_before(other.not_valid_before_utc)
            .not_valid_after(other.not_valid_after_utc)
            .sign(carol.key.private, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        for wrong in (forged.public_bytes(pem).decode(), certificate.public_bytes(pem).decode(), "none"):
            answer = await again.control.post("/v1/certificates/service/peer-1:revoke", json={"certificate": wrong})
            assert (answer.status_code, answer.json()["type"]) == (404, PREFIX + "not-issued")
        right = {"certificate": issued["certificate"], "reason": "superseded"}
        answer = await again.control.post("/v1/certificates/service/peer-1:revoke", json=right)
        assert answer.json()["revoked"] == [issued["serial"]]
        assert (
            reason_of((await crl(again)).get_revoked_certificate_by_serial_number(other.serial_number)) == "superseded"
        )


@pytest.mark.requirement("K-14")
async def test_a_revoked_key_of_the_ca_vouches_for_nothing(center: RunningCenter, network: SimulatedNetwork) -> None:
    """Neither its certificate nor its list is given out; its successor's are."""
    old_key, new_key = network.ca_key, Key()
    carol, _ = await enrolled(center)
    await put(center, network, Revocation(id_of(old_key), "registrar/ca", "ca-compromise", 0))
    for path in ("/v1/ca/certificate", "/v1/ca/crl"):
        answer = await center.http.get(path)
        assert (answer.status_code, answer.json()["type"]) == (503, PREFIX + "no-ca"), path
    gone = await center.http.get(f"/v1/ca/crl?issuer={id_of(old_key)}")
    assert (gone.status_code, gone.json()["type"]) == (404, PREFIX + "unknown-issuer")
    network.device_a.ca = new_key
    await put(center, network, network.registrar(new_key))
    (current,) = x509.load_pem_x509_certificates((await center.http.get("/v1/ca/certificate")).content)
    assert current.public_key() == new_key.private.public_key()
    assert (await crl(center)).is_signature_valid(new_key.private.public_key())
    new = Key()
    words = (await ask(center, carol, new)).json()["announcement"].encode()
    assert (await announce(center, "carol", words, carol.key, new)).status_code == 201


def forget(network: SimulatedNetwork) -> None:
    """Lose all that the CA has written down."""
    engine = sa.create_engine(f"sqlite:///{network.folder / 'chain.db'}")
    with engine.begin() as connection:
        for table in ("certificates", "revocation_lists", "enrolments"):
            connection.execute(sa.text(f"DELETE FROM {table}"))  # noqa: S608  names of this test's own
    engine.dispose()


async def test_a_key_has_one_certificate(center: RunningCenter) -> None:
    """A client's key is no service's, and one service's key is not another's."""
    carol, _ = await enrolled(center)
    key = Key()
    first = {"name": "peer-1", "csr": csr("x", key), "dns": ["peer-1.example"]}
    assert (await center.control.post("/v1/certificates/service", json=first)).status_code == 201
    for body in (
        {**first, "name": "peer-2"},
        {**first, "dns": ["bank.example"]},
        {**first, "csr": csr("x", carol.key)},
    ):
        answer = await center.control.post("/v1/certificates/service", json=body)
        assert (answer.status_code, answer.json()["type"]) == (409, PREFIX + "key-in-use")


async def test_names_that_are_none_are_refused(center: RunningCenter) -> None:
    """Alternative names are DNS names and addresses, and there is one at least."""
    dns = ["a b", "bank.example\x00.evil.example", "bänk.example", "-a.example", "10.0.0.1", "a.example\n", "*", ""]
    cases: list[dict[str, list[str]]] = [{"dns": [name]} for name in dns]
    cases += [{"addresses": ["10.0.0.300"]}, {"addresses": ["bank.example"]}, {}]
    for names in cases:
        body = {"name": "peer-1", "csr": csr("x", Key()), **names}
        answer = await center.control.post("/v1/certificates/service", json=body)
        assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "bad-csr"), names


# --- attacks on enrolment -----------------------------------------------------------------------------------------


@pytest.mark.requirement("E-1")
async def test_nothing_but_the_key_comes_from_a_csr(center: RunningCenter) -> None:
    """Alternative names and purposes that a client asks for are not certified; a CA's powers are refused outright."""
    key = Key()
    invited = (await center.control.post("/v1/enrolments", json={"name": "carol", "seconds": 60})).json()["secret"]
    for extension in (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            **dict.fromkeys(
                (
                    *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                    *("crl_sign", "encipher_only", "decipher_only"),
                ),
                False,
            ),
        ),
    ):
        body = {"name": "carol", "csr": csr("carol", key, extension), "secret": invited}
        answer = await center.http.post("/v1/enrol", json=body)
        assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "bad-csr")
    wishes = (
        x509.SubjectAlternativeName([x509.DNSName("bank.example")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    )
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "node"), x509.NameAttribute(NameOID.COMMON_NAME, "carol")]
    )
    body = {"name": "carol", "csr": csr("carol", key, *wishes, subject=subject), "secret": invited}
    answer = await center.http.post("/v1/enrol", json=body)
    certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    assert certificate.subject.rfc4514_string() == "CN=carol"
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_odd_common_names_are_not_the_clients(center: RunningCenter) -> None:
    """A common name is compared as it is: what only looks like the client's is refused."""
    invited = (await center.control.post("/v1/enrolments", json={"name": "carol", "seconds": 60})).json()["secret"]
    for name in ("carol\x00", "carol\n", "c\u0430rol", "carol ", "carol,CN=alice", "x" * 64):
        body = {"name": "carol", "csr": csr(name, Key()), "secret": invited}
        answer = await center.http.post("/v1/enrol", json=body)
        assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "wrong-name"), name


async def test_huge_and_broken_requests_are_refused(center: RunningCenter) -> None:
    """More than 64 KiB, a thousand names in one CSR, no envelope: refused with a reason."""
    key = Key()
    many = x509.SubjectAlternativeName([x509.DNSName(f"h{number}.example") for number in range(1000)])
    answer = await center.control.post("/v1/certificates/service", json={"name": "p", "csr": csr("p", key, many)})
    assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + "bad-csr")
    huge = {"name": "carol", "csr": "A" * 70_000, "secret": None}
    assert (await center.http.post("/v1/enrol", json=huge)).status_code in {400, 413, 422}
    for proof_of in (
        {},
        {"payload": 1},
        {"payload": base64.b64encode(b"{}").decode(), "payloadType": "x", "signatures": []},
    ):
        answer = await center.http.post(
            "/v1/clients/alice/certificate", json={"csr": csr("alice", key), "proof": proof_of}
        )
        assert answer.status_code in {400, 403, 422}
        assert answer.json()["detail"]


@pytest.mark.requirement("E-1")
async def test_racing_requests_get_one_certificate(center: RunningCenter) -> None:
    """The same CSR ten times at once: one certificate, one registration."""
    carol = Author("carol")
    secret = (await center.control.post("/v1/enrolments", json={"name": "carol", "seconds": 60})).json()["secret"]
    body = {"name": "carol", "csr": carol.csr().decode(), "secret": secret}
    answers = await asyncio.gather(*(center.http.post("/v1/enrol", json=body) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    listed = (await center.control.get("/v1/certificates")).json()["certificates"]
    assert [each["name"] for each in listed] == ["carol"]


@pytest.mark.requirement("E-1")
async def test_a_stop_between_certificate_and_registration_is_made_good(network: SimulatedNetwork) -> None:
    """The device signs the certificate and then fails: after a restart the same CSR gets the same certificate."""
    carol = Author("carol")
    async with running(network) as center:
        secret = (await center.control.post("/v1/enrolments", json={"name": "carol", "seconds": 60})).json()["secret"]
        body = {"name": "carol", "csr": carol.csr().decode(), "secret": secret}
        network.device_a.registration_key = Key()  # what it signs for the registrar does not hold
        failed = await center.http.post("/v1/enrol", json=body)
        assert failed.status_code == 403, failed.text
        (before,) = (await center.control.get("/v1/certificates")).json()["certificates"]
    network.device_a.registration_key = None
    async with running(network) as center:
        answer = await center.http.post("/v1/enrol", json=body)
        assert answer.status_code == 201, answer.text
        certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
        assert f"{certificate.serial_number:x}" == before["serial"]
        assert (await center.submit(carol.transaction(), wait=10)).json()["status"] == "committed"
