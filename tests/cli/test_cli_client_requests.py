"""`client register|renew --csr` and `ca issue service --csr`: what is read, refused and written on this side."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from cli import client_renewal, client_request
from cli.client_renewal import Elsewhere, Here, Renewal, UnsignedError
from cli.errors import CommandError, UsageError
from cli.keys import SoftwareKey
from cli.plan import Layout
from protocol import canonical, rotation
from protocol.envelope import Envelope
from protocol.rotation import Announcement
from tests import software_keys
from tests.chain_builder import Network

Run = Callable[..., Any]


def csr(path: Path, key: Any, name: str = "carol") -> Path:
    """A CSR (PEM) in a file."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def test_what_is_no_csr_is_refused_before_anybody_is_asked(
    built: tuple[Path, Network], run: Run, tmp_path: Path
) -> None:
    """No file, no CSR, a file without end, a key that may not be registered: a sentence that says what to do."""
    folder, _ = built
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505  that it is refused is the point
    other_curve = ec.generate_private_key(ec.SECP384R1())
    garbage, huge = tmp_path / "garbage.csr", tmp_path / "huge.csr"
    garbage.write_text("-----BEGIN CERTIFICATE REQUEST-----\n")
    huge.write_bytes(bytes(70_000))
    cases = {
        tmp_path / "none.csr": "cannot read the CSR",
        garbage: "no certificate signing request",
        huge: "more than 65536 bytes",
        csr(tmp_path / "weak.csr", weak): "RSA key of 1024 bits",
        csr(tmp_path / "curve.csr", other_curve): "where P-256 is expected",
        Path("/dev/zero"): "more than 65536 bytes",
    }
    for path, reason in cases.items():
        for command in (
            ("client", "register", "carol"),
            ("client", "renew", "carol"),
            ("ca", "issue", "service"),
        ):
            result = run(*command, "--csr", path, "--network", folder, "--json")
            assert result.code == 2, result
            assert reason in result.document["error"]["reason"]
            assert result.document["error"]["advice"]


def test_a_certificate_is_written_beside_its_csr_and_over_nothing(tmp_path: Path) -> None:
    """The same certificate again is no conflict; another file stays as it is."""
    request = client_request.read(csr(tmp_path / "carol.csr", software_keys.ecdsa("carol").private))
    assert request.key == software_keys.ecdsa("carol").public
    path = request.write_certificate("one", None)
    assert (path, path.read_text()) == (tmp_path / "carol.crt", "one")
    request.write_certificate("one", None)
    with pytest.raises(UsageError, match="another file"):
        request.write_certificate("two", None)
    assert request.write_certificate("two", tmp_path / "else.pem").read_text() == "two"
    assert path.read_text() == "one"


def test_a_stranger_renews_nothing(built: tuple[Path, Network], run: Run, tmp_path: Path) -> None:
    """A client whose key is not in the folder, or who is not on the whitelist, is told so."""
    folder, _ = built
    result = run("client", "renew", "nobody", "--network", folder, "--json")
    assert (result.code, "is not in this folder" in result.document["error"]["reason"]) == (2, True)
    path = csr(tmp_path / "n.csr", software_keys.ecdsa("n").private)
    result = run("client", "renew", "nobody", "--csr", path, "--network", folder, "--json")
    assert (result.code, "not on the whitelist" in result.document["error"]["reason"]) == (2, True)


@pytest.fixture
def renewal(built: tuple[Path, Network], tmp_path: Path) -> Callable[..., Renewal]:
    """A renewal of carol's from one software key to another."""
    layout = Layout(built[0])

    def begin(old: Any, new: Any) -> Renewal:
        return Renewal(layout, "carol", "", old=old, new=new, stem=tmp_path / "carol")

    return begin


def words(old: SoftwareKey, new: SoftwareKey, /, **changed: Any) -> bytes:
    """What the CA wants announced; `changed` bends it."""
    certificate = certified(changed.pop("certified", new), changed.pop("name", "carol"))
    fields = {
        "network": "built",
        "holder": "client/carol",
        "old": old.public.id,
        "new": new.public.spki,
        "device": "",
        "since": 5,
        "overlap": 0,
        "not_before": round(certificate.not_valid_before_utc.timestamp()) * 1000,
        "until": round(certificate.not_valid_after_utc.timestamp()) * 1000,
        "certificate": certificate.public_bytes(serialization.Encoding.DER),
    }
    return canonical.encode(Announcement(**{**fields, **changed}))


