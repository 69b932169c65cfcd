"""Sets a device up: the keys on its token, its guard, and at the first device of a network what starts the chain.

    provision(config, network, wanted)       keys and guard of one device
    issue_ca_certificate(config, …)          the CA's own certificate, for the registry
    sign_genesis(config, draft)              block 0's header, signed by the center's key

The label of a key (`identity`, `node/A`, `center/center-1`, `ca/ca`) is for people: a running device finds its
keys by comparing their ids with the registry. The guard comes first here too: every signature is in its journal.
"""

import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import NameOID

from hsm_endorser import der
from hsm_endorser.config import Config
from hsm_endorser.errors import TokenQuarantinedError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token import IDENTITY_LABEL
from protocol import block as blocks
from protocol import registry
from protocol.block import Block
from protocol.envelope import Envelope, pae
from protocol.keys import PublicKey, Scheme

CA_VALIDITY: Final = dt.timedelta(days=3652)
BACKDATED: Final = dt.timedelta(minutes=5)

Wanted = tuple[str, Scheme]
"""A key to generate: its label and its scheme."""


class Provisioned(msgspec.Struct, frozen=True):
    """A device that was set up: which token it is pinned to, and the public keys by label."""

    token: registry.Token
    keys: dict[str, PublicKey]


async def provision(config: Config, network: str, wanted: Iterable[Wanted]) -> Provisioned:
    """Create the device's guard, and generate the wanted keys on its token by the strict template (K-1, E-20).

    An `identity` key (ECDSA P-256) is made as well, unless `wanted` names it with another scheme. Keys that are
    there already under their label are kept. Raises `GuardError` when there is a guard, or `TokenError`.
    """
    schemes: dict[str, Scheme] = {IDENTITY_LABEL: "ecdsa-p256-sha256", **dict(wanted)}
    guard = Guard.create(config.guard, network=network, device=config.name)
    async with _signing(guard, config) as signer:
        token = signer.token
        for label, scheme in schemes.items():
            if not any(key.label == label for key in token.keys.values()):
                await token.generate(label, scheme)
        if token.info is None:
            raise TokenQuarantinedError("the token did not say which one it is")
        return Provisioned(token.info, {key.label: key.public_key for key in token.keys.values()})


async def issue_ca_certificate(config: Config, network: str, label: str, name: str) -> bytes:
    """The certificate of the CA `name` (DER), signed by its own key, which the token holds under `label`."""
    guard = Guard.open(config.guard, network=network, device=config.name)
    async with _signing(guard, config) as signer:
        key = _labelled(signer, label)
        tbs = _ca_tbs(key, x509.Name([_attribute(NameOID.COMMON_NAME, f"{network} {name}")]))
        signature = await signer.sign("certificate", key.id, tbs)
        return der.wrap(tbs, key.scheme, signature.sig)


async def sign_genesis(config: Config, draft: Block, label: str) -> Block:
    """Block 0 under the signature of the center's key, which the token holds under `label`.

    The guard keeps which header was signed: there is one genesis block for a device.
    """
    guard = Guard.open(config.guard, network=draft.header.network, device=config.name)
    async with _signing(guard, config) as signer:
        key = _labelled(signer, label)
        payload = draft.envelope.payload
        message = pae(blocks.PAYLOAD_TYPE, payload)
        header = (draft.header.height, draft.authentication)
        signature = await signer.sign("header", key.id, message, header=header)
        return draft.signed(Envelope(payload, blocks.PAYLOAD_TYPE, (signature,)))


@contextlib.asynccontextmanager
async def _signing(guard: Guard, config: Config) -> AsyncIterator[GuardedToken]:
    signer = await GuardedToken.start(guard, config.token_config)
    try:
        yield signer
    finally:
        await signer.close()


def _labelled(signer: GuardedToken, label: str) -> PublicKey:
    found = [key.public_key for key in signer.token.keys.values() if key.label == label]
    if len(found) != 1:
        raise UnknownKeyError(f"{len(found)} keys on the token are labelled {label!r} where one is expected")
    return found[0]


def _attribute(oid: x509.ObjectIdentifier, value: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(oid, value)


def _ca_tbs(key: PublicKey, subject: x509.Name) -> bytes:
    """What is to be signed for a CA's own certificate (RFC 5280, section 4.1)."""
    public: Any = load_der_public_key(key.spki)
    now = dt.datetime.now(tz=dt.UTC).replace(microsecond=0)
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CERTIFIES, critical=True)
        .add_extension(own, critical=False)
    )
    algorithm = None if key.scheme == "ed25519" else hashes.SHA256()
    return builder.sign(_STAND_INS[key.scheme](public), algorithm).tbs_certificate_bytes


class _StandIn:
    """Where `cryptography` wants a private key to build a certificate: this one has none, and signs nothing.

    It is there for the bytes to be signed; the signature comes from the token.
    """

    def __init__(self, public: Any) -> None:
        self._public = public

    def public_key(self) -> Any:
        return self._public

    def sign(self, *_arguments: Any) -> bytes:
        return b"\0"

    @property
    def curve(self) -> Any:
        return self._public.curve

    @property
    def key_size(self) -> int:
        return int(self._public.key_size)

    def _absent(self, *_arguments: Any, **_options: Any) -> Any:
        raise TypeError("the private key lives on the token")

    decrypt = exchange = private_numbers = private_bytes = private_bytes_raw = _absent

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, _memo: Any) -> Any:
        return self


class _StandInEc(_StandIn, ec.EllipticCurvePrivateKey):
    pass


class _StandInRsa(_StandIn, rsa.RSAPrivateKey):
    pass


class _StandInEd25519(_StandIn, ed25519.Ed25519PrivateKey):
    pass


_STAND_INS: Final[dict[Scheme, type[_StandInEc | _StandInRsa | _StandInEd25519]]] = {
    "ecdsa-p256-sha256": _StandInEc,
    "rsa-pkcs1-sha256": _StandInRsa,
    "ed25519": _StandInEd25519,
}
_CERTIFIES: Final = x509.KeyUsage(
    digital_signature=True,  # it signs registrations, too
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
