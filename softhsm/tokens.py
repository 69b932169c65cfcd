"""Makes SoftHSM2 tokens. PINs are typed into `softhsm2-util` on a pseudo-terminal: they never stand in arguments
or in the environment, where other processes could read them (requirement S-6).
"""

import os
import pty
import re
import secrets
import select
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

from softhsm.installation import Installation, SoftHSMError, find

SECONDS: Final = 20.0
"""How long `softhsm2-util` may take."""
_SERIAL: Final = re.compile(r"^\s*Serial number:\s*(\S+)\s*$", re.MULTILINE)
_PROMPT: Final = re.compile(rb"(?:re)?enter (SO|user) PIN: ?$", re.IGNORECASE)


class CreatedToken(msgspec.Struct, frozen=True):
    """A token: its RFC 7512 URI (module and PIN file included), and the environment that its module needs."""

    uri: str
    environment: dict[str, str]
    serial: str


def create_pin_file(path: Path) -> None:
    """Write a random PIN into a new file that its owner alone can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(16) + "\n")


def create_token(
    directory: Path, label: str, pin_file: Path, so_pin_file: Path, *, installation: Installation | None = None
) -> CreatedToken:
    """Initialise a token named `label` in a store of its own under `directory`.

    Writes `softhsm2.conf` and `tokens/` there; several tokens may share a directory. Blocks for a few hundredths
    of a second. Raises `SoftHSMError`.
    """
    installation = installation or find()
    directory = directory.resolve()
    environment = {"SOFTHSM2_CONF": str(_write_configuration(directory))}
    before = _serials(installation, environment)
    pins = {b"user": _pin(pin_file), b"so": _pin(so_pin_file)}
    _initialise(installation, environment, label, pins)
    new = _serials(installation, environment) - before
    if len(new) != 1:
        raise SoftHSMError(f"softhsm2-util made {len(new)} tokens in {directory} where one was expected")
    serial = new.pop()
    quote = urllib.parse.quote
    uri = (
        f"pkcs11:token={quote(label, safe='')};serial={quote(serial, safe='')}"
        f"?module-path={quote(str(installation.module), safe='/')}"
        f"&pin-source=file:{quote(str(pin_file.resolve()), safe='/')}"
    )
    return CreatedToken(uri, environment, serial)


def _write_configuration(directory: Path) -> Path:
    store = directory / "tokens"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "softhsm2.conf"
    path.write_text(
        f"directories.tokendir = {store}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
    )
    return path


def _pin(path: Path) -> bytes:
    pin = path.read_bytes().removesuffix(b"\n")
    if not 4 <= len(pin) <= 255 or b"\n" in pin:  # noqa: PLR2004  SoftHSM's own limits
        raise SoftHSMError(f"the PIN in {path} must be one line of 4 to 255 bytes")
    return pin


def _environment(extra: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", **extra}


def _serials(installation: Installation, environment: dict[str, str]) -> set[str]:
    shown = subprocess.run(
        [installation.util, "--module", installation.module, "--show-slots"],
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if shown.returncode:
        raise SoftHSMError(f"softhsm2-util --show-slots failed: {(shown.stderr or shown.stdout).strip()}")
    # A slot without a token shows an empty serial number, which the pattern does not match.
    return set(_SERIAL.findall(shown.stdout))


def _initialise(installation: Installation, environment: dict[str, str], label: str, pins: dict[bytes, bytes]) -> None:
    terminal, its_end = pty.openpty()
    try:
        process = subprocess.Popen(
            [installation.util, "--module", installation.module, "--init-token", "--free", "--label", label],
            env=_environment(environment),
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            start_new_session=True,
        )
        os.close(its_end)
        try:
            said = _answer_prompts(terminal, pins)
            status = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(terminal)
    if status:
        raise SoftHSMError(f"softhsm2-util could not initialise the token {label!r}: {said.strip()}")


def _answer_prompts(terminal: int, pins: dict[bytes, bytes]) -> str:
    """Type each PIN where it is asked for; return what the program said last (it echoes stars, never a PIN)."""
    deadline = time.monotonic() + SECONDS
    said = b""
    while True:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SoftHSMError(f"softhsm2-util said nothing for {SECONDS:.0f} s after {said[-80:]!r}")
        try:
            part = os.read(terminal, 4096)
        except OSError:  # EIO: the program has closed its end
            part = b""
        if not part:
            return said.decode(errors="replace")
        said += part
        if prompt := _PROMPT.search(said):
            said = b""
            os.write(terminal, pins[prompt[1].lower()] + b"\n")
