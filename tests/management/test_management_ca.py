"""The CA: who gets a certificate, and who does not."""

import asyncio

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.management.simulated_network import Author, Key, RunningCenter, SimulatedNetwork, running

PREFIX = "urn:hsm-endorser:problem:"


async def invite(center: RunningCenter, name: str, seconds: int = 60) -> str:
    """A one-time secret from the operator's door."""
    answer = await center.control.post("/v1/enrolments", json={"name": name, "seconds": seconds})
    assert answer.status_code == 201, answer.text
    secret: str = answer.json()["secret"]
    return secret


def body(author: Author, secret: str | None = None, name: str | None = None) -> dict[str, object]:
    """An enrolment request."""
    return {"name": name or author.name, "csr": author.csr().decode(), "secret": secret}


@pytest.mark.requirement("E-1")
async def test_secret_gives_a_certificate_and_the_whitelist(center: RunningCenter) -> None:
    """A CSR with its one-time secret gets a certificate of the CA; the client's transactions are taken afterwards."""
    carol = Author("carol")
    before = await center.submit(carol.transaction())
    assert before.json()["type"] == PREFIX + "unknown-client"
    answer = await center.http.post("/v1/enrol", json=body(carol, await invite(center, "carol")))
    assert answer.status_code == 201, answer.text
    certificate = x509.load_pem_x509_certificate(answer.json()["certificate"].encode())
    ca = x509.load_pem_x509_certificate(answer.json()["ca_certificate"].encode())
    certificate.verify_directly_issued_by(ca)
    assert certificate.subject.rfc4514_string() == "CN=carol"
    assert certificate.public_key() == carol.key.private.public_key()
    assert (await center.http.get("/v1/ca/certificate")).content == ca.public_bytes(serialization.Encoding.PEM)
    status = await center.http.get(f"/v1/transactions/{answer.json()['transaction']}")
    assert (status.json()["status"], status.json()["code"]) == ("committed", "valid")
    assert (await center.submit(carol.transaction(), wait=10)).json()["status"] == "committed"


@pytest.mark.requirement("E-1")
async def test_secret_counts_once(center: RunningCenter) -> None:
    """The same CSR again gets the same certificate; the secret with another CSR is refused."""
    carol = Author("carol")
    request = body(carol, await invite(center, "carol"))
    first = await center.http.post("/v1/enrol", json=request)
    again = await center.http.post("/v1/enrol", json=request)
    assert (again.status_code, again.json()) == (201, first.json())
    carol.key = Key()
    other = await center.http.post("/v1/enrol", json={**request, "csr": carol.csr().decode()})
    assert (other.status_code, other.json()["type"]) == (409, PREFIX + "secret-used")


@pytest.mark.requirement("E-1")
@pytest.mark.parametrize("secret", ["wrong", ""])
async def test_wrong_secret_is_refused(center: RunningCenter, secret: str) -> None:
    """A wrong secret, for an invited name or any other, gets 403 bad-secret and uses nothing up."""
    carol = Author("carol")
    right = await invite(center, "carol")
    for author in (carol, Author("dave")):
        answer = await center.http.post("/v1/enrol", json=body(author, secret))
        assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "bad-secret")
    none = await center.http.post("/v1/enrol", json=body(carol))
    assert (none.status_code, none.json()["type"]) == (403, PREFIX + "secret-needed")
    assert (await center.http.post("/v1/enrol", json=body(carol, right))).status_code == 201


async def test_expired_secret_is_refused(center: RunningCenter) -> None:
    """A secret has an end."""
    carol = Author("carol")
    secret = await invite(center, "carol", seconds=1)
    await asyncio.sleep(1.1)
    answer = await center.http.post("/v1/enrol", json=body(carol, secret))
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "bad-secret")
    assert "has expired" in answer.json()["detail"]


@pytest.mark.requirement("E-1")
async def test_operator_approves(center: RunningCenter) -> None:
    """Without a secret the request waits for the operator; after the approval the same request gets a certificate."""
    carol = Author("carol")
    request = body(carol)
    waiting = await center.http.post("/v1/enrol", json=request)
    assert waiting.status_code == 202
    listed = (await center.control.get("/v1/enrolments")).json()["enrolments"]
    assert [each["name"] for each in listed] == ["carol"]
    assert listed[0]["csr"].split() == str(request["csr"]).split()
    carol.key = Key()
    other = await center.http.post("/v1/enrol", json=body(carol))
    assert (other.status_code, other.json()["type"]) == (409, PREFIX + "other-csr")
    assert (await center.control.post("/v1/enrolments/carol:approve")).status_code == 200
    assert (await center.http.post("/v1/enrol", json=request)).status_code == 201
    assert (await center.control.get("/v1/enrolments")).json()["enrolments"] == []


