"""`hsm-endorser client`: how a client gets its identity from the CA (requirement E-1), and how it loses it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from cli import client_renewal, client_request, registry, revoking
from cli.api import Management
from cli.client_renewal import ToSign
from cli.errors import UsageError
from cli.keys import SoftwareKey
from cli.operators_door import open_door
from cli.output import JsonFlag, Output
from cli.plan import Layout, checked_name, read_network

app = typer.Typer(help="Clients: register, approve, renew, revoke, remove.", no_args_is_help=True)

_OR_A_SECRET: Final = "start the network (hsm-endorser network up DIR), or bring a secret: --secret-file FILE"
INVITATION_SECONDS: Final = 300
REGISTRATION_SECONDS: Final = 30.0

NetworkFolder = Annotated[Path, typer.Option("--network", help="The network folder.")]
RequestFile = Annotated[
    Path | None, typer.Option("--csr", help="A certificate signing request that was made elsewhere (PEM or DER).")
]
CertificateFile = Annotated[
    Path | None, typer.Option("--output", help="Where to write the certificate; beside the CSR, if none.")
]
ClientName = Annotated[str, typer.Argument(help="The client's name: ASCII letters, digits, . _ -")]


@app.command()
def register(
    *,
    name: ClientName,
    network: NetworkFolder,
    secret_file: Annotated[
        Path | None, typer.Option(help="A file with the one-time enrolment secret that the operator gave.")
    ] = None,
    ask: Annotated[bool, typer.Option("--ask", help="Use no secret; wait for the operator's approval.")] = False,
    csr: RequestFile = None,
    certificate: CertificateFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key, have the CA certify it, and wait until the client is on the chain's whitelist.

    Without a secret file, the operator of this folder invites the client through the control socket. With --ask
    an operator must approve it (client approve NAME); run the same command again afterwards. With --csr the key
    is made elsewhere (openssl req -new -key alice.key -subj /CN=alice -out alice.csr) and stays there.
    """
    output = Output(as_json=as_json)
    layout = Layout(network)
    read_network(network)
    checked_name("a client", name, "choose another name")
    if csr is not None:
        request = client_request.read(csr)
        secret = None if ask else _secret(layout, name, secret_file)
        with Management(layout.socket("management")) as management:
            told = management.enrol(name, request.pem, secret)
        _tell_foreign(output, layout, name, told, lambda pem: request.write_certificate(pem, certificate))
        return
    _require_new(layout, name)
    secret = None if ask else _secret(layout, name, secret_file)
    answer = enrol(layout, name, secret)
    if answer is None:
        output.say(f"{name} waits for approval: hsm-endorser client approve {name} --network {network}")
        output.say("Run this command again after that.")
        output.result({"client": name, "registered": False, "key": str(layout.client_key(name))})
        return
    output.say(f"{name} is registered in block {answer['height']}.")
    output.say(f"Its key: {layout.client_key(name)}; its certificate: {layout.client_certificate(name)}")
    output.result({"client": name, "registered": True, **answer})


@app.command()
def enrolments(network: NetworkFolder, as_json: JsonFlag = False) -> None:
    """List the requests that wait for an operator's decision."""
    output = Output(as_json=as_json)
    with open_door(Layout(network)) as control:
        waiting = control.enrolments()
    if waiting:
        columns = sorted({key for each in waiting for key in each if key != "csr"})
        output.table("Waiting for a decision", columns, [[each.get(key, "") for key in columns] for each in waiting])
    else:
        output.say("Nobody waits.")
    output.result({"enrolments": waiting})


@app.command()
def approve(name: ClientName, network: NetworkFolder, as_json: JsonFlag = False) -> None:
    """Approve a request: the CA certifies the client and puts it on the whitelist."""
    _decide(Output(as_json=as_json), name, network, "approve")


@app.command()
def refuse(name: ClientName, network: NetworkFolder, as_json: JsonFlag = False) -> None:
    """Refuse a request."""
    _decide(Output(as_json=as_json), name, network, "refuse")


