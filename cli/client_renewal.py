"""A client's new key: the CA certifies it on the old key's word, and both announce it (requirement K-12).

Keys in the folder sign here. A key that is elsewhere signs elsewhere: what it is to sign is written into a file beside
the CSR, `openssl` makes the signature next to it, and the same command run again goes on from there.

    NAME.request          what the old key signs, to ask for the certificate      → NAME.request.sig
    NAME.announcement     what the old key and the new one sign                   → NAME.announcement.old.sig, .new.sig
"""

import shlex
from pathlib import Path
from typing import Final, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cli import registry
from cli.api import Management
from cli.client_request import ForeignRequest
from cli.errors import CommandError, UsageError
from cli.keys import SoftwareKey
from cli.plan import Layout, read_network
from protocol import canonical, renewal, rotation
from protocol.envelope import Envelope, Signature, pae
from protocol.errors import ProtocolError
from protocol.keys import PublicKey
from protocol.rotation import Announcement

COMMIT_SECONDS: Final = 30.0
LEFT_BEHIND: Final = (".request", ".request.sig", ".announcement", ".announcement.old.sig", ".announcement.new.sig")
"""What lies beside a CSR until the renewal is done."""


class Renewed(msgspec.Struct, frozen=True):
    """A renewal that took effect: where its certificate is, the new key's id, the transaction and its block."""

    certificate: str
    key: str
    transaction: str
    height: int | None


class ToSign(msgspec.Struct, frozen=True):
    """A signature that is to be made elsewhere: over which file, into which file, by which key."""

    message: Path
    signature: Path
    whose: str
    scheme: str

    def command(self) -> str:
        """How openssl makes it."""
        key = f"{self.whose.upper().replace(' ', '-')}.pem"
        message, signature = shlex.quote(str(self.message)), shlex.quote(str(self.signature))
        if self.scheme == "ed25519":
            return f"openssl pkeyutl -sign -rawin -inkey {key} -in {message} -out {signature}"
        return f"openssl dgst -sha256 -sign {key} -out {signature} {message}"


class UnsignedError(Exception):
    """Signatures are missing that only somebody else can make."""

    def __init__(self, missing: list[ToSign]) -> None:
        super().__init__("signatures are missing")
        self.missing = missing


class Party(Protocol):
    """Whoever holds the old key or the new one."""

    public: PublicKey

    def sign(self, payload_type: str, payload: bytes, message: Path, signature: Path) -> Signature | ToSign:
        """The signature over a payload, or where it has to come from."""
        ...


class Here:
    """A software key in the folder."""

    def __init__(self, key: SoftwareKey) -> None:
        self._key = key
        self.public = key.public

    def sign(self, payload_type: str, payload: bytes, message: Path, signature: Path) -> Signature | ToSign:
        """See `Party`; the files are not needed."""
        del message, signature
        return self._key.sign(payload, payload_type)


class Elsewhere:
    """A key that never comes here; `whose` is for people: old key, new key."""

    def __init__(self, public: PublicKey, whose: str) -> None:
        self.public = public
        self._whose = whose

    def sign(self, payload_type: str, payload: bytes, message: Path, signature: Path) -> Signature | ToSign:
        """See `Party`. Raises `UsageError` for a signature that does not verify."""
        message.write_bytes(pae(payload_type, payload))
        if not signature.exists():
            return ToSign(message, signature, self._whose, self.public.scheme)
        made = Signature(self.public.id, signature.read_bytes())
        try:
            self.public.verify(made.sig, pae(payload_type, payload))
        except ProtocolError:
            raise UsageError(
                f"{signature} is not the {self._whose}'s signature over {message}",
                advice=f"delete {signature}; sign again",
            ) from None
        return made


