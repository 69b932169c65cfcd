"""X.509 for the CA: what is to be signed is built here, the signature comes from a token (requirement E-1).

`cryptography` builds and signs in one step. So the key here is a stand-in that has no private part: a first pass
under a placeholder gives the bytes to be signed, a second one carries the signature that the token made for them.
"""

import datetime as dt
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from management.errors import EnrolmentError
from protocol.errors import UnacceptableKeyError
from protocol.keys import PublicKey

VALIDITY: Final = dt.timedelta(days=365)
BACKDATED: Final = dt.timedelta(minutes=5)
"""Clocks differ a little: a certificate counts from shortly before it is made."""
CRL_VALIDITY: Final = dt.timedelta(days=7)
MOST_CSR_BYTES: Final = 64 << 10

Built = TypeVar("Built")


class Request:
    """A CSR that was found good: it proves that its author holds the private key."""

    def __init__(self, name: str, csr: x509.CertificateSigningRequest, key: PublicKey) -> None:
        self.name = name
        self.csr = csr
        self.key = key

    @property
    def der(self) -> bytes:
        """The CSR, DER."""
        return self.csr.public_bytes(serialization.Encoding.DER)


def read_request(name: str, data: bytes) -> Request:
    """The CSR in PEM or DER, for a client called `name`; raises `EnrolmentError`."""
    if len(data) > MOST_CSR_BYTES:
        raise EnrolmentError("bad-csr", f"the CSR has {len(data)} bytes where at most {MOST_CSR_BYTES} are allowed")
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        csr = x509.load_pem_x509_csr(data) if pem else x509.load_der_x509_csr(data)
        spki = csr.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        names = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        proven = csr.is_signature_valid
    except Exception as error:  # noqa: BLE001  parsers of hostile bytes raise many kinds; all mean the same here
        raise EnrolmentError("bad-csr", f"not a PKCS#10 certificate signing request: {error}") from None
    if not proven:
        raise EnrolmentError("bad-csr", "the CSR is not signed by the key that it names")
    if [attribute.value for attribute in names] != [name]:
        found = ", ".join(str(attribute.value) for attribute in names) or "none"
        raise EnrolmentError("wrong-name", f"the CSR's common name is {found!r} where {name!r} is expected")
    try:
        key = PublicKey.load(spki)
    except UnacceptableKeyError as error:
        raise EnrolmentError("unacceptable-key", str(error)) from None
    return Request(name, csr, key)


class Draft(Generic[Built]):
    """A certificate or CRL that lacks its signature: `tbs` (DER) is what the CA's key is to sign."""

    def __init__(self, build: Callable[[bytes], Built], tbs_of: Callable[[Built], bytes], key: PublicKey) -> None:
        self._build = build
        self._key = key
        self.tbs = tbs_of(build(_PLACEHOLDER))

    def signed(self, signature: bytes) -> Built:
        """The finished object; raises `BadSignatureError` when the CA's key did not sign exactly this."""
        self._key.verify(signature, self.tbs, low_s=True)
        return self._build(signature)


class Issuer:
    """The CA, by its own certificate (DER)."""

    def __init__(self, certificate: bytes) -> None:
        self.certificate = x509.load_der_x509_certificate(certificate)
        key = self.certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
            raise EnrolmentError("unacceptable-key", f"the CA's certificate carries a {type(key).__name__}")
        self._public = key
        self.key = PublicKey.load(_spki(key))

    def draft_certificate(self, request: Request, now: dt.datetime) -> Draft[x509.Certificate]:
        """A certificate for a client: it may sign, and show itself as a TLS client."""
        key = request.csr.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.name)]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - BACKDATED, self.certificate.not_valid_before_utc))
            .not_valid_after(min(now + VALIDITY, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNING_ONLY, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._authority, critical=False)
        )
        return Draft(
            lambda signature: builder.sign(self._stand_in(signature), self._algorithm),
            lambda certificate: certificate.tbs_certificate_bytes,
            self.key,
        )

    def draft_crl(self, number: int, now: dt.datetime) -> Draft[x509.CertificateRevocationList]:
        """The list of revoked certificates. Whether a client counts is said on chain, so it is empty."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + CRL_VALIDITY)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority, critical=False)
        )
        return Draft(
            lambda signature: builder.sign(self._stand_in(signature), self._algorithm),
            lambda crl: crl.tbs_certlist_bytes,
            self.key,
        )

    @property
    def _authority(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._public)
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)

    @property
    def _algorithm(self) -> hashes.SHA256 | None:
        return None if self.key.scheme == "ed25519" else hashes.SHA256()

    def _stand_in(self, signature: bytes) -> CertificateIssuerPrivateKeyTypes:
        kind: type[_StandInEc | _StandInRsa | _StandInEd25519]
        if isinstance(self._public, ec.EllipticCurvePublicKey):
            kind = _StandInEc
        elif isinstance(self._public, rsa.RSAPublicKey):
            kind = _StandInRsa
        else:
            kind = _StandInEd25519
        return kind(self._public, signature)


class _NoPrivatePart:
    """What a private key would do, and this one cannot."""

    def __init__(self, public: Any, signature: bytes) -> None:
        self._public = public
        self._signature = signature

    def sign(self, *_: Any) -> bytes:
        return self._signature

    def public_key(self) -> Any:
        return self._public

    @property
    def key_size(self) -> int:
        return int(self._public.key_size)

    @property
    def curve(self) -> Any:
        return self._public.curve

    def _absent(self, *_: Any, **__: Any) -> Any:
        raise TypeError("the private key lives on a token")

    decrypt = exchange = private_numbers = private_bytes = private_bytes_raw = _absent

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: Any) -> Any:
        return self


class _StandInEc(_NoPrivatePart, ec.EllipticCurvePrivateKey):
    pass


class _StandInRsa(_NoPrivatePart, rsa.RSAPrivateKey):
    pass


class _StandInEd25519(_NoPrivatePart, ed25519.Ed25519PrivateKey):
    pass


def _spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


_PLACEHOLDER: Final = b"\x00"
_SIGNING_ONLY: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