@app.command()
def renew(
    name: ClientName,
    network: NetworkFolder,
    csr: RequestFile = None,
    certificate: CertificateFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a new key in the place of a client's key: both announce it, and the CA certifies it (requirement K-12).

    The old key signs nothing more from then on, and its certificate is on the list of revoked ones as superseded.
    With --csr the new key is elsewhere: what it, or an old key that is elsewhere, has to sign is written beside the
    CSR; sign it as told, and run the same command again.
    """
    output, layout = Output(as_json=as_json), Layout(network)
    read_network(network)
    try:
        if csr is None:
            renewed = client_renewal.with_new_key(layout, name)
        else:
            renewed = client_renewal.with_request(layout, name, client_request.read(csr), certificate)
    except client_renewal.UnsignedError as waiting:
        _tell_missing(output, name, waiting.missing)
        return
    output.say(f"{name} has a new key" + (f" since block {renewed.height}." if renewed.height else "."))
    output.plain(f"Its certificate: {renewed.certificate}")
    output.result({"client": name, "renewed": True, **msgspec.to_builtins(renewed)})


@app.command()
def revoke(
    *,
    name: ClientName,
    network: NetworkFolder,
    reason: Annotated[str, typer.Option(help=f"One of: {', '.join(revoking.REASONS)}.")],
    suspected: Annotated[
        str, typer.Option(help="From when on others may have had the key: 2026-11-21T10:00:00Z, or ms. Now, if none.")
    ] = "",
    administrator: Annotated[
        list[str] | None, typer.Option("--administrator", help="Who signs; again for each. As many as needed, if none.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Refuse a client's key from the next block on, for ever; its certificate is on the CA's next list (K-14)."""
    row = revoking.find(network, f"client/{name}")
    revoking.revoke(Output(as_json=as_json), revoking.Wish(network, row, reason, suspected, tuple(administrator or ())))


@app.command()
def remove(name: ClientName, network: NetworkFolder, as_json: JsonFlag = False) -> None:
    """Take a client off the whitelist, signed by as many administrators as the network asks for."""
    registry.change(Output(as_json=as_json), network, "remove", {"keys": [f"client/{name}"]})


def enrol(layout: Layout, name: str, secret: str | None) -> dict[str, Any] | None:
    """Enrol `name` with its key (made where there is none); None while an operator must approve.

    Raises `UsageError` for one that is registered already, `ProblemError` when the CA refuses.
    """
    _require_new(layout, name)
    with Management(layout.socket("management")) as management:
        answer = management.enrol(name, _request(layout, name), secret)
        if "certificate" not in answer:
            return None
        status = management.follow(answer["transaction"], seconds=REGISTRATION_SECONDS)
    registry.require_committed(status)
    certificate = layout.client_certificate(name)
    certificate.write_text(answer["certificate"])
    return {
        "key": str(layout.client_key(name)),
        "certificate": str(certificate),
        "height": status.height,
        "transaction": status.transaction,
    }


def _tell_foreign(
    output: Output, layout: Layout, name: str, answer: dict[str, Any], write: Callable[[str], Path]
) -> None:
    """What became of the enrolment of a client whose key is elsewhere."""
    if "certificate" not in answer:
        output.say(f"{name} waits for approval: hsm-endorser client approve {name} --network {layout.folder}")
        output.say("Run this command again after that.")
        output.result({"client": name, "registered": False})
        return
    with Management(layout.socket("management")) as management:
        status = management.follow(answer["transaction"], seconds=REGISTRATION_SECONDS)
    registry.require_committed(status)
    path = str(write(answer["certificate"]))
    output.say(f"{name} is registered in block {status.height}.")
    output.plain(f"Its certificate: {path}")
    told = {"client": name, "registered": True, "certificate": path}
    output.result({**told, "height": status.height, "transaction": status.transaction})


def _tell_missing(output: Output, name: str, missing: list[ToSign]) -> None:
    output.plain("To be signed where the keys are:")
    for each in missing:
        output.plain(f"  {each.command()}")
    output.plain("Then run this command again.")
    told = [{"key": each.whose, "message": str(each.message), "signature": str(each.signature)} for each in missing]
    output.result({"client": name, "renewed": False, "to_sign": told})


def invite(layout: Layout, name: str) -> str:
    """A one-time enrolment secret, from the operator's own door."""
    with open_door(layout, _OR_A_SECRET) as control:
        return str(control.invite(name, INVITATION_SECONDS)["secret"])


def _require_new(layout: Layout, name: str) -> None:
    certificate = layout.client_certificate(name)
    if certificate.exists():
        raise UsageError(f"{name} has a certificate already: {certificate}", advice="choose another name")


def _request(layout: Layout, name: str) -> str:
    """The client's request, the same each time it asks: the CA keeps to the one that it saw first."""
    key_file, request_file = layout.client_key(name), layout.client_request(name)
    key_file.parent.mkdir(mode=0o700, exist_ok=True)
    if not key_file.exists():
        request_file.unlink(missing_ok=True)
        SoftwareKey.create(key_file)
    if not request_file.exists():
        scratch = request_file.with_suffix(".csr.new")
        scratch.write_text(SoftwareKey.load(key_file).request(name))
        scratch.rename(request_file)
    return request_file.read_text()


def _secret(layout: Layout, name: str, file: Path | None) -> str:
    if file is None:
        return invite(layout, name)
    try:
        return file.read_text().strip()
    except OSError as error:
        raise UsageError(f"cannot read the secret in {file}: {error.strerror}") from None


def _decide(output: Output, name: str, network: Path, decision: str) -> None:
    with open_door(Layout(network)) as control:
        answer = control.decide(name, decision)
    output.say(f"{name}: {decision}d.")
    output.result({"client": name, "decision": decision, **answer})
