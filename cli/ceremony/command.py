"""`hsm-endorser ceremony`: plan a key ceremony, check it, run it, verify it (docs/ceremony.md)."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cli import writable
from cli.ceremony.template import template
from cli.errors import CommandError, UsageError
from cli.exit_codes import VERIFICATION_FAILED
from cli.keys import SoftwareKey
from cli.output import JsonFlag, Output
from protocol.keys import PublicKey

app = typer.Typer(help="Key ceremonies: a network that two or more people make together.", no_args_is_help=True)

URI: Final = "pkcs11:"
EXAMPLE_URI: Final = "pkcs11:token={0}?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/hsm/{0}.pin"

PlanArgument = Annotated[Path, typer.Argument(help="The plan, a TOML file.", exists=True, dir_okay=False)]
Holders = Annotated[
    list[str] | None,
    typer.Option(
        "--holder",
        help="NAME or NAME=KEY (a file or a pkcs11: URI): a role holder who is here and signs every step unasked. "
        "Without it each one is asked in turn.",
    ),
]


class CheckFailedError(CommandError):
    """The dry run found what would stop the ceremony."""

    exit_code = VERIFICATION_FAILED
    code = "check-failed"


@app.command("plan")
def make_plan(
    *,
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    network: Annotated[str, typer.Option("--name", help="The network's name; by default the file's.")] = "",
    needed: Annotated[int, typer.Option(min=2, max=32, help="How many role holders sign each step.")] = 2,
    administrator: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=PUBLIC_KEY_FILE; again for each role holder.")
    ] = None,
    device: Annotated[list[str] | None, typer.Option(help="NAME or NAME=URI; again for each device.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a commented plan, to be filled in and read by everybody who will sign."""
    administrators = _pairs(administrator or ["anna", "bert", "carla"], "{0}.pub")
    devices = _pairs(device or ["device-a", "device-b", "device-c"], EXAMPLE_URI)
    text = template(
        file=str(file), network=network or file.stem, needed=needed, administrators=administrators, devices=devices
    )
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already", advice="a plan is never overwritten; choose another name") from None
    output = Output(as_json=as_json)
    output.plain(f"Wrote {file}. Fill it in, then: hsm-endorser ceremony check {file}")
    output.result({"plan": str(file), "administrators": list(administrators), "devices": list(devices)})


