"""Certificate signing requests that were made elsewhere: read, and what comes of them put beside them."""

from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cli.errors import UsageError
from protocol.errors import UnacceptableKeyError
from protocol.keys import PublicKey

MOST_BYTES: Final = 64 << 10
ADVICE: Final = "make one: openssl req -new -key NAME.key -subj /CN=NAME -out NAME.csr"


class ForeignRequest(msgspec.Struct, frozen=True):
    """A CSR in PEM, where it lies, and the key in it."""

    path: Path
    pem: str
    key: PublicKey

    def beside(self, suffix: str) -> Path:
        """A file beside the CSR, of the same name but for its end."""
        return self.path.with_suffix(suffix)

    def write_certificate(self, certificate: str, output: Path | None) -> Path:
        """Write a certificate to `output` or beside the CSR; raises `UsageError` where another one stands."""
        path = output or self.beside(".crt")
        if path.exists() and path.read_text() != certificate:
            raise UsageError(f"there is another file at {path}", advice="move it away, or choose --output FILE")
        path.write_text(certificate)
        return path


def read(path: Path) -> ForeignRequest:
    """The CSR at `path`, PEM or DER; raises `UsageError`. The CA verifies it; here its key is read."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the CSR {path}: {error.strerror}", advice=ADVICE) from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} has more than {MOST_BYTES} bytes: that is no CSR", advice=ADVICE)
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        csr = x509.load_pem_x509_csr(data) if pem else x509.load_der_x509_csr(data)
        key = PublicKey.of(csr.public_key())
    except UnacceptableKeyError as error:
        raise UsageError(
            f"the key in {path} cannot be registered: {error}", advice="ECDSA P-256, RSA from 2048 bits, or Ed25519"
        ) from None
    except Exception as error:  # noqa: BLE001  parsers of foreign bytes raise many kinds; all mean the same here
        raise UsageError(f"{path} is no certificate signing request: {error}", advice=ADVICE) from None
    return ForeignRequest(path, csr.public_bytes(Encoding.PEM).decode(), key)
