"""Certificates and lists of revoked ones, signed by the CA's key on its token (requirement E-1).

The key in force issues. The keys before it, which the chain remembers, sign nothing but their own lists: a certificate
can be verified, and be seen to be revoked, under the key that signed it. The list follows the registry: what is on it
is read from the chain whenever the registry has changed, so a revocation is on the next list that anybody asks for.
"""

import asyncio
import datetime as dt
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ledger.entry_history import versions
from ledger.replica import Replica
from management.ca_doors import CaDoors
from management.certificate import (
    CRL_VALIDITY,
    Issuer,
    Kind,
    Subject,
    key_identifier,
    milliseconds,
    moment,
    read_service_certificate,
)
from management.errors import BadAnswerError, EnrolmentError
from management.issued import Issued, IssuedCertificates, RevocationList
from management.retired import Retired, RetiredKeys, listed
from management.turns import Turns
from protocol import canonical, x509_tbs
from protocol.canonical import KeyId
from protocol.envelope import Envelope, Signature
from protocol.errors import BadSignatureError
from protocol.keys import PublicKey, key_id
from protocol.messages import SignCertificate, SignCrl
from protocol.registry import Reason, Registrar, decode_entry

CRL_KEPT_SECONDS: Final = 3600.0
"""A list in which nothing has changed is made anew after this time, long before its end."""
CRL_SECONDS: Final = 30.0
"""How long the device may take to check and sign a list."""
CRL_KEPT_MS: Final = CRL_VALIDITY // dt.timedelta(milliseconds=1)
MOST_AT_ONCE: Final = 1000
"""Requests that may be under way at one time."""
WARNING_MS: Final = 30 * 86_400_000
"""A certificate that ends within this time should be renewed now."""

T = TypeVar("T")

_log = structlog.get_logger()


class Listed(msgspec.Struct, frozen=True):
    """A certificate as an operator sees it; times in milliseconds since the epoch."""

    kind: Kind
    name: str
    serial: str
    key: str
    issuer: str
    not_before: int
    not_after: int
    days_left: int
    state: str
    """valid, renew-now (it ends within thirty days), expired, or why and since when it is revoked."""
    revoked: int | None = None
    reason: str | None = None


