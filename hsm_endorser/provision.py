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
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import NameOID

from hsm_endorser.config import Config
from hsm_endorser.errors import TokenQuarantinedError, TokenStoppedError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.signing import GuardedToken
from hsm_endorser.token import IDENTITY_LABEL
from protocol import block as blocks
from protocol import registry, x509_tbs
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
    left_out: dict[str, tuple[str, ...]] = {}
    """By label, what the token did not take of the template of a key that was generated."""


async def provision(config: Config, network: str, wanted: Iterable[Wanted]) -> Provisioned:
    """Create the device's guard, and generate the wanted keys on its token by the strict template (K-1, E-20).

    An `identity` key (ECDSA P-256) is made as well, unless `wanted` names it with another scheme. A token that holds
    a key under one of the labels is refused: nobody knows who made it, and who has a copy. Raises `GuardError` when
    there is a guard, or `TokenError`.
    """
    schemes: dict[str, Scheme] = {IDENTITY_LABEL: "ecdsa-p256-sha256", **dict(wanted)}
    guard = Guard.create(config.guard, network=network, device=config.name)
    async with _signing(guard, config) as signer:
        token = signer.token
        taken = sorted({key.label for key in token.keys.values()} & schemes.keys())
        if taken:
            raise TokenStoppedError(
                f"the token holds keys labelled {', '.join(taken)} already, which this device has not made; take an "
                "empty token, or initialise this one anew"
            )
        for label, scheme in schemes.items():
            await token.generate(label, scheme)
        if token.info is None:
            raise TokenQuarantinedError("the token did not say which one it is")
        left_out = {token.keys[each].label: tuple(map(str, parts)) for each, parts in token.left_out.items()}
        return Provisioned(token.info, {key.label: key.public_key for key in token.keys.values()}, left_out)


async def issue_ca_certificate(config: Config, network: str, label: str, name: str) -> bytes:
    """The certificate of the CA `name` (DER), signed by its own key, which the token holds under `label`."""
    guard = Guard.open(config.guard, network=network, device=config.name)
    async with _signing(guard, config) as signer:
        key = _labelled(signer, label)
        begins = dt.datetime.now(tz=dt.UTC).replace(microsecond=0)
        subject = x509.Name([_attribute(NameOID.COMMON_NAME, f"{network} {name}")])
        tbs = ca_tbs(key, subject, begins=begins - BACKDATED, ends=begins + CA_VALIDITY)
        signature = await signer.sign("certificate", key.id, tbs)
        return x509_tbs.wrap(tbs, key.scheme, signature.sig)


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


def ca_tbs(key: PublicKey, subject: x509.Name, *, begins: dt.datetime, ends: dt.datetime) -> bytes:
    """What is to be signed for a CA's own certificate (RFC 5280, section 4.1)."""
    public: Any = load_der_public_key(key.spki)
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CERTIFIES, critical=True)
        .add_extension(own, critical=False)
    )
    return x509_tbs.tbs_certificate(builder, key)


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
