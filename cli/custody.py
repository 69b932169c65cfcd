"""`hsm-endorser custody`: audit a token by attack, verify what it says, put it into the registry (K-2 to K-6).

Exit codes of `audit`: 0 no findings, 1 findings, 2 the audit could not run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from cli import exit_codes, junit, page, registry, writable
from cli.custody_check import identity_of, public_key, read, registry_of, verified
from cli.errors import UsageError
from cli.output import JsonFlag, Output
from ledger.registry_view import RegistryView
from protocol import canonical, custody
from protocol.custody import Statement
from protocol.keys import PublicKey
from protocol.registry import Center, Custody, EndorsementPolicy, Node, decode_entry

app = typer.Typer(help="Key custody: audit a token by attack, verify the report, register it.", no_args_is_help=True)

StatementFile = Annotated[Path, typer.Argument(help="The signed statement.", exists=True, dir_okay=False)]
NetworkOption = Annotated[Path, typer.Option("--network", help="The network folder.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the report as a page that can be printed.")]
ProfileOption = Annotated[
    str, typer.Option("--profile", help="By what it is judged: a name (custody profiles), or a TOML file of yours.")
]


@app.command()
def audit(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", help="A device's TOML file.", exists=True, dir_okay=False)
    ] = None,
    uri: Annotated[str, typer.Option("--uri", help="Any token: pkcs11:token=…?module-path=…&pin-source=…")] = "",
    profile: ProfileOption = "strict",
    json: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    html: HtmlOption = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write the report as JUnit XML.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Write the signed statement.")] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Make nothing on the token; most attacks are not tested then.")
    ] = False,
) -> None:
    """Audit a token and its keys by attack, and say what was tried, what the module answered, and what it means.

    With --config of a device that runs, the device audits its own token meanwhile. Exit code 0: no findings,
    1: findings, 2: the audit could not run.
    """
    from cli import custody_audit, custody_forms, custody_report  # noqa: PLC0415  the device's room is loaded where it is needed

    if (config is None) == (not uri):
        raise UsageError("name a device or a token", advice="give either --config device.toml or --uri 'pkcs11:…'")
    chosen = _profile(profile)
    writable.require(out, json, html, junit_file)
    if config:
        audited = custody_audit.of_device(config, chosen, read_only=read_only)
    else:
        audited = custody_audit.of_token(uri, chosen, read_only=read_only)
    output = Output(as_json=False)
    report = custody_report.arrange(audited.envelope, custody.decode(audited.envelope), chosen)
    custody_forms.tell(report, output)
    output.plain(audited.signed)
    _write(out, lambda: canonical.encode(audited.envelope), "the statement", output)
    _write(json, lambda: _pretty(custody_forms.document(report)), "the report as JSON", output)
    _write(
        html,
        lambda: page.render("custody", **custody_forms.page_values(report, audited.signed)).encode(),
        "the page",
        output,
    )
    _write(junit_file, lambda: junit.document(custody_forms.suites(report), name="custody"), "the JUnit file", output)
    if not report.keys:
        output.warn("No private key was found on this token, so nothing was shown of any.")
    if report.statement.predicate.verdict != "pass" or not report.keys:
        raise typer.Exit(exit_codes.REFUSED)


@app.command()
def verify(
    *,
    file: StatementFile,
    genesis: Annotated[
        Path | None, typer.Option("--genesis", help="The network's genesis.json.", exists=True, dir_okay=False)
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="The identity key (PEM).", exists=True, dir_okay=False)
    ] = None,
    network: Annotated[Path | None, typer.Option("--network", help="The network folder.")] = None,
    profile: ProfileOption = "",
    html: HtmlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Verify a statement offline: who signed it, over what. Needs no token and no PKCS#11 library."""
    from cli import custody_forms, custody_report  # noqa: PLC0415

    output = Output(as_json=as_json)
    writable.require(html)
    envelope = read(file)
    if sum(given is not None for given in (genesis, identity, network)) != 1:
        raise UsageError(
            "by which key shall the signature be checked?",
            advice="give one of --genesis genesis.json, --network DIR, --identity public-key.pem",
        )
    if identity:
        key, whose = public_key(identity), f"the key in {identity}"
    else:
        view = registry.in_force(network) if network else registry_of(genesis or Path())
        key, whose = identity_of(envelope, view)
    statement = verified(envelope, key, whose)
    checked = f"Signed by {whose}, {key.id[:16]}…, over exactly these bytes."
    report = custody_report.arrange(envelope, statement, _profile_of(statement, profile))
    output.say("[green]✓[/] the file is a custody statement in its one canonical form")
    output.plain(f"✓ {checked[0].lower()}{checked[1:]}")
    custody_forms.tell(report, output)
    _write(
        html, lambda: page.render("custody", **custody_forms.page_values(report, checked)).encode(), "the page", output
    )
    output.result({"verified": True, "key": key.id, **custody_forms.document(report)})


