"""Clients' software keys: their files, and what they sign."""

import errno
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cli import keys
from cli.errors import UsageError
from cli.keys import SoftwareKey
from protocol.errors import BadSignatureError
from protocol.transaction import Transaction


def transaction(*signers: SoftwareKey) -> Transaction:
    """A wish that `signers` signed, decoded."""
    payload = keys.payload("net", "alice", "evidence.record", {"subject": "s"}, valid_until=1000, valid_from=7)
    identity, raw = keys.sign(payload, signers)
    decoded = Transaction.decode(raw)
    assert decoded.id == identity
    return decoded


def test_a_key_comes_back_from_its_file(tmp_path: Path) -> None:
    """A created key is in a file of mode 0600, from which the same key is loaded."""
    created = SoftwareKey.create(tmp_path / "alice.key")
    assert stat.S_IMODE((tmp_path / "alice.key").stat().st_mode) == 0o600
    assert SoftwareKey.load(tmp_path / "alice.key").public == created.public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Creating a key where one is, is refused and leaves the first."""
    first = SoftwareKey.create(tmp_path / "alice.key")
    with pytest.raises(UsageError, match="there is a key at"):
        SoftwareKey.create(tmp_path / "alice.key")
    assert SoftwareKey.load(tmp_path / "alice.key").public == first.public


@pytest.mark.requirement("K-12")
def test_a_key_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails, nothing bears the key's name, so that the next attempt is not refused or misled."""
    path = tmp_path / "admin.key.new"
    with monkeypatch.context() as patched:
        patched.setattr(keys.os, "fsync", _fails)
        with pytest.raises(OSError, match="No space left"):
            SoftwareKey.create(path)
    assert list(tmp_path.iterdir()) == []
    assert SoftwareKey.create(path).public == SoftwareKey.load(path).public


def test_a_stick_without_links_takes_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system knows no links, a key is created as well, and none is overwritten."""

    def link(_self: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", link)
    created = SoftwareKey.create(tmp_path / "anna.key")
    with pytest.raises(UsageError, match="there is a key at"):
        SoftwareKey.create(tmp_path / "anna.key")
    assert SoftwareKey.load(tmp_path / "anna.key").public == created.public
    assert [path.name for path in tmp_path.iterdir()] == ["anna.key"]


def _fails(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.requirement("S-6")
def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key file with permissions for others is not used; the advice is the line to run."""
    path = tmp_path / "alice.key"
    SoftwareKey.create(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by other users") as caught:
        SoftwareKey.load(path)
    assert caught.value.advice == f"chmod 600 {path}"


def pem(private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    """A private key as PKCS#8 PEM."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nothing", "no unencrypted PEM private key"),
        (pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "no unencrypted PEM private key"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "no ECDSA P-256 key"),
        (pem(rsa.generate_private_key(65537, 2048)), "no ECDSA P-256 key"),
    ],
    ids=["text", "encrypted", "P-384", "RSA"],
)
def test_other_keys_are_refused(data: bytes, reason: str) -> None:
    """Only an unencrypted ECDSA P-256 key is taken."""
    with pytest.raises(UsageError, match=reason):
        SoftwareKey.from_pem(data)


@pytest.mark.requirement("E-3")
def test_a_client_signs_what_verifies_with_its_key_alone() -> None:
    """The reference signature verifies with the client's key and with no other."""
    key, other = SoftwareKey.generate(), SoftwareKey.generate()
    signed = transaction(key)
    signed.verify(key.public)
    with pytest.raises(BadSignatureError):
        signed.verify(other.public)
    assert (signed.kind, signed.payload.client, signed.payload.valid_from) == ("evidence.record", "alice", 7)


def test_several_administrators_sign_one_transaction() -> None:
    """Each of several signers has its signature in the envelope."""
    first, second = SoftwareKey.generate(), SoftwareKey.generate()
    signed = transaction(first, second)
    signed.verify_by(first.public)
    signed.verify_by(second.public)
    assert signed.signers == (first.public.id, second.public.id)


def test_equal_wishes_are_two_transactions() -> None:
    """A fresh nonce tells two equal wishes apart."""
    key = SoftwareKey.generate()
    assert transaction(key).id != transaction(key).id


def test_a_request_proves_possession() -> None:
    """A certificate signing request names the client and is signed by its key."""
    key = SoftwareKey.generate()
    request = x509.load_pem_x509_csr(key.request("alice").encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=alice"
    spki = request.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert spki == key.public.spki
