"""Whether a custody statement is what it claims to be: in its one form, and signed by the right identity key (K-6)."""

from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cli.errors import UsageError, VerificationFailedError
from ledger.errors import LedgerError
from ledger.genesis import check_genesis
from ledger.registry_view import RegistryView
from protocol import canonical, custody
from protocol.block import Block
from protocol.custody import Statement
from protocol.envelope import Envelope
from protocol.errors import BadSignatureError, ProtocolError
from protocol.keys import PublicKey

MAX_FILE_BYTES: Final = 1 << 20


def read(file: Path) -> Envelope:
    """The envelope in a file; raises `VerificationFailedError` for any other encoding of it."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        return canonical.decode(data, _envelope_decoder, limit=MAX_FILE_BYTES)
    except ProtocolError as error:
        raise VerificationFailedError(
            f"{file} is no signed statement in its one form: {error}", code=error.code, advice="do not rely on it"
        ) from None


def verified(envelope: Envelope, key: PublicKey, whose: str) -> Statement:
    """The statement, when `key` and nobody else signed it; `whose` says in words whose key that is."""
    if not envelope.signatures:
        raise VerificationFailedError("nobody signed this statement", code="unsigned", advice="do not rely on it")
    try:
        return custody.verify(envelope, key)
    except BadSignatureError as error:
        raise VerificationFailedError(
            f"not signed by {whose}: {error}", code=error.code, advice="do not rely on this statement"
        ) from None
    except ProtocolError as error:
        raise VerificationFailedError(
            f"not a custody statement: {error}", code=error.code, advice="do not rely on it"
        ) from None


def identity_of(envelope: Envelope, view: RegistryView) -> tuple[PublicKey, str]:
    """The registered identity key of the device that a statement says it is of; raises `VerificationFailedError`."""
    try:
        predicate = custody.decode(envelope).predicate
    except ProtocolError as error:
        raise VerificationFailedError(
            f"not a custody statement: {error}", code=error.code, advice="do not rely on it"
        ) from None
    device = view.device(predicate.device)
    if predicate.network != view.channel.network or device is None:
        whose = f"device {predicate.device!r} of network {predicate.network!r}" if predicate.device else "no device"
        raise VerificationFailedError(
            f"the statement is of {whose}; the registry of network {view.channel.network!r} has none such",
            code="wrong-device",
            advice="check it with --identity and a copy of the key that you trust",
        )
    return PublicKey.load(device.identity), f"the registered identity key of {device.name}"


def registry_of(path: Path) -> RegistryView:
    """The registry that a genesis block begins with; raises `UsageError`."""
    try:
        return check_genesis(Block.decode(path.read_bytes())).registry
    except (LedgerError, ProtocolError) as error:
        raise UsageError(f"{path} is no genesis block: {error}") from None


def public_key(path: Path) -> PublicKey:
    """The public key in a PEM file; raises `UsageError`."""
    try:
        return PublicKey.of(load_pem_public_key(path.read_bytes()))
    except (ProtocolError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} holds no public key: {error}") from None


_envelope_decoder = msgspec.json.Decoder(Envelope)