@app.command()
def register(
    file: StatementFile, network: NetworkOption, profile: ProfileOption = "", as_json: JsonFlag = False
) -> None:
    """Put a statement into the registry, signed by the folder's administrators: the tiers of its keys follow it.

    Tiers are given by the profile; one that is none of hsm-endorser's is named here by --profile.
    """
    output, envelope, view = Output(as_json=as_json), read(file), registry.in_force(network)
    statement = verified(envelope, *identity_of(envelope, view))
    predicate = statement.predicate
    if _profile_of(statement, profile) is None:
        raise UsageError(
            f"the statement was judged by {predicate.profile.name}, which is no profile of hsm-endorser's: a lax one "
            "gives high tiers",
            advice="look at that profile, then name its file with --profile",
        )
    before = view.statement(predicate.device)
    if before and predicate.time < before.predicate.time:
        raise UsageError(
            f"the registry has a later statement of {predicate.device}: this one is older",
            advice="audit the device again, and register that statement",
        )
    for held in _held(view):
        if held.device != predicate.device:
            continue
        tier = custody.tier_of(statement, held.key)
        was = custody.tier_of(before, held.key) if before else "claimed"
        output.plain(f"{held.holder}: {was} → {tier}" if was != tier else f"{held.holder}: {tier}, as before")
    entry = Custody(predicate.device, canonical.encode(envelope))
    registry.change(output, network, "put", {"entries": [registry.builtins(entry)]})


@app.command()
def show(network: NetworkOption, as_json: JsonFlag = False) -> None:
    """Show the tier of every key that is not revoked, and what the channel and its policies demand."""
    output, view = Output(as_json=as_json), registry.in_force(network)
    rows = [
        {
            "holder": held.holder,
            "key": held.key,
            "device": held.device,
            "tier": view.tier(held.device, held.key),
            "software": statement.predicate.token.software if statement else None,
            "audited": statement.predicate.time if statement else None,
        }
        for held in _held(view)
        for statement in (view.statement(held.device),)
    ]
    output.table(
        f"Keys in the registry; the channel demands the tier {view.channel.least_tier!r}",
        ["holder", "key", "device", "tier", "token", "audited"],
        [_shown(row) for row in rows],
    )
    policies = {each.name: each.least_tier for each in _policies(view) if each.least_tier != "claimed"}
    for name, tier in policies.items():
        output.plain(f"Policy {name} counts votes by keys of the tier {tier!r} or above alone.")
    output.result({"least_tier": view.channel.least_tier, "policies": policies, "keys": rows})


@app.command()
def profiles(
    name: Annotated[str, typer.Argument(help="Print this one, to start your own from: > mine.toml")] = "",
) -> None:
    """List the profiles, or print one."""
    from hsm_endorser.custody import profile as kept  # noqa: PLC0415

    output = Output(as_json=False)
    if name:
        typer.echo(_profile(name).text, nl=False)
        return
    for each in kept.names():
        found = kept.load(each)
        needed = sum(check.required for check in found.checks.values())
        output.plain(f"{each}: {found.title} ({needed} of {len(found.checks)} checks required)")


class _Held(msgspec.Struct, frozen=True):
    holder: str
    key: str
    device: str


def _held(view: RegistryView) -> list[_Held]:
    """The keys of nodes and centers that are not revoked, and on which devices they live."""
    found = []
    for node in (view.node(name) for name in view.node_names):
        if isinstance(node, Node):
            found += [_Held(f"node/{node.name}", PublicKey.load(key.key).id, key.device) for key in node.keys]
    for center in (view.center(name) for name in view.centers):
        if isinstance(center, Center):
            found.append(_Held(f"center/{center.name}", PublicKey.load(center.key).id, center.device))
    return [held for held in found if view.revocation(held.key) is None]


def _policies(view: RegistryView) -> list[EndorsementPolicy]:
    entries = [decode_entry(key, data) for key, data in view.entries.items() if key.startswith("policy/")]
    return [entry for entry in entries if isinstance(entry, EndorsementPolicy)]


def _shown(row: dict[str, Any]) -> list[object]:
    from cli.custody_report import when  # noqa: PLC0415

    token = {None: "", True: "software", False: "hardware"}[row["software"]]
    audited = when(row["audited"]) if row["audited"] is not None else "never"
    return [row["holder"], f"{row['key'][:16]}…", row["device"], row["tier"], token, audited]


def _profile(name: str) -> Any:
    from hsm_endorser.custody.profile import ProfileError, load  # noqa: PLC0415

    try:
        return load(name)
    except ProfileError as error:
        raise UsageError(str(error), code=error.code, advice="hsm-endorser custody profiles shows all") from None


def _profile_of(statement: Statement, given: str) -> Any:
    """The profile that a statement was judged by: the file that is given, else one of ours, else none."""
    from hsm_endorser.custody.profile import by_digest  # noqa: PLC0415

    named = statement.predicate.profile
    if not given:
        return by_digest(named.digest)
    found = _profile(given)
    if found.digest != named.digest:
        raise UsageError(
            f"the statement was judged by {named.name} with SHA-256 {named.digest}, {given} has {found.digest}",
            advice="give the very file, or leave --profile out",
        )
    return found


def _write(path: Path | None, data: Callable[[], bytes], what: str, output: Output) -> None:
    if path is None:
        return
    try:
        path.write_bytes(data())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", advice="choose another file") from None
    output.plain(f"Wrote {what} to {path}.")


def _pretty(document: dict[str, Any]) -> bytes:
    return bytes(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"
