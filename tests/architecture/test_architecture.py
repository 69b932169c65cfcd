"""Who may import whom, held by reading the imports of every module."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocol", "transport", "ledger", "hsm_endorser", "management", "peer", "softhsm", "cli")
SERVICES = ("hsm_endorser", "management", "peer")
MAY_IMPORT = {
    "protocol": (),
    "transport": ("protocol",),
    "ledger": ("protocol",),
    "hsm_endorser": ("protocol", "transport", "ledger"),
    "management": ("protocol", "transport", "ledger"),
    "peer": ("protocol", "transport", "ledger"),
    "softhsm": (),
    "cli": ROOMS,
}
NO_IO = frozenset(
    """
    aiohttp asyncio concurrent datetime fcntl glob http httpx httpx2 io logging multiprocessing os pathlib pickle
    platform random requests secrets select selectors shutil signal socket sqlalchemy sqlite3 ssl starlette structlog
    subprocess sys tempfile threading time urllib uuid uvicorn
    """.split()  # noqa: SIM905  eighty quoted words are harder to read
)
WITHOUT_TOKENS = ("protocol", "transport", "ledger", "management", "peer")


def _modules(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert found
    return found


def _imports(path: Path) -> Iterator[str]:
    """Every name that a module imports, wherever in it: `a.b` and, for `from a import b`, `a.b` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


def _attributes(path: Path) -> set[str]:
    """Every `name.attribute` of a module."""
    return {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


def _named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_stands_before_it(room: str) -> None:
    """Protocol ← ledger ← services ← cli, and transport beside the ledger; the services do not know each other."""
    forbidden = set(ROOMS) - {room, *MAY_IMPORT[room]}
    breaches = {str(path.relative_to(ROOT)): sorted(_tops(path) & forbidden) for path in _modules(room)}
    assert {path: rooms for path, rooms in breaches.items() if rooms} == {}


@pytest.mark.requirement("K-8")
def test_two_programs_know_pkcs11() -> None:
    """The worker that signs, the probe worker that attacks (ADR 6), and the room that makes tokens for tests."""
    knowing = [path for path in _modules(*ROOMS) if "pkcs11" in _tops(path)]
    others = [name for name in _named(knowing) if not name.startswith("softhsm/")]
    assert others == ["hsm_endorser/custody/probe_worker.py", "hsm_endorser/token_worker.py"]


@pytest.mark.requirement("K-8")
def test_what_signs_does_not_know_the_probe_worker() -> None:
    """What can do a token harm is used by audits: no module of a service speaks to it itself."""
    knowing = _named(
        [
            path
            for path in _modules(*SERVICES)
            if any(name.startswith("hsm_endorser.custody.probe") for name in _imports(path))
        ]
    )
    assert knowing
    assert [name for name in knowing if Path(name).parent.name not in {"custody", "compliance"}] == []


def test_fastapi_stands_in_app_files_alone() -> None:
    """HTTP statuses are chosen where FastAPI is known, and nowhere else."""
    knowing = _named([path for path in _modules(*ROOMS) if "fastapi" in _tops(path)])
    assert {Path(name).name for name in knowing} == {"app.py"}


def test_arguments_and_environment_are_read_in_one_place() -> None:
    """In cli and in config.py: what a service does is told to it."""
    reading = [
        path
        for path in _modules(*ROOMS)
        if _attributes(path) & {"os.environ", "os.getenv", "sys.argv", "os.environb"}
        or set(_imports(path)) & {"os.environ", "os.getenv", "sys.argv"}
    ]
    assert [
        name
        for name in _named(reading)
        if not (name.startswith("cli/") or name.endswith("/config.py") or name in READS_ENVIRONMENT)
    ] == []


READS_ENVIRONMENT = {
    "hsm_endorser/custody/probe_worker.py": "a process of its own, as the token worker is",
    "hsm_endorser/token_worker.py": "a process of its own: its parent names the inherited socket in an argument",
    "softhsm/tokens.py": "hands the environment on to softhsm2-util",
}
"""Further modules that read the environment, each with its reason."""


def test_the_protocol_does_no_io() -> None:
    """It is pure: no files, no network, no clock, no chance, no processes."""
    breaches = {path.name: sorted(_tops(path) & NO_IO) for path in _modules("protocol")}
    assert {name: modules for name, modules in breaches.items() if modules} == {}
    opening = [
        path.name
        for path in _modules("protocol")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}
    ]
    assert opening == []


@pytest.mark.requirement("K-8")
def test_software_keys_are_their_owners_alone() -> None:
    """Private keys in memory exist in cli (clients' and administrators' own) and nowhere else."""
    words = ("PrivateKey", "private_key", "generate_private", "derive_private")
    holding = [
        path
        for path in _modules(*(room for room in ROOMS if room != "cli"))
        if any(name.startswith("cryptography") and any(word in name for word in words) for name in _imports(path))
        or any(
            any(word in attribute for word in words)
            and attribute.partition(".")[0] in {"ec", "rsa", "ed25519", "serialization", "dsa"}
            for attribute in _attributes(path)
        )
    ]
    assert [name for name in _named(holding) if name not in NAMES_PRIVATE_KEYS] == []


NAMES_PRIVATE_KEYS = {
    "protocol/x509_tbs.py": "X.509 builders ask for a private key: a stand-in that has none; a token signs",
}
"""Modules that name a private key type of `cryptography` without holding one, each with its reason."""


@pytest.mark.requirement("K-8")
def test_no_room_makes_or_loads_a_software_key() -> None:
    """Not even those that name a private key's type have a function that could give them one."""
    making = re.compile(
        r"(generate|derive)_private_key|from_private_bytes|load_(pem|der|ssh)_private_key|PrivateKey\.generate"
    )
    rooms = [room for room in ROOMS if room not in {"cli", "softhsm"}]
    assert _named([path for path in _modules(*rooms) if making.search(path.read_text(encoding="utf-8"))]) == []
    assert making.search((ROOT / "tests/software_keys.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", WITHOUT_TOKENS)
def test_a_room_without_tokens_imports_without_pkcs11(room: str) -> None:
    """Every module of it loads in an interpreter in which python-pkcs11 cannot be imported."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in _modules(room)
        if "migrations" not in path.parts and path.name != "__main__.py"
    ]
    program = (
        "import importlib, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'pkcs11': raise ImportError('pkcs11 is not here')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "try:\n"
        "    import pkcs11\n"
        "except ImportError:\n"
        "    pass\n"
        "else:\n"
        "    raise SystemExit('the block does not hold')\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "print(len(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.requirement("S-1")
def test_connections_and_listeners_are_opened_in_one_room() -> None:
    """httpx2, uvicorn and sockets are known to transport alone, so that mutual TLS comes to one place."""
    knowing = _named(
        [path for path in _modules(*ROOMS) if {"uvicorn", "socket", "ssl", "requests", "httpx"} & _tops(path)]
    )
    assert [name for name in knowing if not name.startswith("transport/") and name not in OPENS_SOCKETS] == []


OPENS_SOCKETS = {
    "hsm_endorser/worker_program.py": "the inherited end of a socket pair, between two processes of one service",
    "hsm_endorser/worker_process.py": "makes that socket pair",
    "cli/api.py": "looks whether anybody listens at a Unix socket, to say so clearly",
}
"""Further modules that open sockets, each with its reason."""


def test_no_room_is_a_drawer() -> None:
    """There is no module for what has no place."""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "manager.py", "misc.py", "shared.py"}
    assert [name for name in _named(_modules(*ROOMS)) if Path(name).name in drawers] == []
