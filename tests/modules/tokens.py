"""The tokens of the test matrix: one function for each module, from Debian's packages to an initialised token.

Each keeps its state in the folder that it is given, starts what the module needs, and ends it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from protocol.keys import Scheme
from softhsm import installation
from softhsm.tokens import create_token
from tests.modules import module_token
from tests.modules.daemon import listening, program, run, running
from tests.modules.module_token import LABEL, ModuleToken, create_pin, uri
from tests.modules.own_mounts import mounted

P256: Final[Scheme] = "ecdsa-p256-sha256"
RSA: Final[Scheme] = "rsa-pkcs1-sha256"
ED25519: Final[Scheme] = "ed25519"

NSS_PACKAGES: Final = "libnss3 libnss3-tools p11-kit"
TPM_PACKAGES: Final = "libtpm2-pkcs11-1 swtpm tpm2-abrmd libtss2-tcti-swtpm0 libtss2-tcti-tabrmd0 dbus"
OPENCRYPTOKI_PACKAGES: Final = "opencryptoki"
REMOTE_PACKAGES: Final = "p11-kit p11-kit-modules"

INITIALISE: Final = Path(__file__).with_name("initialise.py")
BUS: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""
OPENCRYPTOKI_PLACES: Final = {
    "state": Path("/var/lib/opencryptoki"),
    "run": Path("/run"),
    "memory": Path("/dev/shm"),  # noqa: S108  hidden by a folder of our own
}
SLOT_DAEMON: Final = Path("/var/run/pkcsslotd.socket")
"""As the kernel names it: the path that was bound."""
SOFT_SLOT: Final = "version opencryptoki-3.1\nslot 3\n{\nstdll = libpkcs11_sw.so\n}\n"
FACTORY_SO_PIN: Final = "87654321"  # opencryptoki's, on every machine


@contextlib.contextmanager
def softhsm(folder: Path) -> Iterator[ModuleToken]:
    """SoftHSM2."""
    created = _softhsm_token(folder)
    yield ModuleToken(uri=created[0], environment=created[1], schemes=(P256, RSA, ED25519))


@contextlib.contextmanager
def remote(folder: Path) -> Iterator[ModuleToken]:
    """p11-kit's client and server, over a Unix socket, with a SoftHSM2 token behind."""
    _, environment = _softhsm_token(folder)
    client = module_token.module("p11-kit-client.so", packages=REMOTE_PACKAGES)
    socket = folder / "p11-kit.sock"
    server = [program("p11-kit", REMOTE_PACKAGES), "server", "-f", "-n", socket, "--provider"]
    command = [*server, installation.find().module, f"pkcs11:token={LABEL}"]
    with running(command, ready=partial(listening, socket), log=folder / "server.log", environment=environment):
        yield ModuleToken(
            uri=uri(client, folder / "pin"),
            environment={"P11_KIT_SERVER_ADDRESS": f"unix:path={socket}"},
            schemes=(P256, RSA),
        )


@contextlib.contextmanager
def nss(folder: Path) -> Iterator[ModuleToken]:
    """NSS softokn behind p11-kit's proxy, which gives it the parameters that it wants at C_Initialize."""
    softokn = module_token.module("libsoftokn3.so", packages=NSS_PACKAGES)
    proxy = module_token.module("p11-kit-proxy.so", packages=NSS_PACKAGES)
    database, modules = folder / "database", folder / "modules"
    for each in (database, modules):
        each.mkdir()
    pin = create_pin(folder / "pin")
    run([program("certutil", NSS_PACKAGES), "-N", "-d", f"sql:{database}", "-f", pin])
    parameters = f"configdir='sql:{database}' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
    (modules / "nss.module").write_text(
        f"module: {softokn}\nx-init-reserved: {parameters} dbTokenDescription='{LABEL}'\n"
    )
    with mounted(modules, Path("/usr/share/p11-kit/modules")):
        yield ModuleToken(uri=uri(proxy, pin), environment={}, schemes=(P256, RSA))


