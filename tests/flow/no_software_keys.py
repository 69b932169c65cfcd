"""Makes `cryptography` unable to create a private key, in every Python process that inherits an environment.

The folder that `forbid` fills holds a `sitecustomize` module: the interpreter imports it before anything else. Each
process leaves a file that says that it was there, and one for every private key that it asked for.
"""

from pathlib import Path

SITECUSTOMIZE = """
import os, sys, traceback
from pathlib import Path

HERE = Path(__file__).parent

def forbidden(name):
    def refuse(*_arguments, **_options):
        (HERE / f"asked-{os.getpid()}-{name}").write_text(str().join(traceback.format_stack()))
        raise RuntimeError(f"a software private key was asked for: {name}")
    return refuse

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dh, dsa, ec, ed448, ed25519, rsa, x448, x25519
from cryptography.hazmat.primitives.serialization import pkcs12, ssh

count = 0
for place, names in (
    (ec, ("generate_private_key", "derive_private_key")),
    (rsa, ("generate_private_key",)),
    (dsa, ("generate_private_key",)),
    (serialization, ("load_pem_private_key", "load_der_private_key", "load_ssh_private_key")),
    (ssh, ("load_ssh_private_key",)),
    (pkcs12, ("load_key_and_certificates", "load_pkcs12")),
    (ed25519.Ed25519PrivateKey, ("generate", "from_private_bytes")),
    (ed448.Ed448PrivateKey, ("generate", "from_private_bytes")),
    (x25519.X25519PrivateKey, ("generate", "from_private_bytes")),
    (x448.X448PrivateKey, ("generate", "from_private_bytes")),
):
    for name in names:
        assert hasattr(place, name), (place, name)
        setattr(place, name, forbidden(name))
        count += 1
from cryptography.hazmat.bindings._rust import openssl
for module in ("ec", "rsa", "dsa", "dh", "ed25519", "ed448", "x25519", "x448", "keys"):
    place = getattr(openssl, module)
    for name in dir(place):
        if "private" in name.lower() and callable(getattr(place, name)) and not isinstance(getattr(place, name), type):
            setattr(place, name, forbidden(f"{module}.{name}"))
            count += 1
        elif name == "generate_key" or name == "from_private_bytes":
            setattr(place, name, forbidden(f"{module}.{name}"))
            count += 1
(HERE / f"here-{os.getpid()}").write_text(f"{count} {sys.orig_argv}")
"""


def forbid(folder: Path) -> dict[str, str]:
    """Fill `folder`; the environment that its processes need."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}


def was_in(folder: Path) -> dict[int, str]:
    """The processes that could make no private key: their command lines by process id."""
    return {int(path.name.removeprefix("here-")): path.read_text() for path in folder.glob("here-*")}


def asked(folder: Path) -> list[str]:
    """What was asked for in vain, with the stack of who asked."""
    return [f"{path.name}\n{path.read_text()}" for path in folder.glob("asked-*")]