class Renewal:
    """One renewal, step by step; every step may be repeated."""

    def __init__(self, layout: Layout, name: str, request: str, *, old: Party, new: Party, stem: Path) -> None:
        """`stem` is the path beside which files for signatures made elsewhere lie."""
        self._layout = layout
        self._name = name
        self._request = request
        self._old = old
        self._new = new
        self._stem = stem
        self._network = read_network(layout.folder).network

    def run(self) -> tuple[str, Renewed]:
        """The new certificate (PEM), and what took effect. Raises `UnsignedError`, `ProblemError`, `UsageError`."""
        with Management(self._layout.socket("management")) as management:
            words = self._kept_words() if isinstance(self._new, Elsewhere) else None
            if words is None:
                answer = management.certify_key(self._name, self._request, self._proof())
                words = answer["announcement"].encode()
                self._check(words)
                announcement_file(self._stem).write_bytes(pae(rotation.PAYLOAD_TYPE, words))
            done = management.announce_key(self._name, self._announcement(words))
            transaction = done["transaction"]
            status = management.follow(transaction, seconds=COMMIT_SECONDS) if transaction else None
        if status is not None:
            registry.require_committed(status)
        height = status.height if status else None
        return done["certificate"], Renewed("", self._new.public.id, transaction, height)

    def _proof(self) -> Envelope:
        asked = renewal.RenewalRequest(
            network=self._network, client=self._name, old=self._old.public.id, new=self._new.public.id
        )
        payload = canonical.encode(asked)
        file = self._stem.with_name(self._stem.name + ".request")
        signature = self._old.sign(renewal.PAYLOAD_TYPE, payload, file, file.with_name(file.name + ".sig"))
        if isinstance(signature, ToSign):
            raise UnsignedError([signature])
        return Envelope(payload, renewal.PAYLOAD_TYPE, (signature,))

    def _announcement(self, words: bytes) -> Envelope:
        file = announcement_file(self._stem)
        made = [
            party.sign(rotation.PAYLOAD_TYPE, words, file, file.with_name(f"{file.name}.{which}.sig"))
            for party, which in ((self._old, "old"), (self._new, "new"))
        ]
        missing = [each for each in made if isinstance(each, ToSign)]
        if missing:
            raise UnsignedError(missing)
        return Envelope(words, rotation.PAYLOAD_TYPE, tuple(each for each in made if isinstance(each, Signature)))

    def _kept_words(self) -> bytes | None:
        """What is being signed elsewhere since an earlier run; new words would need new signatures."""
        file = announcement_file(self._stem)
        if not file.exists():
            return None
        words = _words_in(file)
        self._check(words)
        return words

    def _check(self, words: bytes) -> None:
        """Nobody signs what he has not read: the CA drew these words up."""
        try:
            said = canonical.decode(words, _decoder)
            certificate = x509.load_der_x509_certificate(said.certificate)
            subject = [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
            certified = PublicKey.of(certificate.public_key())
        except (ProtocolError, ValueError) as error:
            raise CommandError(f"the CA's announcement cannot be read: {error}", code="bad-answer") from None
        lifetime = tuple(
            int(each.timestamp()) * 1000 for each in (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        )
        expected = Announcement(
            network=self._network,
            holder=f"client/{self._name}",
            old=self._old.public.id,
            new=self._new.public.spki,
            device="",
            since=said.since,
            overlap=0,
            not_before=lifetime[0],
            until=lifetime[1],
            certificate=said.certificate,
        )
        if said != expected or subject != [self._name] or certified != self._new.public:
            raise CommandError(
                "the CA wants something else announced than the renewal of this key; nothing was signed",
                code="bad-answer",
                advice="an announcement of an earlier renewal beside the CSR: delete it. Else ask the operator",
            )


def announcement_file(stem: Path) -> Path:
    """Where the words of an announcement lie until it is on the chain; they hold the new certificate."""
    return stem.with_name(stem.name + ".announcement")


def _words_in(file: Path) -> bytes:
    message = file.read_bytes()
    words = message[message.find(b"{") :]
    if pae(rotation.PAYLOAD_TYPE, words) != message:
        raise UsageError(f"{file} is not what was written there", advice=f"delete {file} and what was signed of it")
    return words


def _certificate_in(file: Path, key: PublicKey) -> str:
    """The certificate (PEM) that an earlier run was cut short with."""
    if not file.exists():
        raise UsageError("the client has this key already", advice="a renewal brings a new key: make another CSR")
    try:
        said = canonical.decode(_words_in(file), _decoder)
        certificate = x509.load_der_x509_certificate(said.certificate)
    except (OSError, ProtocolError, ValueError):
        said, certificate = None, None
    if said is None or certificate is None or said.new != key.spki:
        raise UsageError("this key is on the chain already, and its certificate is not here", advice="ask the operator")
    return certificate.public_bytes(Encoding.PEM).decode()


def key_in_force(layout: Layout, name: str) -> PublicKey:
    """The key that the chain has for a client; raises `UsageError`, or `CommandError` when it is revoked."""
    view = registry.in_force(layout.folder)
    key = view.client(name)
    if key is None:
        raise UsageError(f"{name} is not on the whitelist", advice="register it: hsm-endorser client register")
    if view.revocation(key.id) is not None:
        raise CommandError(
            f"the key of {name} was revoked: it names no successor",
            code="revoked",
            advice=f"hsm-endorser client remove {name}, then register it with a new key",
        )
    return key


def with_new_key(layout: Layout, name: str) -> Renewed:
    """Renew a client whose key is in the folder, with a new software key. Raises as `Renewal.run`."""
    path, fresh = layout.client_key(name), layout.client_key(name).with_suffix(".key.new")
    if not path.exists():
        raise UsageError(
            f"the key of {name} is not in this folder",
            advice="bring a CSR of the new key: --csr FILE, signed elsewhere",
        )
    old = SoftwareKey.load(path)
    new = SoftwareKey.load(fresh) if fresh.exists() else SoftwareKey.create(fresh)
    in_force = key_in_force(layout, name)
    if in_force == new.public and in_force != old.public:
        old = new  # a former run was cut short after the chain had the new key
    if old is new:
        renewed, certificate = (
            Renewed("", new.public.id, "", None),
            _certificate_in(announcement_file(path), new.public),
        )
    else:
        certificate, renewed = Renewal(layout, name, new.request(name), old=Here(old), new=Here(new), stem=path).run()
    _install(layout, name, certificate)
    return msgspec.structs.replace(renewed, certificate=str(layout.client_certificate(name)))


def _install(layout: Layout, name: str, certificate: str) -> None:
    """The new key takes the old one's place in the folder: last, so that a run that was cut short is seen."""
    fresh, target = layout.client_key(name).with_suffix(".key.new"), layout.client_certificate(name)
    scratch = target.with_suffix(".crt.new")
    scratch.write_text(certificate)
    scratch.rename(target)
    layout.client_request(name).write_text(SoftwareKey.load(fresh).request(name))
    fresh.rename(layout.client_key(name))
    announcement_file(layout.client_key(name)).unlink(missing_ok=True)


def with_request(layout: Layout, name: str, request: ForeignRequest, output: Path | None) -> Renewed:
    """Renew a client with a key that is elsewhere. Raises as `Renewal.run`."""
    path, stem = layout.client_key(name), request.beside("")
    in_force = key_in_force(layout, name)
    if in_force == request.key:  # a former run was cut short after the chain had the new key, or there was none
        certificate, renewed = _certificate_in(announcement_file(stem), in_force), Renewed("", in_force.id, "", None)
    else:
        here = SoftwareKey.load(path) if path.exists() else None
        old: Party = Here(here) if here is not None and here.public == in_force else Elsewhere(in_force, "old key")
        new = Elsewhere(request.key, "new key")
        certificate, renewed = Renewal(layout, name, request.pem, old=old, new=new, stem=stem).run()
    written = request.write_certificate(certificate, output)
    for end in LEFT_BEHIND:
        stem.with_name(stem.name + end).unlink(missing_ok=True)
    return msgspec.structs.replace(renewed, certificate=str(written))


_decoder = msgspec.json.Decoder(Announcement)
