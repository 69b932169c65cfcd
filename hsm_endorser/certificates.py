"""What the CA's key may sign: certificates for clients, and lists of revoked ones (RFC 5280).

A TBS structure is parsed by putting a signature of the right form under it: the parser is then the same that
every relying party uses, and what is signed is what was parsed, byte for byte.
"""

import datetime as dt
import hashlib
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID, NameOID

from hsm_endorser import der
from hsm_endorser.errors import RefusedError
from ledger.contracts.registry import AddClient
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import PublicKey

LONGEST_VALIDITY: Final = dt.timedelta(days=731)
LONGEST_CRL_VALIDITY: Final = dt.timedelta(days=31)
CLOCK_DIFFERENCE: Final = dt.timedelta(minutes=10)
PLACEHOLDER: Final = bytes(64)
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


def check_certificate(tbs: bytes, key: PublicKey, ca_certificate: bytes) -> None:
    """Check that a TBSCertificate is one of a client's, by this CA; raises `RefusedError`."""
    _check_algorithm(tbs, key)
    try:
        certificate = x509.load_der_x509_certificate(der.wrap(tbs, key.scheme, PLACEHOLDER))
        same = certificate.tbs_certificate_bytes == tbs
        # Taken apart here as a whole: the parser is lazy, and what it cannot read must not be signed.
        version, begins, ends = certificate.version, certificate.not_valid_before_utc, certificate.not_valid_after_utc
        issuer, subject = certificate.issuer.public_bytes(), certificate.subject
        extensions = list(certificate.extensions)
        spki = _spki(certificate)
    except Exception as error:  # noqa: BLE001  parsers of hostile bytes raise many kinds; all mean the same here
        raise RefusedError("malformed", f"not a TBSCertificate: {error}") from None
    if not same or version is not x509.Version.v3:
        raise RefusedError("malformed", "not an X.509 v3 TBSCertificate in DER")
    ca = _load(ca_certificate)
    if issuer != ca.subject.public_bytes():
        raise RefusedError("wrong-issuer", f"the issuer is not this CA, whose subject is {ca.subject.rfc4514_string()}")
    if len(subject.get_attributes_for_oid(NameOID.COMMON_NAME)) != 1:
        raise RefusedError("wrong-subject", "the subject must have one common name: the client's")
    if not begins < ends <= min(begins + LONGEST_VALIDITY, ca.not_valid_after_utc):
        raise RefusedError(
            "validity-too-long",
            f"valid from {begins} to {ends}: at most {LONGEST_VALIDITY.days} days, and not beyond the CA's own",
        )
    if begins > _now() + CLOCK_DIFFERENCE or ends <= _now():
        raise RefusedError("not-valid-now", f"valid from {begins} to {ends}, which is not now")
    _check_key(spki, key)
    _check_extensions(extensions)


def check_crl(tbs: bytes, key: PublicKey, ca_certificate: bytes) -> None:
    """Check that a TBSCertList is this CA's and of now; raises `RefusedError`."""
    _check_algorithm(tbs, key)
    try:
        crl = x509.load_der_x509_crl(der.wrap(tbs, key.scheme, PLACEHOLDER))
        same = crl.tbs_certlist_bytes == tbs
        issuer, begins, ends = crl.issuer.public_bytes(), crl.last_update_utc, crl.next_update_utc
        list(crl.extensions)
        for revoked in crl:
            list(revoked.extensions)
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


def check_issued(certificate: bytes, key: PublicKey, ca_certificate: bytes, wanted: AddClient) -> None:
    """Check that this CA issued the certificate, for the name and key that are to be registered."""
    try:
        loaded = x509.load_der_x509_certificate(certificate)
        names = [attribute.value for attribute in loaded.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        issuer, spki = loaded.issuer.public_bytes(), _spki(loaded)
        tbs, signature = loaded.tbs_certificate_bytes, loaded.signature
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
    if names != [wanted.name]:
        raise RefusedError("wrong-name", f"the certificate is for {names}, the registration for {wanted.name!r}")
    if spki != wanted.key:
        raise RefusedError("wrong-key", "the registration names another key than the certificate")
    if spki == key.spki:
        raise RefusedError("wrong-key", "the CA's own key cannot be a client's")


def _check_algorithm(tbs: bytes, key: PublicKey) -> None:
    if der.inner_algorithm(tbs) != der.ALGORITHMS[key.scheme]:
        raise RefusedError(
            "wrong-algorithm", f"the signature algorithm inside is not that of the CA's key ({key.scheme})"
        )


def _check_key(spki: bytes, ca_key: PublicKey) -> None:
    try:
        PublicKey.load(spki)
    except UnacceptableKeyError as error:
        raise RefusedError(error.code, str(error)) from None
    if spki == ca_key.spki:
        raise RefusedError("wrong-key", "the CA's own key cannot be a client's")


def _check_extensions(extensions: list[x509.Extension[x509.ExtensionType]]) -> None:
    values = {extension.oid: extension.value for extension in extensions}
    for extension in extensions:
        if extension.critical and extension.oid not in KNOWN_EXTENSIONS:
            raise RefusedError("unknown-extension", f"critical extension {extension.oid.dotted_string} is not known")
    constraints = values.get(ExtensionOID.BASIC_CONSTRAINTS)
    if not isinstance(constraints, x509.BasicConstraints) or constraints.ca:
        raise RefusedError("not-an-end-entity", "the certificate must say CA:FALSE: this CA has no CAs under it")
    usage = values.get(ExtensionOID.KEY_USAGE)
    if isinstance(usage, x509.KeyUsage) and (usage.key_cert_sign or usage.crl_sign):
        raise RefusedError("not-an-end-entity", "a client's key may not sign certificates or revocation lists")


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
