"""What the machine can do and what a process has used: the limit that figures are held against."""

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.keys import PublicKey

THREADS: Final = 2
SIGNED: Final = 64
"""Different signatures that are verified in turn, so that no result is remembered anywhere."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_KIB: Final = 1024


class Usage(msgspec.Struct, frozen=True):
    """A service with the processes that it started: CPU seconds so far, resident memory now, in bytes."""

    cpu: float
    resident: int


def verification_rate(seconds: float) -> float:
    """P-256 verifications a second in two threads, with this product's own verification and a key that is loaded."""
    private = ec.generate_private_key(ec.SECP256R1())  # a measurement's own key: it signs nothing but this
    key = PublicKey.of(private.public_key())
    messages = [hashlib.sha256(bytes([number])).digest() for number in range(SIGNED)]
    pairs = [(private.sign(each, ec.ECDSA(hashes.SHA256())), each) for each in messages]
    counts = [0] * THREADS
    end = time.perf_counter() + seconds

    def verify(number: int) -> None:
        while time.perf_counter() < end:
            for signature, message in pairs:
                key.verify(signature, message)
            counts[number] += len(pairs)

    threads = [threading.Thread(target=verify, args=(number,)) for number in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def usage(pid: int) -> Usage:
    """What a process and its descendants have used, from /proc; zero for one that is gone."""
    cpu, resident = 0.0, 0
    for each in _family(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except OSError:
            continue
        cpu += (int(fields[11]) + int(fields[12])) / _TICKS
        resident += pages * os.sysconf("SC_PAGE_SIZE")
    return Usage(cpu, resident)


def disk(folder: Path) -> int:
    """The bytes that the files under a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def describe() -> str:
    """The machine in one line: processors by name, memory."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    total = int(Path("/proc/meminfo").read_text().split()[1]) / _KIB / _KIB
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else 'processor'}, {total:.1f} GiB"


def _family(pid: int) -> list[int]:
    family = [pid]
    for each in family:
        try:
            children = Path(f"/proc/{each}/task/{each}/children").read_text().split()
        except OSError:
            continue
        family.extend(map(int, children))
    return family
