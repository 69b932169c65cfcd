"""X.509 for the CA: requests are read here, certificates and lists are drawn up (requirement E-1).

What is drawn up is a TBS structure; the signature comes from a token (see `protocol.x509_tbs`). Three profiles, which
nobody can take for one another:

    client    subject CN=name            EKU clientAuth               signs transactions, shows itself as TLS client
    node      subject OU=node, CN=name   EKU documentSigning          a node's key on its token; no TLS
    service   subject OU=service, CN=…   EKU serverAuth, clientAuth   a TLS key, with its DNS names and addresses
"""

import contextlib
import datetime as dt
import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from management.errors import EnrolmentError
from management.retired import Retired
from protocol import x509_tbs
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import PublicKey
from protocol.registry import Reason

Kind = Literal["client", "node", "service"]

VALIDITY: Final = dt.timedelta(days=365)
NODE_VALIDITY: Final = dt.timedelta(days=730)
BACKDATED: Final = dt.timedelta(minutes=5)
"""Clocks differ a little: a certificate counts from shortly before it is made."""
CRL_VALIDITY: Final = dt.timedelta(days=7)
MOST_CSR_BYTES: Final = 64 << 10
MOST_NAMES: Final = 64
"""Alternative names in one certificate."""
LONGEST_DNS_NAME: Final = 253
DOCUMENT_SIGNING: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""id-kp-documentSigning, RFC 9336."""
LATEST: Final = 253_402_300_799_000
"""The last moment that a certificate can name, in milliseconds since the epoch (RFC 5280, section 4.1.2.5.2)."""
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Subject(msgspec.Struct, frozen=True):
    """Who is to be certified: a name of one kind, a key, and for a service its DNS names and addresses."""

    kind: Kind
    name: str
    key: PublicKey
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def distinguished_name(self) -> x509.Name:
        """The subject as a certificate names it."""
        common = x509.NameAttribute(NameOID.COMMON_NAME, self.name)
        if self.kind == "client":
            return x509.Name([common])
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, self.kind), common])

    @property
    def extensions(self) -> list[x509.ExtensionType]:
        """What the profile adds: extended key usage, alternative names."""
        if self.kind == "client":
            return [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]
        if self.kind == "node":
            return [x509.ExtendedKeyUsage([DOCUMENT_SIGNING])]
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in self.dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in self.addresses]
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return [x509.ExtendedKeyUsage(usage), x509.SubjectAlternativeName(names)]


class Request(msgspec.Struct, frozen=True):
    """A CSR that was found good: it proves that its author holds the private key."""

    subject: Subject
    der: bytes

    @property
    def name(self) -> str:
        """Whom it is for."""
        return self.subject.name

    @property
    def key(self) -> PublicKey:
        """Whose key it is."""
        return self.subject.key


def read_request(name: str, data: bytes) -> Request:
    """A client's CSR in PEM or DER, for one called `name`; raises `EnrolmentError`.

    Nothing but the key and the common name comes from a CSR: what else it asks for is left out of the certificate.
    """
    csr, key = _read(data)
    _require_common_name(csr, name)
    return Request(Subject("client", name, key), csr.public_bytes(Encoding.DER))


def read_service_request(name: str, data: bytes, dns: Sequence[str] = (), addresses: Sequence[str] = ()) -> Request:
    """A service's CSR in PEM or DER; raises `EnrolmentError`.

    Without names and addresses of the operator's, those in the CSR are certified: DNS names and addresses alone.
    """
    csr, key = _read(data)
    if not dns and not addresses:
        dns, addresses = _alternative_names(csr)
    dns, addresses = tuple(dict.fromkeys(dns)), tuple(dict.fromkeys(map(_address, addresses)))
    for each in dns:
        _require_dns_name(each)
    if not 1 <= len(dns) + len(addresses) <= MOST_NAMES:
        raise EnrolmentError("bad-csr", f"a service's certificate needs 1 to {MOST_NAMES} DNS names or addresses")
    return Request(Subject("service", name, key, dns, addresses), csr.public_bytes(Encoding.DER))


class Issuer:
    """The CA, by its own certificate (DER)."""

    def __init__(self, certificate: bytes) -> None:
        try:
            self.certificate = x509.load_der_x509_certificate(certificate)
            self.key = PublicKey.of(self.certificate.public_key())
        except (ValueError, UnacceptableKeyError) as error:
            raise EnrolmentError("bad-ca-certificate", f"the CA's certificate cannot be used: {error}") from None

    def draft_certificate(self, subject: Subject, now: dt.datetime, until: dt.datetime | None = None) -> bytes:
        """What is to be signed for a certificate (DER); it ends at `until`, or with the profile's validity."""
        validity = NODE_VALIDITY if subject.kind == "node" else VALIDITY
        ends = min(now + validity, self.certificate.not_valid_after_utc, until or now + validity)
        begins = max(now - BACKDATED, self.certificate.not_valid_before_utc)
        if ends <= now:
            raise EnrolmentError("not-valid-now", f"the certificate would have ended on {ends:%Y-%m-%d}")
        key = load_der_public_key(subject.key.spki)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject.distinguished_name)
            .issuer_name(self.certificate.subject)
            .public_key(key)  # type: ignore[arg-type]  # a PublicKey is of one of the kinds that can be certified
            .serial_number(x509_tbs.serial_number(self.key.id, subject.key.id))
            .not_valid_before(begins)
            .not_valid_after(ends.replace(microsecond=0))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNING_ONLY, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)  # type: ignore[arg-type]
            .add_extension(self._authority, critical=False)
        )
        for extension in subject.extensions:
            builder = builder.add_extension(extension, critical=False)
        return x509_tbs.tbs_certificate(builder, self.key)

    def draft_crl(self, retired: Iterable[Retired], number: int, now: dt.datetime) -> bytes:
        """What is to be signed for the list of revoked certificates (DER; RFC 5280, section 5)."""
        # All at once: a builder that is handed one after the other copies the list each time.
        revoked = [_revoked(each, self.key) for each in sorted(retired, key=lambda one: (one.time, one.key))]
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=revoked)
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + CRL_VALIDITY)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority, critical=False)
        )
        return x509_tbs.tbs_crl(builder, self.key)

    @property
    def _authority(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier(key_identifier(self.certificate), None, None)


def read_service_certificate(name: str, data: bytes, issuers: Iterable[Issuer]) -> tuple[Subject, Issuer, bytes]:
    """A service's certificate (PEM or DER) that one of the issuers made: whose it is, by whom, and its DER.

    Raises `EnrolmentError`.
    """
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        key, der = PublicKey.of(certificate.public_key()), certificate.public_bytes(Encoding.DER)
        subject, tbs, signature = certificate.subject, certificate.tbs_certificate_bytes, certificate.signature
    except Exception as error:  # noqa: BLE001  parsers of hostile bytes raise many kinds; all mean the same here
        raise EnrolmentError("not-issued", f"not a certificate: {error}") from None
    found = Subject("service", name, key)
    for issuer in issuers:
        with contextlib.suppress(BadSignatureError):
            issuer.key.verify(signature, tbs, low_s=True)
            if subject == found.distinguished_name:
                return found, issuer, der
    raise EnrolmentError("not-issued", f"this CA issued no such certificate to a service {name}")


def key_identifier(certificate: x509.Certificate) -> bytes:
    """How a CA's certificate names its key, and what its certificates and lists point at."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        key = load_der_public_key(PublicKey.of(certificate.public_key()).spki)
        return x509.SubjectKeyIdentifier.from_public_key(key).digest  # type: ignore[arg-type]


def milliseconds(moment: dt.datetime) -> int:
    """A certificate's time, in milliseconds since the epoch."""
    return round((moment - EPOCH).total_seconds()) * 1000


def moment(time: int) -> dt.datetime:
    """A time in milliseconds since the epoch, in the whole seconds and up to the year 9999 that certificates know."""
    return EPOCH + dt.timedelta(seconds=min(time, LATEST) // 1000)


def _revoked(retired: Retired, issuer: PublicKey) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(x509_tbs.serial_number(issuer.id, retired.key))
        .revocation_date(moment(retired.time))
    )
    if retired.reason != "unspecified":  # RFC 5280, section 5.3.1: this one is told by saying nothing
        builder = builder.add_extension(x509.CRLReason(REASONS[retired.reason]), critical=False)
    if retired.suspected:
        builder = builder.add_extension(x509.InvalidityDate(moment(retired.suspected).replace(tzinfo=None)), False)
    return builder.build()


def _read(data: bytes) -> tuple[x509.CertificateSigningRequest, PublicKey]:
    if len(data) > MOST_CSR_BYTES:
        raise EnrolmentError("bad-csr", f"the CSR has {len(data)} bytes where at most {MOST_CSR_BYTES} are allowed")
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        csr = x509.load_pem_x509_csr(data) if pem else x509.load_der_x509_csr(data)
        public = csr.public_key()
        extensions = list(csr.extensions)
        list(csr.subject)
    except Exception as error:  # noqa: BLE001  parsers of hostile bytes raise many kinds; all mean the same here
        raise EnrolmentError("bad-csr", f"not a PKCS#10 certificate signing request: {error}") from None
    try:
        key = PublicKey.of(public)  # before its signature is verified: a key of any size would take any time
    except UnacceptableKeyError as error:
        raise EnrolmentError("unacceptable-key", str(error)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise EnrolmentError("bad-csr", f"not a key that can be certified: {error}") from None
    try:
        proven = csr.is_signature_valid
    except Exception as error:  # noqa: BLE001  as above; an algorithm that is not supported proves nothing
        raise EnrolmentError("bad-csr", f"the CSR's signature cannot be verified: {error}") from None
    if not proven:
        raise EnrolmentError("bad-csr", "the CSR is not signed by the key that it names")
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise EnrolmentError("bad-csr", "the CSR asks for a CA's certificate: this CA has no CAs under it")
        if isinstance(extension.value, x509.KeyUsage) and (extension.value.key_cert_sign or extension.value.crl_sign):
            raise EnrolmentError("bad-csr", "the CSR asks for a key that signs certificates: leave that out")
    return csr, key


def _require_common_name(csr: x509.CertificateSigningRequest, name: str) -> None:
    names = [attribute.value for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [name]:
        found = ", ".join(repr(each) for each in names) or "none"
        raise EnrolmentError("wrong-name", f"the CSR's common name is {found[:200]} where {name!r} is expected")


def _alternative_names(csr: x509.CertificateSigningRequest) -> tuple[list[str], list[str]]:
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    for each in names:
        if not isinstance(each, x509.DNSName | x509.IPAddress):
            raise EnrolmentError("bad-csr", f"alternative names are DNS names and addresses, not {type(each).__name__}")
    return names.get_values_for_type(x509.DNSName), [str(each) for each in names.get_values_for_type(x509.IPAddress)]


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise EnrolmentError("bad-csr", f"{text[:80]!r} is no IP address") from None


def _require_dns_name(name: str) -> None:
    if len(name) > LONGEST_DNS_NAME or not _DNS_NAME.fullmatch(name):
        raise EnrolmentError("bad-csr", f"{name[:80]!r} is no DNS name (RFC 1123); write others in their A form")


_DNS_NAME: Final = re.compile(
    r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
"""RFC 1123, section 2.1; the last label begins with a letter, so that no address is taken for a name."""
REASONS: Final[dict[Reason, x509.ReasonFlags]] = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "ca-compromise": x509.ReasonFlags.ca_compromise,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}
"""RFC 5280, section 5.3.1."""
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
