"""X.509 structures without a private key: what is taken out of a builder, and what is put around it."""

import datetime as dt
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID

from protocol import x509_tbs
from protocol.errors import BadSignatureError
from tests import software_keys
from tests.software_keys import SoftwareKey

ISSUERS = [software_keys.ecdsa("issuer"), software_keys.ed25519_key("issuer"), software_keys.rsa_key("issuer")]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def certificate_builder(issuer: SoftwareKey) -> x509.CertificateBuilder:
    """A certificate of some key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(load_der_public_key(issuer.spki))
        .serial_number(x509_tbs.serial_number(issuer.id, issuer.id))
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
    )


@pytest.mark.requirement("K-8", "E-1")
@pytest.mark.parametrize("issuer", ISSUERS, ids=lambda key: key.public.scheme)
def test_a_certificate_is_put_together_around_a_signature(issuer: SoftwareKey) -> None:
    """With the signature of the real key, every scheme's certificate verifies under its issuer."""
    tbs = x509_tbs.tbs_certificate(certificate_builder(issuer), issuer.public)
    made = x509.load_der_x509_certificate(x509_tbs.sealed(tbs, issuer.public, issuer.sign(tbs)))
    made.verify_directly_issued_by(made)
    assert made.tbs_certificate_bytes == tbs


@pytest.mark.parametrize("issuer", ISSUERS, ids=lambda key: key.public.scheme)
def test_a_list_is_put_together_around_a_signature(issuer: SoftwareKey) -> None:
    """The same for a list of revoked certificates; one beyond 127 and one beyond 255 bytes long."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    for count in (0, 1, 40):
        revoked = [
            x509.RevokedCertificateBuilder().serial_number(number + 1).revocation_date(NOW).build()
            for number in range(count)
        ]
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=revoked)
            .issuer_name(name)
            .last_update(NOW)
            .next_update(NOW + dt.timedelta(days=1))
        )
        tbs = x509_tbs.tbs_crl(builder, issuer.public)
        made = x509.load_der_x509_crl(x509_tbs.sealed(tbs, issuer.public, issuer.sign(tbs)))
        assert made.is_signature_valid(load_der_public_key(issuer.spki))
        assert len(made) == count


def test_another_keys_signature_is_refused() -> None:
    """Nothing is put together around a signature that does not verify, or has a high s."""
    issuer, other = ISSUERS[0], software_keys.ecdsa("somebody else")
    tbs = x509_tbs.tbs_certificate(certificate_builder(issuer), issuer.public)
    for signature in (other.sign(tbs), issuer.sign(tbs + b"\0"), software_keys.high_s(issuer.sign(tbs)), b""):
        with pytest.raises(BadSignatureError):
            x509_tbs.sealed(tbs, issuer.public, signature)


def test_wrapping_gives_what_the_library_writes() -> None:
    """The structure around the signature is the same DER, byte for byte."""
    issuer = ISSUERS[1]
    made = certificate_builder(issuer).sign(issuer.private, None)
    wrapped = x509_tbs.wrap(made.tbs_certificate_bytes, issuer.public.scheme, made.signature)
    assert wrapped == made.public_bytes(Encoding.DER)


@pytest.mark.requirement("K-14", "E-1")
def test_a_serial_number_follows_from_both_keys() -> None:
    """It is positive, has 20 octets at most, is another for other keys, and is what the documents say."""
    one, two = ISSUERS[0].id, ISSUERS[1].id
    numbers = {x509_tbs.serial_number(issuer, key) for issuer in (one, two) for key in (one, two)}
    assert len(numbers) == 4
    assert all(0 < number < 1 << 159 for number in numbers)
    said = b"hsm-endorser certificate serial v1\0" + bytes.fromhex(one) + bytes.fromhex(two)
    digest = bytearray(hashlib.sha256(said).digest()[:20])
    digest[0] = digest[0] & 0x3F | 0x40
    assert x509_tbs.serial_number(one, two) == int.from_bytes(digest, "big")