@app.command("key")
def make_key(
    *,
    key: Annotated[str, typer.Option("--key", help="A new file for the private key, or a token's pkcs11: URI.")],
    public: Annotated[Path | None, typer.Option(help="Where to write the public key; KEY with .pub.")] = None,
    label: Annotated[str, typer.Option(help="What the key is called on a token.")] = "administrator",
    environment: Annotated[
        list[str] | None, typer.Option("--environment", help="NAME=VALUE that the token's module needs.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a role holder's own key, in a file (mode 0600) or on a token, and write its public half (PEM)."""
    output, on_token = Output(as_json=as_json), key.startswith(URI)
    if on_token and public is None:
        raise UsageError("a key on a token needs --public FILE for its public half")
    path = public or Path(key).with_suffix(".pub")
    if path.exists():
        raise UsageError(f"{path} exists already", advice="choose another --public")
    made = _on_token(output, key, label, environment or []) if on_token else SoftwareKey.create(Path(key)).public
    path.write_bytes(_pem(made))
    output.plain(f"Wrote the public key {made.id} to {path}: it goes into the plan. The private key stays with you.")
    output.result({"public_key": str(path), "key": made.id, "held": key})


@app.command()
def check(plan: PlanArgument, as_json: JsonFlag = False) -> None:
    """Dry run: load the modules, find the tokens, try each PIN once, ask what they can do. Changes nothing."""
    from cli.ceremony import check as dry  # noqa: PLC0415  PKCS#11 is needed from here on
    from cli.ceremony import plan as plans  # noqa: PLC0415
    from cli.ceremony.people import AskedPeople  # noqa: PLC0415

    output = Output(as_json=as_json)
    read = plans.read(plan)
    findings = asyncio.run(dry.check(read, AskedPeople(output), output.warn))
    output.table(
        f"Dry run of {plan}: nothing was changed",
        ["on", "check", "verdict", "seen"],
        [[each.target, each.check, each.verdict, each.said] for each in findings],
    )
    failed = [each for each in findings if each.verdict == "fail"]
    verdict = "fail" if failed else "pass"
    output.result({"plan": read.declaration.plan, "verdict": verdict, "findings": findings})
    if failed and as_json:
        raise typer.Exit(VERIFICATION_FAILED)
    if failed:
        raise CheckFailedError(
            f"{len(failed)} of {len(findings)} checks failed, the first: {failed[0].target}: {failed[0].said}",
            advice="put that right, then check again; nothing was changed",
        )
    output.plain(f"Ready. Plan {read.declaration.plan}. Next: hsm-endorser ceremony run {plan} --into DIR")


@app.command()
def run(
    *,
    plan: PlanArgument,
    into: Annotated[Path, typer.Option(help="The network's folder; a new one, or the interrupted one.")],
    holder: Holders = None,
    as_json: JsonFlag = False,
) -> None:
    """Run the ceremony, or take an interrupted one up again: the same command."""
    from cli.ceremony import plan as plans  # noqa: PLC0415  PKCS#11 is needed from here on
    from cli.ceremony import run as ceremonies  # noqa: PLC0415
    from cli.ceremony.people import AskedPeople, NamedPeople  # noqa: PLC0415

    output = Output(as_json=as_json)
    read = plans.read(plan)
    given = _pairs(holder, "") if holder is not None else None
    people = AskedPeople(output) if given is None else NamedPeople(given)
    transcript = asyncio.run(ceremonies.run(read, into, people, output.plain))
    path = ceremonies.transcript_path(into)
    ceremony, genesis = transcript.steps[-2].previous, into / "genesis.json"
    output.plain(f"The ceremony is complete: {len(transcript.steps)} steps in {path}, digest {ceremony}.")
    output.plain(f"Verify it anywhere: hsm-endorser ceremony verify {path} --genesis {genesis}")
    output.plain(f"Run the network: hsm-endorser network up {into}")
    output.result(
        {
            "network": read.file.network,
            "folder": str(into),
            "transcript": str(path),
            "steps": len(transcript.steps),
            "ceremony": ceremony,
            "genesis": str(genesis),
        }
    )


@app.command()
def verify(
    transcript: Annotated[Path, typer.Argument(help="The transcript.", exists=True, dir_okay=False)],
    genesis: Annotated[Path, typer.Option(help="genesis.json of the network.", exists=True, dir_okay=False)],
    html: Annotated[Path | None, typer.Option(help="Write a page for people there.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify a transcript offline, step by step, and against block 0. Needs no token."""
    from cli.ceremony import record, words  # noqa: PLC0415
    from cli.ceremony import verify as verifying  # noqa: PLC0415

    output = Output(as_json=as_json)
    writable.require(html)
    verified = verifying.verify(record.read(transcript), genesis.read_bytes())
    for step in verified.transcript.steps:
        first, *rest = words.done(step.act)
        output.plain(f"{step.number}. {words.at(step.time)}  {first}")
        for line in rest:
            output.plain(f"     {line}")
        output.plain(f"     {words.who(step)}")
    output.plain(f"The ceremony of {verified.declaration.network} holds: {len(verified.transcript.steps)} steps.")
    output.plain(f"Block 0 names it: {verified.digest}.")
    if html is not None:
        from cli.ceremony.page import page  # noqa: PLC0415

        html.write_text(page(verified), encoding="utf-8")
        output.plain(f"Wrote {html}.")
    output.result(verifying.document(verified))


def _pairs(given: list[str] | None, otherwise: str) -> dict[str, str]:
    """NAME or NAME=VALUE, by name; the value of a bare name is made from `otherwise`."""
    found: dict[str, str] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not name or name in found:
            raise UsageError(f"{each!r} is not of the form NAME or NAME=VALUE, each name once")
        found[name] = value if equals else otherwise.format(name)
    return found


def _on_token(output: Output, uri: str, label: str, environment: list[str]) -> PublicKey:
    from cli import token_signer  # noqa: PLC0415
    from cli.ceremony.people import AskedPeople  # noqa: PLC0415

    return asyncio.run(
        token_signer.generate(
            uri,
            environment=_pairs(environment, ""),
            base=Path.cwd(),
            label=label,
            scheme="ecdsa-p256-sha256",
            ask_pin=AskedPeople(output).pin,
        )
    )


def _pem(key: PublicKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return load_der_public_key(key.spki).public_bytes(serialization.Encoding.PEM, form)