async def test_operator_refuses(center: RunningCenter) -> None:
    """What the operator refused gets 403 from then on; and nobody can decide what does not wait."""
    request = body(Author("carol"))
    await center.http.post("/v1/enrol", json=request)
    assert (await center.control.post("/v1/enrolments/carol:refuse")).status_code == 200
    answer = await center.http.post("/v1/enrol", json=request)
    assert (answer.status_code, answer.json()["type"]) == (403, PREFIX + "enrolment-refused")
    again = await center.control.post("/v1/enrolments/carol:approve")
    assert (again.status_code, again.json()["type"]) == (409, PREFIX + "not-waiting")


async def test_operators_door_is_not_public(center: RunningCenter) -> None:
    """The public listener knows nothing of enrolment secrets."""
    answer = await center.http.post("/v1/enrolments", json={"name": "carol", "seconds": 60})
    assert (answer.status_code, answer.json()["type"]) == (404, PREFIX + "not-found")


async def test_bad_requests_are_refused(center: RunningCenter) -> None:
    """No CSR, a CSR in another name, one with a broken signature or a weak key: each is refused with its reason."""
    carol = Author("carol")
    secret = await invite(center, "carol")
    broken = bytearray(x509.load_pem_x509_csr(carol.csr()).public_bytes(serialization.Encoding.DER))
    broken[-1] ^= 1
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "carol")])
    weak_key = rsa.generate_private_key(65537, 1024)  # noqa: S505  that it is refused is the point
    weak = x509.CertificateSigningRequestBuilder().subject_name(name).sign(weak_key, hashes.SHA256())
    cases = {
        "bad-csr": "no csr",
        "wrong-name": Author("dave").csr().decode(),
        "unacceptable-key": weak.public_bytes(serialization.Encoding.PEM).decode(),
    }
    for code, csr in cases.items():
        answer = await center.http.post("/v1/enrol", json={"name": "carol", "csr": csr, "secret": secret})
        assert (answer.status_code, answer.json()["type"]) == (422, PREFIX + code)
    pem = x509.load_der_x509_csr(bytes(broken)).public_bytes(serialization.Encoding.PEM).decode()
    answer = await center.http.post("/v1/enrol", json={"name": "carol", "csr": pem, "secret": secret})
    assert answer.json()["type"] == PREFIX + "bad-csr"
    assert "not signed by the key" in answer.json()["detail"]
    taken = await center.control.post("/v1/enrolments", json={"name": "alice", "seconds": 60})
    assert (taken.status_code, taken.json()["type"]) == (409, PREFIX + "already-registered")


async def test_crl_is_signed_by_the_ca(center: RunningCenter, network: SimulatedNetwork) -> None:
    """The list of revoked certificates is signed by the CA's key, through its own door."""
    answer = await center.http.get("/v1/ca/crl")
    assert answer.status_code == 200, answer.text
    crl = x509.load_der_x509_crl(answer.content)
    assert crl.is_signature_valid(network.ca_key.private.public_key())
    assert list(crl) == []


async def test_signature_of_another_key_is_no_certificate(center: RunningCenter, network: SimulatedNetwork) -> None:
    """What the CA's device signs is verified before it is used."""
    network.device_a.ca = Key()
    answer = await center.http.post("/v1/enrol", json=body(Author("carol"), await invite(center, "carol")))
    assert (answer.status_code, answer.json()["type"]) == (502, PREFIX + "bad-answer")


async def test_device_that_comes_late_is_waited_for(network: SimulatedNetwork) -> None:
    """Without the CA's device the service is not ready and says why; enrolment waits a little for it."""
    await network.device_a.stop()
    async with running(network) as center:
        health = await center.http.get("/health/ready")
        assert health.status_code == 503
        assert "the device with the key of center center-1 is not ready" in health.json()["checks"]["center"]
        request = body(Author("carol"), await invite(center, "carol"))
        asking = asyncio.create_task(center.http.post("/v1/enrol", json=request))
        await asyncio.sleep(0.3)
        assert not asking.done()
        await network.device_a.start()
        answer = await asking
        assert answer.status_code == 201, answer.text