def certified(key: SoftwareKey, name: str) -> x509.Certificate:
    """A certificate; who signed it is the CA's affair."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = serialization.load_der_public_key(key.public.spki)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)  # type: ignore[arg-type]
        .serial_number(1)
        .not_valid_before(dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
        .sign(software_keys.ecdsa("some CA").private, hashes.SHA256())
    )


class Management:
    """A management service that offers what it is told to, and remembers what was announced."""

    def __init__(self, offered: bytes) -> None:
        self.offered = offered
        self.announced: list[Envelope] = []

    def __call__(self, _address: object) -> Self:
        """Stands for the class as well."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def certify_key(self, _name: str, _request: str, _proof: Envelope) -> dict[str, str]:
        """Step 1."""
        return {"announcement": self.offered.decode()}

    def announce_key(self, _name: str, announcement: Envelope) -> dict[str, str]:
        """Step 2."""
        self.announced.append(announcement)
        return {"certificate": "pem", "transaction": ""}


@pytest.mark.requirement("K-12")
@pytest.mark.parametrize(
    "changed",
    [
        {"network": "other"},
        {"holder": "client/mallory"},
        {"holder": "administrator/carol"},
        {"old": "ab" * 32},
        {"new": software_keys.ecdsa("mallory").spki},
        {"device": "device-a"},
        {"overlap": 100},
        {"until": 2**53 - 1},
        {"not_before": 0},
        {"certified": SoftwareKey.generate()},
        {"name": "mallory"},
        {"certificate": b"none"},
    ],
)
def test_nobody_signs_other_words_than_his_own_renewal(
    renewal: Callable[..., Renewal], monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """A CA that wants something else announced gets no signature, and is told nothing."""
    old, new = SoftwareKey.generate(), SoftwareKey.generate()
    management = Management(words(old, new, **changed))
    monkeypatch.setattr(client_renewal, "Management", management)
    with pytest.raises(CommandError) as refused:
        renewal(Here(old), Here(new)).run()
    assert refused.value.code == "bad-answer"
    assert management.announced == []


@pytest.mark.requirement("K-12")
def test_a_renewal_by_keys_in_the_folder_is_signed_by_both(
    renewal: Callable[..., Renewal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is announced verifies under the old key and the new one."""
    old, new = SoftwareKey.generate(), SoftwareKey.generate()
    management = Management(words(old, new))
    monkeypatch.setattr(client_renewal, "Management", management)
    certificate, renewed = renewal(Here(old), Here(new)).run()
    assert (certificate, renewed.key) == ("pem", new.public.id)
    assert rotation.verify(management.announced[0], old.public).new == new.public.spki


@pytest.mark.requirement("K-12")
def test_a_signature_made_elsewhere_is_verified_here(
    renewal: Callable[..., Renewal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One over other bytes is refused by name; kept words that were changed are refused, too."""
    old, new = SoftwareKey.generate(), software_keys.ed25519_key("elsewhere")
    said = words(old, new)  # type: ignore[arg-type]
    monkeypatch.setattr(client_renewal, "Management", Management(said))

    def begin() -> Renewal:
        return renewal(Here(old), Elsewhere(new.public, "new key"))

    with pytest.raises(UnsignedError) as waiting:
        begin().run()
    (missing,) = waiting.value.missing
    assert "pkeyutl -sign -rawin" in missing.command()
    missing.signature.write_bytes(new.sign(missing.message.read_bytes() + b" "))
    with pytest.raises(UsageError, match="is not the new key's signature"):
        begin().run()
    missing.signature.write_bytes(new.sign(missing.message.read_bytes()))
    begin().run()
    missing.message.write_bytes(missing.message.read_bytes() + b" ")
    with pytest.raises(UsageError, match="is not what was written there"):
        begin().run()
