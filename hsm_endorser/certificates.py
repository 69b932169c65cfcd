"""What the CA's key may sign: certificates for clients, nodes and services, and lists of revoked ones (RFC 5280).

A TBS structure is parsed by putting a signature of the right form under it: the parser is then the same that
every relying party uses, and what is signed is what was parsed, byte for byte.
"""

import datetime as dt
import hashlib
import re
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from hsm_endorser import der
from hsm_endorser.errors import RefusedError
from protocol import x509_tbs
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import PublicKey

LONGEST_VALIDITY: Final = dt.timedelta(days=731)
LONGEST_CRL_VALIDITY: Final = dt.timedelta(days=31)
CLOCK_DIFFERENCE: Final = dt.timedelta(minutes=10)
PLACEHOLDER: Final = bytes(64)
Kind = Literal["client", "node", "service"]
KINDS: Final[tuple[Kind, ...]] = ("client", "node", "service")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PURPOSES: Final[dict[Kind, frozenset[x509.ObjectIdentifier]]] = {
    "client": frozenset({ExtendedKeyUsageOID.CLIENT_AUTH}),
    "node": frozenset({x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")}),  # id-kp-documentSigning, RFC 9336
    "service": frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
}
KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
)


class Ca(msgspec.Struct, frozen=True):
    """The CA as the registry knows it: its name, its key, its own certificate (DER)."""

    name: str
    key: PublicKey
    certificate: bytes


class Certified(msgspec.Struct, frozen=True):
    """What a certificate says: whose key it is."""

    kind: Kind
    name: str
    key: PublicKey


def check_certificate(tbs: bytes, key: PublicKey, ca_certificate: bytes) -> Certified:
    """Check that a TBSCertificate is a client's, a node's or a service's, by this CA; raises `RefusedError`.

    Whether that name may have that key is for the registry to say.
    """
    _check_algorithm(tbs, key)
    try:
        certificate = x509.load_der_x509_certificate(der.wrap(tbs, key.scheme, PLACEHOLDER))
        same = certificate.tbs_certificate_bytes == tbs
        # Taken apart here as a whole: the parser is lazy, and what it cannot read must not be signed.
        version, begins, ends = certificate.version, certificate.not_valid_before_utc, certificate.not_valid_after_utc
        issuer, subject, serial = certificate.issuer.public_bytes(), certificate.subject, certificate.serial_number
        extensions = list(certificate.extensions)
        spki = _spki(certificate)
    except Exception as error:  # noqa: BLE001  parsers of hostile bytes raise many kinds; all mean the same here
        raise RefusedError("malformed", f"not a TBSCertificate: {error}") from None
    if not same or version is not x509.Version.v3:
        raise RefusedError("malformed", "not an X.509 v3 TBSCertificate in DER")
    ca = _load(ca_certificate)
    if issuer != ca.subject.public_bytes():
        raise RefusedError("wrong-issuer", f"the issuer is not this CA, whose subject is {ca.subject.rfc4514_string()}")
    kind, name = _subject(subject)
    if not begins < ends <= min(begins + LONGEST_VALIDITY, ca.not_valid_after_utc):
        raise RefusedError(
            "validity-too-long",
            f"valid from {begins} to {ends}: at most {LONGEST_VALIDITY.days} days, and not beyond the CA's own",
        )
    if begins > _now() + CLOCK_DIFFERENCE or ends <= _now():
        raise RefusedError("not-valid-now", f"valid from {begins} to {ends}, which is not now")
    certified = _check_key(spki, key)
    if serial != x509_tbs.serial_number(key.id, certified.id):
        raise RefusedError(
            "wrong-serial", "the serial number is not the one that follows from the CA's key and this one"
        )
    _check_extensions(extensions, kind, key_identifier(ca))
    return Certified(kind, name, certified)


def check_ca(certificate: bytes, key: PublicKey) -> None:
    """Check that a certificate (DER) makes `key` a CA that may sign certificates and lists; raises `RefusedError`.

    Who has issued it is not looked at: the administrators decide whom they take as their CA.
    """
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        spki, same = _spki(loaded), loaded.public_bytes(serialization.Encoding.DER) == certificate
        constraints = loaded.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = loaded.extensions.get_extension_for_class(x509.KeyUsage).value
    except Exception as error:  # noqa: BLE001  as above
        raise RefusedError("malformed", f"not a CA's certificate: {error}") from None
    if not same or spki != key.spki:
        raise RefusedError("wrong-certificate", "the certificate is not of the CA's new key")
    if not (constraints.ca and usage.key_cert_sign and usage.crl_sign and usage.digital_signature):
        raise RefusedError("wrong-certificate", "the certificate does not let its key sign certificates and lists")


def check_crl(tbs: bytes, key: PublicKey, ca_certificate: bytes, revoked: Iterable[str] = ()) -> None:
    """Check that a TBSCertList is this CA's, of now, and complete; raises `RefusedError`.

    `revoked` are the ids of the keys that the registry calls revoked: a list that leaves one out would say that its
    certificate is good.
    """
    _check_algorithm(tbs, key)
    try:
        crl = x509.load_der_x509_crl(der.wrap(tbs, key.scheme, PLACEHOLDER))
        same = crl.tbs_certlist_bytes == tbs
        issuer, begins, ends = crl.issuer.public_bytes(), crl.last_update_utc, crl.next_update_utc
        list(crl.extensions)
        listed = set()
        for each in crl:
            list(each.extensions)
            listed.add(each.serial_number)
    except Exception as error:  # noqa: BLE001  as above
        raise RefusedError("malformed", f"not a TBSCertList: {error}") from None
    if not same:
        raise RefusedError("malformed", "not a TBSCertList in DER")
    ca = _load(ca_certificate)
    if issuer != ca.subject.public_bytes():
        raise RefusedError("wrong-issuer", "the list is not of this CA")
    if begins > _now() + CLOCK_DIFFERENCE:
        raise RefusedError("not-valid-now", f"the list is of {begins}, which is still to come")
    if ends is None or not begins < ends <= begins + LONGEST_CRL_VALIDITY:
        raise RefusedError(
            "validity-too-long", f"the list must name its next update, at most {LONGEST_CRL_VALIDITY.days} days ahead"
        )
    missing = [each for each in revoked if x509_tbs.serial_number(key.id, each) not in listed]
    if missing:
        raise RefusedError(
            "incomplete-list", f"{len(missing)} revoked keys are not on the list, {missing[0][:16]}… among them"
        )


def issuer_identifier(tbs: bytes) -> bytes | None:
    """Which key a TBSCertList names as its issuer's, None where it names none; raises `RefusedError`."""
    algorithm = der.inner_algorithm(tbs)
    scheme = next((scheme for scheme, known in der.ALGORITHMS.items() if known == algorithm), None)
    if scheme is None:
        raise RefusedError("wrong-algorithm", "the signature algorithm inside is none that a CA's key has here")
    try:
        crl = x509.load_der_x509_crl(der.wrap(tbs, scheme, PLACEHOLDER))
        return crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None
    except Exception as error:  # noqa: BLE001  as above
        raise RefusedError("malformed", f"not a TBSCertList: {error}") from None


def identifier_of(ca: Ca) -> bytes:
    """How certificates and lists name the CA's key."""
    return key_identifier(_load(ca.certificate))


def key_identifier(certificate: x509.Certificate) -> bytes:
    """How a CA's certificate names its key, and what its certificates and lists point at."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest


class Wanted(msgspec.Struct, frozen=True):
    """What a registration says of a client: its key, its certificate's SHA-256, its lifetime (ms since the epoch)."""

    name: str
    key: bytes
    certificate: str
    not_before: int
    until: int


def check_issued(certificate: bytes, key: PublicKey, ca_certificate: bytes, wanted: Wanted) -> None:
    """Check that this CA issued the certificate, to a client, for what is to be registered; raises `RefusedError`."""
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        subject = loaded.subject
        issuer, spki = loaded.issuer.public_bytes(), _spki(loaded)
        tbs, signature = loaded.tbs_certificate_bytes, loaded.signature
        lifetime = tuple(
            int(each.timestamp()) * 1000 for each in (loaded.not_valid_before_utc, loaded.not_valid_after_utc)
        )
    except Exception as error:  # noqa: BLE001  as above
        raise RefusedError("malformed", f"not a certificate: {error}") from None
    try:
        key.verify(signature, tbs, low_s=True)
    except BadSignatureError:
        raise RefusedError("not-issued-here", "the certificate is not signed by this CA's key") from None
    if issuer != _load(ca_certificate).subject.public_bytes() or der.wrap(tbs, key.scheme, signature) != certificate:
        raise RefusedError("not-issued-here", "the certificate is not of this CA")
    if hashlib.sha256(certificate).hexdigest() != wanted.certificate:
        raise RefusedError("wrong-certificate", "the registration names another certificate's digest")
    kind, name = _subject(subject)
    if kind != "client" or name != wanted.name:
        raise RefusedError(
            "wrong-name", f"the certificate is for {kind} {name!r}, the registration for {wanted.name!r}"
        )
    if spki != wanted.key:
        raise RefusedError("wrong-key", "the registration names another key than the certificate")
    if spki == key.spki:
        raise RefusedError("wrong-key", "the CA's own key cannot be a client's")
    if lifetime != (wanted.not_before, wanted.until):
        raise RefusedError(
            "wrong-lifetime",
            f"the certificate is valid from {lifetime[0]} until {lifetime[1]}, the registration says "
            f"{wanted.not_before} to {wanted.until} (ms)",
        )


def _check_algorithm(tbs: bytes, key: PublicKey) -> None:
    if der.inner_algorithm(tbs) != der.ALGORITHMS[key.scheme]:
        raise RefusedError(
            "wrong-algorithm", f"the signature algorithm inside is not that of the CA's key ({key.scheme})"
        )


def _subject(subject: x509.Name) -> tuple[Kind, str]:
    """Whom a certificate is for: `CN=name` is a client, `OU=node, CN=name` a node, `OU=service, CN=name` a service."""
    parts = [(each.oid, each.value) for each in subject]
    for kind in KINDS:
        unit = [] if kind == "client" else [(NameOID.ORGANIZATIONAL_UNIT_NAME, kind)]
        if len(parts) == len(unit) + 1 and parts[:-1] == unit and parts[-1][0] == NameOID.COMMON_NAME:
            name = str(parts[-1][1])
            if len(subject.rdns) == len(parts) and NAME.fullmatch(name):
                return kind, name
    raise RefusedError(
        "wrong-subject", "the subject is not CN=client, OU=node and CN=node, or OU=service and CN=service"
    )


def _check_key(spki: bytes, ca_key: PublicKey) -> PublicKey:
    try:
        key = PublicKey.load(spki)
    except UnacceptableKeyError as error:
        raise RefusedError(error.code, str(error)) from None
    if spki == ca_key.spki:
        raise RefusedError("wrong-key", "the CA certifies no other name for its own key")
    return key


def _check_extensions(extensions: list[x509.Extension[x509.ExtensionType]], kind: Kind, issuer: bytes) -> None:
    values = {extension.oid: extension.value for extension in extensions}
    for extension in extensions:
        if extension.oid not in KNOWN_EXTENSIONS:
            raise RefusedError("unknown-extension", f"extension {extension.oid.dotted_string} is not known")
    constraints = values.get(ExtensionOID.BASIC_CONSTRAINTS)
    if not isinstance(constraints, x509.BasicConstraints) or constraints.ca:
        raise RefusedError("not-an-end-entity", "the certificate must say CA:FALSE: this CA has no CAs under it")
    usage = values.get(ExtensionOID.KEY_USAGE)
    if isinstance(usage, x509.KeyUsage) and (usage.key_cert_sign or usage.crl_sign):
        raise RefusedError("not-an-end-entity", "this key may not sign certificates or revocation lists")
    authority = values.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    if isinstance(authority, x509.AuthorityKeyIdentifier) and authority.key_identifier != issuer:
        raise RefusedError("wrong-issuer", "the authority key identifier is not that of the CA's key in force")
    purposes = values.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if not isinstance(purposes, x509.ExtendedKeyUsage) or not set(purposes) <= PURPOSES[kind]:
        allowed = ", ".join(sorted(each.dotted_string for each in PURPOSES[kind]))
        raise RefusedError("wrong-purpose", f"a {kind}'s certificate is for {allowed} and nothing else")
    names = values.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if (names is not None) != (kind == "service"):
        raise RefusedError("wrong-subject", "a service has alternative names, a client and a node have none")
    named = names if isinstance(names, x509.SubjectAlternativeName) else ()
    if not all(isinstance(each, x509.DNSName | x509.IPAddress) for each in named):
        raise RefusedError("wrong-subject", "a service's alternative names are DNS names and addresses")


def _load(ca_certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(ca_certificate)
    except ValueError as error:
        raise RefusedError(
            "bad-ca-certificate", f"the registry's certificate of the CA cannot be read: {error}"
        ) from None


def _spki(certificate: x509.Certificate) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return certificate.public_key().public_bytes(encoding, form)


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)
