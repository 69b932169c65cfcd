"""Profiles: by what an audit is judged. Each is a TOML file that says, for every check, how much it matters and why.

    name = "mine"
    title = "What we ask of our tokens"
    [sources.hsm-policy]                    where the controls below are written down
    title = "Key policy, 3rd edition"
    where = "https://intranet/policies/keys.pdf"
    [controls."KP-7"]                       a control: what it asks, and in which source
    source = "hsm-policy"
    section = "7.2"
    asks = "Signing keys are generated on the token."
    [token]
    flags = {LOGIN_REQUIRED = true}         what the token must say of itself
    [key]
    attributes = {EXTRACTABLE = false}      what every key must be
    [checks."key.attributes"]
    level = "required"                      or "informative": shown, and no finding
    severity = "high"
    controls = ["KP-7"]

Every check of the catalogue stands in every profile, once: what is left out is refused, not forgotten (K-2).
"""

import hashlib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from hsm_endorser.custody.catalogue import CATALOGUE
from hsm_endorser.errors import ConfigError
from protocol import custody
from protocol.custody import Row, Verdict

STRICT: Final = "strict"
SUFFIX: Final = ".toml"
MAX_BYTES: Final = 256 << 10

Level = Literal["required", "informative"]
Severity = Literal["critical", "high", "medium", "low"]
SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "high", "medium", "low")
"""Gravest first."""

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Sentence = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
FlagName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Z][A-Z0-9_]{0,63}\Z")]
T = TypeVar("T")


class ProfileError(ConfigError):
    """A profile that cannot be used; the message names the file, the line where it can be told, and the field."""

    code = "bad-profile"


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that controls come from, and where it can be read."""

    title: Sentence
    where: Sentence


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A control of a standard: the source, its section there, and what it asks, in short."""

    source: Word
    section: Word
    asks: Sentence


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one check counts. A failure of an informative one is shown and is no finding."""

    level: Level
    severity: Severity
    controls: tuple[Word, ...] = ()
    untested: Literal["finding", "noted"] = "noted"
    """What it is when nothing of a required check could be tried on a target: a finding, or noted in the report."""

    @property
    def required(self) -> bool:
        """Whether a failure is a finding."""
        return self.level == "required"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A profile, read. `digest` is the SHA-256 of its file."""

    name: str
    title: str
    digest: str
    text: str
    """The file itself."""
    checks: Mapping[str, Check]
    sources: Mapping[str, Source]
    controls: Mapping[str, Control]
    token_flags: Mapping[str, bool]
    """Flags of CK_TOKEN_INFO by their name without `CKF_`, and what they must be; others are only shown."""
    key_attributes: Mapping[str, bool]
    """Attributes of a private key by their name without `CKA_`, and what they must be."""

    @property
    def reference(self) -> custody.Profile:
        """As a custody statement names it."""
        return custody.Profile(self.name, self.digest)

    def check(self, check_id: str) -> Check:
        """How a check counts; raises `KeyError` for one that is not in the catalogue."""
        return self.checks[check_id]

    def findings(self, rows: Iterable[Row]) -> list[Row]:
        """The rows of required checks that failed, and those of which nothing on their target could be tried though
        the profile wants that.
        """
        found = list(rows)
        tried = {(row.check, row.target) for row in found if row.verdict != "not-tested"}
        return [row for row in found if self._is_finding(row, tried=(row.check, row.target) in tried)]

    def _is_finding(self, row: Row, *, tried: bool) -> bool:
        check = self.checks.get(row.check)
        if check is None:  # a statement of a later release: what it calls a failure is one
            return row.verdict == "fail"
        return check.required and (row.verdict == "fail" or (check.untested == "finding" and not tried))

    def judge(self, rows: Iterable[Row]) -> Verdict:
        """The verdict over rows: fail when a required check failed, else not tested when one of those that must be
        tried was not (or when there are no rows at all), else pass.
        """
        every = list(rows)
        findings = {row.verdict for row in self.findings(every)}
        if "fail" in findings:
            return "fail"
        return "not-tested" if findings or not every else "pass"


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    title: Sentence
    sources: dict[str, Any] = {}
    controls: dict[str, Any] = {}
    token: dict[str, Any] = {}
    key: dict[str, Any] = {}
    checks: dict[str, Any] = {}


class _Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    flags: dict[FlagName, bool] = {}


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    attributes: dict[FlagName, bool] = {}


def names() -> tuple[str, ...]:
    """The profiles that come with hsm-endorser."""
    files = (resources.files(__package__) / "profiles").iterdir()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX)))


