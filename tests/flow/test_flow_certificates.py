"""The life of certificates through all processes, on real tokens, with the `openssl` that everybody has."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from cli import client_renewal, exit_codes, registry
from cli.keys import SoftwareKey
from cli.main import main
from protocol import canonical
from protocol.envelope import Envelope, Signature, pae
from protocol.keys import PublicKey
from protocol.transaction import PAYLOAD_TYPE
from tests.flow.running_network import RunningNetwork
from transport.problem import ProblemError

pytestmark = pytest.mark.slow

Command = Callable[..., Any]

OPENSSL = shutil.which("openssl") or "openssl"
KINDS = {
    "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa": ["-newkey", "rsa:2048"],
    "ed25519": ["-newkey", "ed25519"],
}


def ask_openssl(*arguments: object) -> tuple[int, str]:
    """The exit code of openssl, and what it says."""
    done = subprocess.run([OPENSSL, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def openssl(*arguments: object) -> str:
    """What openssl says; fails when it fails."""
    code, said = ask_openssl(*arguments)
    assert code == 0, said
    return said


def request(folder: Path, name: str, kind: str, *more: str) -> tuple[Path, Path]:
    """A key and a CSR, made by openssl."""
    key, csr = folder / f"{name}.pem", folder / f"{name}.csr"
    options = [*KINDS[kind], "-nodes", "-subj", f"/CN={name.partition('+')[0]}", *more]
    openssl("req", "-new", *options, "-keyout", key, "-out", csr)
    return key, csr


def sign(key: Path, message: Path, signature: Path, kind: str) -> None:
    """A signature over a file, made by openssl."""
    if kind == "ed25519":
        openssl("pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", message, "-out", signature)
    else:
        openssl("dgst", "-sha256", "-sign", key, "-out", signature, message)


@pytest.fixture
def command(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on the running network; its exit code, and the document that it printed."""

    def run(*arguments: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*map(str, arguments), "--network", str(folder), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def submit(network: RunningNetwork, client: str, key: Path, kind: str, scratch: Path) -> str:
    """What becomes of an evidence transaction that openssl signs: its code, or the problem's."""
    wish = network.evidence(f"{client}-{key.name}-{scratch.name}", client="alice")
    payload = wish.envelope.payload.replace(b'"client":"alice"', b'"client":"%s"' % client.encode())
    message, signature = scratch / "transaction", scratch / "transaction.sig"
    message.write_bytes(pae(PAYLOAD_TYPE, payload))
    sign(key, message, signature, kind)
    spki = scratch / "key.der"
    openssl("pkey", "-in", key, "-pubout", "-outform", "DER", "-out", spki)
    made = Signature(PublicKey.load(spki.read_bytes()).id, signature.read_bytes())
    raw = canonical.encode(Envelope(payload, PAYLOAD_TYPE, (made,)))
    with network.management() as management:
        try:
            return str(management.submit(raw, wait=20).code)
        except ProblemError as error:
            return error.problem.code


@pytest.mark.requirement("E-1", "K-12", "K-14")
@pytest.mark.parametrize(
    ("kind", "next_kind"),
    [
        ("ec", "ed25519"),
        ("rsa", "ec"),
        ("ed25519", "rsa"),
    ],
)
def test_a_client_with_its_key_elsewhere_lives_its_whole_life(
    network: RunningNetwork, command: Command, tmp_path: Path, kind: str, next_kind: str
) -> None:
    """Registered by a CSR, renewed by signatures that openssl makes, revoked: each as `openssl verify` sees it too."""
    name = f"el-{kind}"
    key, csr = request(tmp_path, name, kind)
    code, answer = command("client", "register", name, "--csr", csr)
    assert (code, answer["certificate"]) == (0, str(csr.with_suffix(".crt")))
    assert submit(network, name, key, kind, tmp_path) == "valid"
    ca, crl = tmp_path / "ca.pem", tmp_path / "ca.crl"
    with network.management() as management:
        ca.write_bytes(management.ca_certificate())

    def verified(certificate: Path) -> str:
        assert command("ca", "crl", "--output", crl)[0] == 0
        return ask_openssl("verify", "-crl_check", "-CAfile", ca, "-CRLfile", crl, certificate)[1]

    first = Path(answer["certificate"])
    assert f"{first}: OK" in verified(first)

    code, same = command("client", "renew", name, "--csr", csr)
    assert (code, same["error"]["reason"]) == (exit_codes.USAGE, "the client has this key already")
    next_key, next_csr = request(tmp_path, f"{name}+2", next_kind)
    signers = {"old key": (key, kind), "new key": (next_key, next_kind)}
    rounds = []
    while True:
        code, answer = command("client", "renew", name, "--csr", next_csr)
        assert code == 0, answer
        if answer["renewed"]:
            break
        rounds.append([each["key"] for each in answer["to_sign"]])
        for each in answer["to_sign"]:
            whose, scheme = signers[each["key"]]
            sign(whose, Path(each["message"]), Path(each["signature"]), scheme)
    assert rounds == [["old key"], ["old key", "new key"]]
    assert {path.suffix for path in tmp_path.glob(f"{name}+2.*")} == {".pem", ".csr", ".crt"}
    second = Path(answer["certificate"])
    assert f"{second}: OK" in verified(second)
    assert "certificate revoked" in verified(first)
    assert submit(network, name, next_key, next_kind, tmp_path) == "valid"
    assert submit(network, name, key, kind, tmp_path) == "bad-signature"

    code, answer = command("client", "revoke", name, "--reason", "key-compromise")
    assert code == 0, answer
    assert submit(network, name, next_key, next_kind, tmp_path) == "revoked"
    assert "certificate revoked" in verified(second)
    listed = x509.load_der_x509_crl(crl.read_bytes())
    serial = x509.load_pem_x509_certificate(second.read_bytes()).serial_number
    entry = listed.get_revoked_certificate_by_serial_number(serial)
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    code, answer = command("client", "renew", name, "--csr", csr)
    assert (code, answer["error"]["code"]) == (exit_codes.FAILED, "revoked")


@pytest.mark.requirement("K-12", "E-1")
def test_a_client_of_the_folder_renews_its_key(network: RunningNetwork, command: Command, folder: Path) -> None:
    """One command: a new key and certificate lie where the old ones were, and sign."""
    assert main(["client", "register", "gerda", "--network", str(folder), "--json"]) == 0
    before = SoftwareKey.load(network.layout.client_key("gerda")).public
    code, answer = command("client", "renew", "gerda")
    assert (code, answer["renewed"]) == (0, True)
    after = SoftwareKey.load(network.layout.client_key("gerda")).public
    assert after != before
    certificate = x509.load_pem_x509_certificate(network.layout.client_certificate("gerda").read_bytes())
    assert PublicKey.of(certificate.public_key()) == after
    assert network.ended(_hand_in(network, "gerda")).code == "valid"
    left = {path.name for path in (folder / "clients").glob("gerda*")}
    assert left == {"gerda.key", "gerda.csr", "gerda.crt"}


@pytest.mark.requirement("K-12")
def test_a_renewal_that_is_cut_short_is_finished(
    network: RunningNetwork, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain has the new key, the folder still the old one: the same command again puts the new one there."""
    assert main(["client", "register", "hugo", "--network", str(folder), "--json"]) == 0
    before = SoftwareKey.load(network.layout.client_key("hugo")).public

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(client_renewal, "_install", stop)
        assert main(["client", "renew", "hugo", "--network", str(folder)]) == exit_codes.INTERRUPTED
    assert SoftwareKey.load(network.layout.client_key("hugo")).public == before
    network.wait_level(_height(network))
    code, answer = command("client", "renew", "hugo")
    assert (code, answer["renewed"]) == (0, True)
    after = SoftwareKey.load(network.layout.client_key("hugo")).public
    certificate = x509.load_pem_x509_certificate(network.layout.client_certificate("hugo").read_bytes())
    assert PublicKey.of(certificate.public_key()) == after != before
    assert network.ended(_hand_in(network, "hugo")).code == "valid"


@pytest.mark.requirement("K-12", "E-1")
def test_the_cas_key_is_rotated(network: RunningNetwork, command: Command, folder: Path, tmp_path: Path) -> None:
    """The new key issues; what the old one issued verifies, and is seen to be revoked by the old key's own list."""
    assert main(["client", "register", "ida", "--network", str(folder), "--json"]) == 0
    assert main(["client", "register", "jens", "--network", str(folder), "--json"]) == 0
    old_id = _registrar(folder)
    code, answer = command("key", "rotate", "registrar/ca")
    assert code == 0, answer
    assert _registrar(folder) != old_id
    assert main(["client", "register", "kai", "--network", str(folder), "--json"]) == 0
    assert command("client", "renew", "jens")[1]["renewed"]
    ca, lists = tmp_path / "ca.pem", tmp_path / "lists.pem"
    with network.management() as management:
        ca.write_bytes(management.ca_certificate())
    assert ca.read_text().count("BEGIN CERTIFICATE") == 2

    def verified(name: str) -> str:
        made = []
        for issuer in ("", old_id):
            assert command("ca", "crl", "--issuer", issuer, "--output", tmp_path / "one.crl")[0] == 0
            made.append(openssl("crl", "-inform", "DER", "-in", tmp_path / "one.crl"))
        lists.write_text("".join(made))
        certificate = network.layout.client_certificate(name)
        return ask_openssl("verify", "-crl_check", "-CAfile", ca, "-CRLfile", lists, certificate)[1]

    for name in ("ida", "jens", "kai"):
        assert "OK" in verified(name), name
    for name in ("ida", "kai"):
        assert command("client", "revoke", name, "--reason", "cessation-of-operation")[0] == 0
        assert "certificate revoked" in verified(name), name
    assert "OK" in verified("jens")


def _registrar(folder: Path) -> str:
    key: str = registry.in_force(folder).registrars["ca"].id
    return key


def _height(network: RunningNetwork) -> int:
    with network.management() as management:
        return management.network().height


@pytest.mark.requirement("E-1")
def test_nodes_and_services_are_certified(network: RunningNetwork, command: Command, tmp_path: Path) -> None:
    """A node's key stays on its token; a service brings a CSR; openssl verifies both, and the list shows them."""
    code, answer = command("ca", "issue", "node", "B")
    assert code == 0, answer
    (node,) = (Path(each["file"]) for each in answer["certificates"])
    _, csr = request(tmp_path, "peer-1", "ec", "-addext", "subjectAltName=DNS:peer-1.example,IP:127.0.0.1")
    code, answer = command("ca", "issue", "service", "--csr", csr)
    assert code == 0, answer
    service = Path(answer["file"])
    ca = tmp_path / "ca.pem"
    with network.management() as management:
        ca.write_bytes(management.ca_certificate())
    options = ["-purpose", "sslserver", "-verify_hostname", "peer-1.example"]
    assert "OK" in openssl("verify", "-CAfile", ca, *options, service)
    assert "OK" in openssl("verify", "-CAfile", ca, node)
    assert "unsuitable certificate purpose" in ask_openssl("verify", "-CAfile", ca, "-purpose", "sslserver", node)[1]
    code, answer = command("ca", "list")
    shown = {(each["kind"], each["name"]): each["state"] for each in answer["certificates"]}
    assert (shown["node", "B"], shown["service", "peer-1"]) == ("valid", "valid")
    code, answer = command("ca", "revoke", "peer-1", "--reason", "cessation-of-operation")
    assert code == 0
    code, listed = command("ca", "crl", "--output", tmp_path / "ca.crl")
    assert answer["serials"][0] in {each["serial"] for each in listed["revoked"]}


def _hand_in(network: RunningNetwork, client: str) -> str:
    wish = network.evidence(f"renewed-{client}", client=client)
    with network.management() as management:
        assert management.submit(wish.raw).transaction == wish.id
    return wish.id