class Issuing:
    """What the CA's key signs; the state machine of enrolment is `management.ca`."""

    def __init__(
        self, name: str, replica: Replica, issued: IssuedCertificates, doors: CaDoors, workers: Executor
    ) -> None:
        self._name = name
        self._replica = replica
        self._issued = issued
        self._doors = doors
        self._workers = workers
        self._retired = RetiredKeys(replica.store)
        self._turns = Turns(MOST_AT_ONCE)
        self._listing = Turns(MOST_AT_ONCE)
        self._seen: tuple[str, int, int] | None = None
        self._local_changes = 0
        self._lists: dict[str, tuple[float, RevocationList]] = {}

    @property
    def issuer(self) -> Issuer:
        """The CA as the registry has it now; raises `EnrolmentError`."""
        registry = self._replica.registry
        entry = registry.registrar(self._name)
        if entry is None:
            raise EnrolmentError(
                "no-ca", f"the registry has no registrar {self._name}; put one there, or correct ca_name"
            )
        if registry.revocation(key_id(entry.key)) is not None:
            raise EnrolmentError("no-ca", f"the key of {self._name} was revoked; administrators register another one")
        return Issuer(entry.certificate)

    async def issuers(self) -> list[Issuer]:
        """The CA in force first, and then those before it whose certificates can still be met, the latest first.

        One whose key is revoked is not among them: nothing that it signed can be told from a forgery. Raises
        `EnrolmentError` when none is left.
        """
        found = await self._in_thread(self._issuers)
        return found or [self.issuer]

    async def issuer_of(self, certificate: bytes) -> bytes:
        """The CA's certificate (DER) under which one of its certificates verifies."""
        known = await self.issuers()
        named = _load(certificate).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        found = next((each for each in known if key_identifier(each.certificate) == named), known[0])
        return found.certificate.public_bytes(Encoding.DER)

    async def issue(
        self,
        subject: Subject,
        *,
        until: dt.datetime | None = None,
        proof: Envelope | None = None,
        voucher: str | None = None,
    ) -> Issued:
        """The certificate of a key: made now, or the one that it has. Raises `EnrolmentError`, `ManagementError`.

        `proof` is the request of the client's key in force, and `voucher` that key's id.
        """
        async with self._turns.of(subject.key.id):  # two requests for one key at once get the same certificate
            return await self._issue(subject, until, proof, voucher)

    async def crl(self, issuer: str = "") -> bytes:
        """The list of revoked certificates (DER) of the key in force, or of an earlier one, by its id.

        Raises `EnrolmentError`, `ManagementError`.
        """
        async with self._listing.of("list"):
            wanted = await self._issuer_by_id(issuer) if issuer else self.issuer
            return (await self._list(wanted)).list

    async def _issuer_by_id(self, key: str) -> Issuer:
        for each in await self._in_thread(self._issuers):
            if each.key.id == key:
                return each
        raise EnrolmentError("unknown-issuer", f"no key {key[:16]}… is or was this CA's, or it is revoked")

    async def listed(self, kind: Kind | None = None) -> list[Listed]:
        """All certificates that were issued here, with their states and the days that are left."""
        return await self._in_thread(lambda: self._all_listed(kind))

    async def find(self, issuer: Issuer, key: PublicKey) -> Issued | None:
        """The certificate of a key by an issuer, if it has one."""
        return await self._in_thread(lambda: self._issued.find(issuer.key.id, key.id))

    async def require_counting(self, key: PublicKey, *, known: bool = True) -> None:
        """Raise `EnrolmentError` for a key that was retired: its certificate is on the list, and does not come back.

        A key that is not `known` was never certified here: what became of it is looked up in what was read before.
        """
        height = self._replica.height
        if known:
            retired = (await self._in_thread(self._all_retired)).get(key.id)
        else:
            retired = await self._in_thread(lambda: self._retired.find_earlier(key.id, height))
        revoked = self._replica.registry.revocation(key.id)
        if retired is not None or revoked is not None:
            reason = retired.reason if retired else revoked.reason if revoked else ""
            raise EnrolmentError("key-retired", f"key {key.id[:16]}… counts no more ({reason}); make a new one")

    async def unannounced(self, name: str) -> list[Issued]:
        """The keys of a client that are certified, count, and are not on the chain."""

        def work() -> list[Issued]:
            retired, now = self._all_retired(), _milliseconds_now()
            rows = self._issued.of_name("client", name)
            counting = [each for each in rows if each.key not in retired and each.not_after > now]
            return [each for each in counting if not self._is_registered(each)]

        return await self._in_thread(work)

    async def revoke_service(self, name: str, reason: Reason, certificate: bytes | None = None) -> list[Issued]:
        """Put the certificates of a service on the list; raises `EnrolmentError` when it has none that counts.

        A `certificate` (PEM or DER) that this service remembers no more is taken up again first.
        """
        if certificate is not None:
            await self._take_up(name, certificate)

        def work() -> list[Issued]:
            now = _milliseconds_now()
            found = [each for each in self._issued.of_name("service", name) if not each.revoked]
            for each in found:
                self._issued.revoke(each.key, now, reason)
            return found

        revoked = await self._in_thread(work)
        if not revoked:
            raise EnrolmentError("not-issued", f"service {name} has no certificate that could be revoked")
        self._local_changes += 1
        _log.info("service certificates revoked", service=name, reason=reason, certificates=len(revoked))
        return revoked

    async def _take_up(self, name: str, data: bytes) -> None:
        issuers = await self.issuers()

        def work() -> None:
            subject, issuer, certificate = read_service_certificate(name, data, issuers)
            if self._issued.find(issuer.key.id, subject.key.id) is None:
                self._issued.put(_recorded(subject, issuer, certificate, None))

        await self._in_thread(work)

    async def _issue(
        self, subject: Subject, until: dt.datetime | None, proof: Envelope | None, voucher: str | None
    ) -> Issued:
        issuer = self.issuer
        if subject.key.id == issuer.key.id:
            raise EnrolmentError("key-in-use", "this is the CA's own key")
        existing = await self.find(issuer, subject.key)
        await self.require_counting(subject.key, known=existing is not None)
        if existing is not None:
            self._require_same(existing, subject)
            return existing
        tbs = issuer.draft_certificate(subject, _now(), self._end(until))
        signature = await self._doors.sign(
            "sign-certificate", canonical.encode(SignCertificate(tbs, proof, self._replica.height))
        )
        certificate = _sealed(tbs, issuer, signature)
        issued = _recorded(subject, issuer, certificate, voucher)
        await self._in_thread(lambda: self._issued.put(issued))
        _log.info("certificate issued", kind=subject.kind, name=subject.name, serial=issued.serial)
        return issued

    def _end(self, until: dt.datetime | None) -> dt.datetime:
        """The end that the channel allows a key, or an earlier one."""
        latest = self._replica.time + self._replica.registry.channel.longest_lifetime
        allowed = moment(latest)
        return min(allowed, until) if until else allowed

    def _require_same(self, existing: Issued, subject: Subject) -> None:
        """A key has one certificate: whoever wants another one makes another key."""
        same = existing.kind == subject.kind and existing.name == subject.name
        if same and subject.kind == "service":
            same = _names_in(existing.certificate) == (set(subject.dns), set(subject.addresses))
        if not same:
            raise EnrolmentError(
                "key-in-use",
                f"this key has a certificate already, as {existing.kind} {existing.name}; make a new key for another",
            )
        if existing.revoked is not None:
            raise EnrolmentError("key-retired", "the certificate of this key was revoked; make a new key")
        if existing.not_after <= _milliseconds_now():
            raise EnrolmentError("key-retired", "the certificate of this key has ended; make a new key")

    async def _list(self, issuer: Issuer) -> RevocationList:
        seen = (self._replica.registry.root, self._local_changes, self._run_out())
        if seen != self._seen:
            self._lists.clear()
            self._seen = seen
        kept = self._lists.get(issuer.key.id)
        if kept is not None and time.monotonic() < kept[0]:
            return kept[1]
        made = await self._current(issuer)
        self._lists[issuer.key.id] = (time.monotonic() + CRL_KEPT_SECONDS, made)
        return made

    def _run_out(self) -> int:
        """How many node keys have reached the end of their overlap: that comes with a height, not with a change."""
        registry, height = self._replica.registry, self._replica.height
        nodes = filter(None, map(registry.node, registry.node_names))
        return sum(key.last <= height for node in nodes for key in node.keys)

    async def _current(self, issuer: Issuer) -> RevocationList:
        """The last list where it still says what is so, else a new one."""
        retired, last = await self._in_thread(lambda: (self._to_list(issuer), self._issued.list_of(issuer.key.id)))
        now = _milliseconds_now()
        contents = hashlib.sha256(msgspec.json.encode(retired)).hexdigest()
        if last is not None and last.contents == contents and now < last.number + CRL_KEPT_SECONDS * 1000:
            return last
        number = max(now, last.number + 1 if last else 0)
        tbs = await self._in_thread(lambda: issuer.draft_crl(retired, number, _now()))
        body = canonical.encode(SignCrl(tbs, self._replica.height))
        signature = await self._doors.sign("sign-crl", body, CRL_SECONDS)
        made = RevocationList(issuer.key.id, number, contents, _sealed(tbs, issuer, signature))
        await self._in_thread(lambda: self._issued.keep_list(made))
        _log.info("revocation list signed", issuer=issuer.key.id, number=number, certificates=len(retired))
        return made

    def _all_retired(self) -> dict[KeyId, Retired]:
        """What the chain says, and what this CA alone knows: revoked services, and keys that lost their voucher.

        A key that was certified on the word of another and never announced goes with that one: whoever stole the
        first could have asked for the second.
        """
        retired = self._retired.at(self._replica.height)
        for each in self._issued.revoked():
            retired.setdefault(KeyId(each.key), _revoked_here(each))
        for each in self._issued.vouched():
            voucher = retired.get(KeyId(each.voucher or ""))
            if voucher is not None and each.key not in retired and not self._is_registered(each):
                lost = msgspec.structs.replace(voucher, key=KeyId(each.key), until=each.not_after)
                retired[KeyId(each.key)] = lost
        return retired

    def _is_registered(self, issued: Issued) -> bool:
        entry = self._replica.registry.client_entry(issued.name)
        return entry is not None and key_id(entry.key) == issued.key

    def _to_list(self, issuer: Issuer) -> list[Retired]:
        retired = self._all_retired()
        retired.pop(issuer.key.id, None)  # a CA does not vouch for the end of its own key
        now = _milliseconds_now()
        return sorted(listed(retired.values(), now=now, kept=CRL_KEPT_MS), key=lambda each: (each.time, each.key))

    def _issuers(self) -> list[Issuer]:
        store, registry = self._replica.store, self._replica.registry
        found: dict[str, Issuer] = {}
        for version in reversed(list(versions(store, "registrar"))):
            if version.key != f"registrar/{self._name}" or version.entry is None:
                continue
            entry = decode_entry(version.key, version.entry)
            if isinstance(entry, Registrar) and registry.revocation(key_id(entry.key)) is None:
                issuer = Issuer(entry.certificate)
                if issuer.certificate.not_valid_after_utc > _now():
                    found.setdefault(issuer.key.id, issuer)
        in_force = registry.registrar(self._name)
        current = key_id(in_force.key) if in_force else ""
        return sorted(found.values(), key=lambda each: each.key.id != current)  # a stable order but for that one

    def _all_listed(self, kind: Kind | None) -> list[Listed]:
        retired, now = self._all_retired(), _milliseconds_now()
        return [_listed(each, retired.get(KeyId(each.key)), now) for each in self._issued.all(kind)]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _recorded(subject: Subject, issuer: Issuer, certificate: bytes, voucher: str | None) -> Issued:
    loaded = _load(certificate)
    return Issued(
        issuer=issuer.key.id,
        key=subject.key.id,
        serial=f"{loaded.serial_number:x}",
        kind=subject.kind,
        name=subject.name,
        not_before=milliseconds(loaded.not_valid_before_utc),
        not_after=milliseconds(loaded.not_valid_after_utc),
        certificate=certificate,
        voucher=voucher,
    )