def load(name: str = STRICT, *, known: Collection[str] | None = None) -> Profile:
    """The profile with a name, or in a file: whatever ends in `.toml` or contains a `/` is a path.

    `known` are the ids of all checks, those of the catalogue by default. Raises `ProfileError`.
    """
    if known is None:
        known = CATALOGUE
    if name.endswith(SUFFIX) or "/" in name:
        path = Path(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ProfileError(f"the profile {path} cannot be read: {error.strerror}") from None
        profile = parse(data, str(path), known)
        if profile.name in names() and by_digest(profile.digest) is None:
            raise ProfileError(
                f"{path}: name: {profile.name!r} is a profile of hsm-endorser, and this is another; name it otherwise"
            )
        return profile
    if name not in names():
        raise ProfileError(
            f"there is no profile {name!r}: there are {', '.join(names())}; one of your own is named by its file, "
            f"such as ./mine{SUFFIX}"
        )
    return parse((resources.files(__package__) / "profiles" / f"{name}{SUFFIX}").read_bytes(), f"{name}{SUFFIX}", known)


def by_digest(digest: str, *, known: Collection[str] | None = None) -> Profile | None:
    """The profile of ours whose file has this digest: the one that a statement was judged by."""
    return next((profile for name in names() if (profile := load(name, known=known)).digest == digest), None)


def parse(data: bytes, where: str, known: Collection[str]) -> Profile:
    """The profile in `data`; `where` is the file for messages. Raises `ProfileError`."""
    if len(data) > MAX_BYTES:
        raise ProfileError(f"{where}: a profile has at most {MAX_BYTES >> 10} KiB")
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{where}: byte {error.start} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where}: {error}") from None
    return _Reader(where, text, document).profile(hashlib.sha256(data).hexdigest(), known)


class _Reader:
    """Turns a document into a profile; every refusal says where in the file."""

    def __init__(self, where: str, text: str, document: dict[str, Any]) -> None:
        self._where = where
        self._text = text
        self._lines = text.splitlines()
        self._document = document

    def profile(self, digest: str, known: Collection[str]) -> Profile:
        head = self._convert(self._document, _Head, "")
        sources = {name: self._convert(each, Source, f"sources.{name}") for name, each in head.sources.items()}
        controls = {name: self._convert(each, Control, f"controls.{name}") for name, each in head.controls.items()}
        checks = {name: self._convert(each, Check, f"checks.{name}") for name, each in head.checks.items()}
        for name, control in controls.items():
            self._require_named(control.source, sources, f"controls.{name}", "source", "[sources.{}]")
        for name, check in checks.items():
            if name not in known:
                raise self._error(f"checks.{name}", f"there is no check {name!r}; {_nearest(name, known)}")
            for wanted in check.controls:
                self._require_named(wanted, controls, f"checks.{name}", "control", '[controls."{}"]')
        missing = sorted(set(known) - checks.keys())
        if missing:
            raise self._error(
                "checks",
                f"{len(missing)} of {len(known)} checks are missing: {', '.join(missing)}; "
                'write [checks."…"] for each, level = "informative" where it is no finding',
            )
        return Profile(
            name=head.name,
            title=head.title,
            digest=digest,
            text=self._text,
            checks=MappingProxyType(checks),
            sources=MappingProxyType(sources),
            controls=MappingProxyType(controls),
            token_flags=MappingProxyType(self._convert(head.token, _Token, "token").flags),
            key_attributes=MappingProxyType(self._convert(head.key, _Key, "key").attributes),
        )

    def _convert(self, value: object, kind: type[T], field: str) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            reason, _, at = str(error).partition(" - at ")
            inner = at.strip("`").removeprefix("$").removeprefix(".")
            raise self._error(field, reason, inner) from None

    def _require_named(self, name: str, among: Collection[str], field: str, what: str, form: str) -> None:
        if name not in among:
            raise self._error(field, f"{what} {name!r} is not defined here; write {form.format(name)}")

    def _error(self, field: str, reason: str, inner: str = "") -> ProfileError:
        line = self._line(field, inner.partition("[")[0].rpartition(".")[2])
        path = ".".join(part for part in (_quoted(field), inner) if part)
        named = f"{path}: " if path else ""
        return ProfileError(f"{self._where}{f':{line}' if line else ''}: {named}{reason}")

    def _line(self, field: str, key: str) -> int:
        """The line of a table, or of the key in it; 0 where it cannot be told. TOML readers keep no lines."""
        kind, _, name = field.partition(".")
        start = 0
        if name:
            header = re.compile(rf"""\s*\[\s*{re.escape(kind)}\s*\.\s*["']?{re.escape(name)}["']?\s*\]""")
            start = next((number for number, line in enumerate(self._lines, 1) if header.match(line)), 0)
        elif kind:
            header = re.compile(rf"\s*\[\s*{re.escape(kind)}\s*[\].]")
            start = next((number for number, line in enumerate(self._lines, 1) if header.match(line)), 0)
        if not key:
            return start
        wanted = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
        for number, line in enumerate(self._lines[start:], start + 1):
            if line.lstrip().startswith("["):
                break
            if wanted.match(line):
                return number
        return start


def _quoted(field: str) -> str:
    kind, dot, name = field.partition(".")
    return f'{kind}."{name}"' if dot else kind


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib  # noqa: PLC0415  for a refusal alone

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"do you mean {close[0]!r}?" if close else "see docs/custody.md for all of them"
