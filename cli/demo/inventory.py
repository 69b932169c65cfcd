"""The software that is installed on this machine: real records for the evidence contract."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

DPKG_INFO: Final = Path("/var/lib/dpkg/info")
SECONDS: Final = 60


class Package(msgspec.Struct, frozen=True):
    """An installed package; `digest` is SHA-256 over what the package manager recorded of its files."""

    source: str
    name: str
    version: str
    digest: str

    def wish(self) -> dict[str, Any]:
        """The arguments of its evidence record."""
        return {
            "subject": f"{self.source}/{self.name}/{self.version}"[:256],
            "digest": self.digest,
            "attributes": {"name": self.name, "version": self.version, "source": self.source},
        }


def packages() -> list[Package]:
    """All installed packages, by the package manager that is there: dpkg, rpm, or Python's own."""
    for source in (_dpkg, _rpm, _python):
        found = {(package.name, package.version): package for package in source()}
        if found:
            return list(found.values())
    return []


def _dpkg() -> Iterator[Package]:
    query = r"${db:Status-Abbrev}\t${binary:Package}\t${Version}\n"
    for line in _run("dpkg-query", "--show", "--showformat", query):
        status, name, version = line.split("\t")
        if status.startswith("ii"):
            yield Package("dpkg", name, version, _digest(_dpkg_files(name)))


def _dpkg_files(name: str) -> Iterator[bytes]:
    for suffix in ("list", "md5sums", "conffiles"):
        path = DPKG_INFO / f"{name}.{suffix}"
        if path.is_file():
            yield path.read_bytes()


def _rpm() -> Iterator[Package]:
    for line in _run("rpm", "-qa", "--queryformat", r"%{NAME}.%{ARCH}\t%{VERSION}-%{RELEASE}\t%{SHA256HEADER}\n"):
        name, version, header = line.split("\t")
        yield Package("rpm", name, version, _digest([header.encode()]))


def _python() -> Iterator[Package]:
    for distribution in metadata.distributions():
        parts = (distribution.read_text(file) or "" for file in ("METADATA", "RECORD"))
        name = distribution.metadata["Name"]
        yield Package("python", name, distribution.version, _digest(part.encode() for part in parts))


def _run(program: str, *arguments: str) -> list[str]:
    found = shutil.which(program)
    if found is None:
        return []
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def _digest(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