@contextlib.contextmanager
def tpm(folder: Path, label: str = LABEL) -> Iterator[ModuleToken]:
    """tpm2-pkcs11 on a software TPM 2.0, behind the resource manager, on a bus of its own."""
    module = module_token.module("libtpm2_pkcs11.so", packages=TPM_PACKAGES)
    state, store, bus = folder / "state", folder / "store", folder / "bus"
    for each in (state, store):
        each.mkdir()
    (folder / "bus.conf").write_text(BUS.format(socket=bus))
    address = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"}
    tpm_socket, control = folder / "tpm", folder / "tpm.ctrl"
    swtpm = [program("swtpm", TPM_PACKAGES), "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server"]
    swtpm += [f"type=unixio,path={tpm_socket}", "--ctrl", f"type=unixio,path={control}"]
    broker = [program("tpm2-abrmd", TPM_PACKAGES), "--session", f"--tcti=swtpm:path={tpm_socket}"]
    broker += ["--max-transients=100"]  # a key stays loaded for the life of its connection
    if os.geteuid() == 0:
        broker.append("--allow-root")
    asked = [program("dbus-send", TPM_PACKAGES), f"--bus=unix:path={bus}", "--print-reply=literal"]
    asked += ["--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.NameHasOwner"]
    dbus = [program("dbus-daemon", TPM_PACKAGES), f"--config-file={folder / 'bus.conf'}", "--nofork", "--nopidfile"]
    with ExitStack() as stack:
        started = [*swtpm, "--flags", "not-need-init,startup-clear"]
        stack.enter_context(running(started, ready=partial(listening, control), log=folder / "swtpm.log"))
        stack.enter_context(running(dbus, ready=partial(listening, bus), log=folder / "bus.log"))

        def answers() -> bool:
            return "true" in run([*asked, "string:com.intel.tss2.Tabrmd"])

        stack.enter_context(running(broker, ready=answers, log=folder / "broker.log", environment=address))
        environment = {**address, "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session", "TPM2_PKCS11_STORE": str(store)}
        pin = _initialise(module, folder, environment, label=label)
        yield ModuleToken(uri=uri(module, pin, label), environment=environment, schemes=(P256,))


@contextlib.contextmanager
def opencryptoki(folder: Path) -> Iterator[ModuleToken]:
    """The soft token of opencryptoki, its daemon and all of its state in a place of its own."""
    module = module_token.module("libopencryptoki.so", packages=OPENCRYPTOKI_PACKAGES)
    with ExitStack() as stack:
        for name, place in OPENCRYPTOKI_PLACES.items():
            (folder / name).mkdir(mode=0o770)
            stack.enter_context(mounted(folder / name, place))
        (folder / "opencryptoki.conf").write_text(SOFT_SLOT)
        stack.enter_context(mounted(folder / "opencryptoki.conf", Path("/etc/opencryptoki/opencryptoki.conf")))
        if os.environ.get("HSM_ENDORSER_OWN_GROUPS") == "1":  # in a user namespace there is one group
            groups = [line for line in Path("/etc/group").read_text().splitlines() if not line.startswith("pkcs11:")]
            (folder / "group").write_text("\n".join([*groups, "pkcs11:x:0:root", ""]))
            stack.enter_context(mounted(folder / "group", Path("/etc/group")))
        for each in ("run/lock/opencryptoki/swtok", "state/swtok/TOK_OBJ"):
            (folder / each).mkdir(parents=True, mode=0o770)
        daemon = [program("pkcsslotd", OPENCRYPTOKI_PACKAGES), "-f"]
        socket = folder / "run" / "pkcsslotd.socket"

        def serves() -> bool:
            return socket.exists() and listening(SLOT_DAEMON)

        stack.enter_context(running(daemon, ready=serves, log=folder / "pkcsslotd.log"))
        (folder / "first-so-pin").write_text(FACTORY_SO_PIN)
        pin = _initialise(module, folder, {}, folder / "first-so-pin")
        yield ModuleToken(uri=uri(module, pin), environment={}, schemes=(RSA,), rsa_bits=2048)


def _softhsm_token(folder: Path) -> tuple[str, dict[str, str]]:
    pin, so_pin = create_pin(folder / "pin"), create_pin(folder / "so-pin")
    created = create_token(folder, LABEL, pin, so_pin)
    return created.uri, created.environment


def _initialise(
    module: Path, folder: Path, environment: dict[str, str], *first_so_pin: Path, label: str = LABEL
) -> Path:
    pin, so_pin = create_pin(folder / "pin"), create_pin(folder / "so-pin")
    run([sys.executable, INITIALISE, module, label, so_pin, pin, *first_so_pin], environment)
    return pin


TOKENS: Final[dict[str, Callable[[Path], AbstractContextManager[ModuleToken]]]] = {
    "SoftHSM2": softhsm,
    "NSS softokn": nss,
    "tpm2-pkcs11 on swtpm": tpm,
    "opencryptoki soft token": opencryptoki,
    "p11-kit remote client": remote,
}
"""By the name that the table has."""
