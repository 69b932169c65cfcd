"""Software keys of clients and administrators, and what they sign. The one place of private keys outside tokens.

A node's, a center's, a CA's or a device's key never comes here: those live on PKCS#11 tokens.
"""

import os
import secrets
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.errors import UsageError
from protocol import canonical
from protocol.envelope import Envelope, Signature, pae, pae_digest
from protocol.keys import PublicKey
from protocol.transaction import PAYLOAD_TYPE, TransactionPayload

_ECDSA: Final = ec.ECDSA(hashes.SHA256())


class SoftwareKey:
    """An ECDSA P-256 key of a client or an administrator, in a file that its user alone can read."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self._private = private
        self.public = PublicKey.of(private.public_key())

    @staticmethod
    def generate() -> "SoftwareKey":
        """A new key."""
        return SoftwareKey(ec.generate_private_key(ec.SECP256R1()))

    @staticmethod
    def create(path: Path) -> "SoftwareKey":
        """A new key, written to `path` (PKCS#8 PEM, mode 0600); raises `UsageError` when there is one already.

        The file is there whole and durably, or not at all: the chain may know the key in a moment.
        """
        key = SoftwareKey.generate()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(key.pem())
                file.flush()
                os.fsync(file.fileno())
            _put_in_place(Path(name), path)
        except FileExistsError:
            raise UsageError(f"there is a key at {path} already", advice="choose another name") from None
        finally:
            Path(name).unlink(missing_ok=True)
        _sync_folder(path)
        return key

    @staticmethod
    def load(path: Path) -> "SoftwareKey":
        """The key at `path`; raises `UsageError` when it is missing, readable by others, or of another kind."""
        try:
            mode = path.stat().st_mode
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the key {path}: {error.strerror}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"the key {path} can be read by other users", advice=f"chmod 600 {path}")
        return SoftwareKey.from_pem(data, str(path))

    @staticmethod
    def from_pem(data: bytes, name: str = "the key") -> "SoftwareKey":
        """The key in PKCS#8 PEM bytes; raises `UsageError`."""
        try:
            private = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UsageError(f"{name} is no unencrypted PEM private key") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UsageError(f"{name} is no ECDSA P-256 key")
        return SoftwareKey(private)

    def pem(self) -> bytes:
        """The private key as PKCS#8 PEM; for its file and for signing processes of the same user."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, payload: bytes, payload_type: str = PAYLOAD_TYPE) -> Signature:
        """The reference signature over a payload, a transaction's unless its type says otherwise."""
        return Signature(self.public.id, self._private.sign(pae(payload_type, payload), _ECDSA))

    def request(self, name: str) -> str:
        """A certificate signing request for `name` (PEM), which proves possession of this key."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self._private, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM).decode()


def _put_in_place(made: Path, path: Path) -> None:
    """Give a file its name, which nothing has yet; raises `FileExistsError`."""
    try:
        path.hardlink_to(made)
    except FileExistsError:
        raise
    except OSError:  # a memory stick without links
        if path.exists():
            raise FileExistsError(path) from None
        made.rename(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def payload(
    network: str,
    client: str,
    kind: str,
    arguments: Mapping[str, Any],
    *,
    valid_until: int,
    valid_from: int = 0,
) -> bytes:
    """The canonical bytes of a transaction payload with a fresh nonce; `kind` is `contract.operation`."""
    contract, _, operation = kind.partition(".")
    return canonical.encode(
        TransactionPayload(
            version=1,
            network=network,
            client=client,
            contract=contract,
            operation=operation,
            arguments=dict(arguments),
            nonce=secrets.token_hex(16),
            valid_from=valid_from,
            valid_until=valid_until,
        )
    )


def sign(payload_bytes: bytes, signers: Sequence[SoftwareKey]) -> tuple[str, bytes]:
    """The id and the canonical bytes of the transaction that `signers` sign.

    A client signs alone; a registry change is signed by several administrators.
    """
    signatures = tuple(key.sign(payload_bytes) for key in signers)
    raw = canonical.encode(Envelope(payload_bytes, PAYLOAD_TYPE, signatures))
    return pae_digest(PAYLOAD_TYPE, payload_bytes), raw