def _listed(issued: Issued, retired: Retired | None, now: int) -> Listed:
    left = issued.not_after - now
    state = "expired" if left <= 0 else "renew-now" if left < WARNING_MS else "valid"
    return Listed(
        issued.kind,
        issued.name,
        issued.serial,
        issued.key,
        issued.issuer,
        issued.not_before,
        issued.not_after,
        max(0, left // 86_400_000),
        retired.reason if retired else state,
        retired.time if retired else None,
        retired.reason if retired else None,
    )


def _revoked_here(issued: Issued) -> Retired:
    holder = f"{issued.kind}/{issued.name}"
    return Retired(KeyId(issued.key), issued.revoked or 0, issued.reason or "unspecified", holder=holder)


def _sealed(tbs: bytes, issuer: Issuer, signature: Signature) -> bytes:
    try:
        return x509_tbs.sealed(tbs, issuer.key, signature.sig)
    except BadSignatureError as error:
        raise BadAnswerError(f"the CA's device signed something else: {error}") from None


def _load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError as error:
        raise BadAnswerError(f"the CA's device did not sign a certificate: {error}") from None


def _names_in(certificate: bytes) -> tuple[set[str], set[str]]:
    names = _load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    return set(names.get_values_for_type(x509.DNSName)), addresses


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def _milliseconds_now() -> int:
    return time.time_ns() // 1_000_000
