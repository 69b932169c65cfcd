"""The dry run of a ceremony: everything that can be found out before, against the real modules; nothing is changed.

Each PIN is tried once, and not at all on a token that says that one more wrong try locks it: a wrong PIN costs a try.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from cli import role_holder
from cli.ceremony.people import People
from cli.ceremony.plan import URI, AdministratorTable, Plan
from cli.errors import CommandError
from cli.keys import SoftwareKey
from hsm_endorser import dry_run
from hsm_endorser.custody import profile
from hsm_endorser.dry_run import Sight
from hsm_endorser.errors import DeviceError
from hsm_endorser.worker_messages import Pin
from ledger.contracts import registry as contract
from ledger.contracts.contract import Call
from ledger.errors import LedgerError
from ledger.registry_view import RegistryView
from protocol import ceremony, registry
from protocol.custody import Verdict
from protocol.errors import ProtocolError
from protocol.keys import PublicKey


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: on what, whether it will do, and what was seen."""

    target: str
    check: str
    verdict: Verdict
    said: str


async def check(plan: Plan, people: People, say: Callable[[str], None]) -> list[Finding]:
    """Look at everything that the plan names. Raises nothing for what it finds: see the findings."""
    findings = [_registry(plan)]
    say("Each PIN is tried once: a wrong one costs the token a try.")
    pins: dict[str, Pin | None] = {}
    seen: dict[str, Sight] = {}
    for device in plan.file.device:
        sight = await _device(plan, device.name, people, pins, findings)
        if sight is not None:
            seen[device.name] = sight
    findings += _one_token_each(seen)
    for administrator in plan.file.administrator:
        findings.append(await _administrator(plan, administrator, people))
    findings += [await _unchanged(plan, name, sight, pins[name]) for name, sight in seen.items()]
    return findings


def _registry(plan: Plan) -> Finding:
    """The first set as the registry's contract judges it, with stand-in keys whose private halves are dropped."""
    target, what = "registry", "the declared set holds together"
    declaration = msgspec.structs.replace(plan.declaration, least_tier="claimed")  # tiers are seen at the ceremony
    places = [(device.name, key.label) for device in declaration.devices for key in device.keys]
    try:
        entries = ceremony.entries(
            declaration,
            start=0,
            ceremony="none",
            keys={place: SoftwareKey.generate().public.spki for place in places},
            tokens={each.name: registry.Token("stand-in", "stand-in", each.name) for each in declaration.devices},
            certificate=b"stand-in",
            statements={},
        )
        call = Call(client="genesis", transaction="0" * 64, registry=RegistryView({}), height=0, time=0)
        contract.CONTRACT["genesis"].run(contract.Genesis(entries), call, {})
    except (LedgerError, ProtocolError) as error:
        return Finding(target, what, "fail", str(error))
    names = [policy.name for policy in declaration.policies]
    return Finding(
        target,
        what,
        "pass",
        f"{declaration.needed} of {len(declaration.holders)} role holders, nodes {', '.join(declaration.nodes)}, "
        f"policies {', '.join(names) or 'none'}",
    )


async def _device(
    plan: Plan, name: str, people: People, pins: dict[str, Pin | None], findings: list[Finding]
) -> Sight | None:
    """What is seen of one device's token; None when it cannot be used."""
    table = plan.device(name)

    def found(what: str, verdict: Verdict, said: str) -> None:
        findings.append(Finding(name, what, verdict, said))

    if plan.file.least_tier != "claimed":
        try:
            found("the audit's profile is there", "pass", profile.load(table.profile).title)
        except DeviceError as error:
            found("the audit's profile is there", "fail", str(error))
    what = "module, token and PIN"
    try:
        token = plan.token(name)
        pins[name] = None if token.uri.pin_file else Pin(await people.pin(f"the token of {name}"))
        sight = await dry_run.look(token, pins[name])
    except (DeviceError, CommandError) as error:
        found(what, "fail", str(error))
        return None
    seen = sight.token
    found(what, "pass", f"{seen.manufacturer} {seen.model}, serial {seen.serial}; {sight.objects} objects")
    planned = next(each.keys for each in plan.declaration.devices if each.name == name)
    lacking = {f"{key.label} ({key.scheme}) needs {', '.join(sight.lacks(key.scheme))}" for key in planned
               if sight.lacks(key.scheme)}  # fmt: skip
    schemes = ", ".join(sorted({key.scheme for key in planned}))
    found("mechanisms", "fail" if lacking else "pass", "; ".join(sorted(lacking)) or schemes)
    taken = sorted({key.label for key in planned} & set(sight.labels))
    free = ", ".join(key.label for key in planned)
    found("labels are free", "fail" if taken else "pass", f"taken: {', '.join(taken)}" if taken else free)
    return sight


def _one_token_each(seen: dict[str, Sight]) -> list[Finding]:
    """Two devices on one token would both make an identity key there.

    A token is known by its label, too: some modules say the same serial of every token (tpm2-pkcs11 zeros).
    """
    tokens = Counter((sight.token, sight.label) for sight in seen.values())
    return [
        Finding(
            name,
            "a token of its own",
            "fail",
            f"the token {sight.label!r}, serial {sight.token.serial}, is named for another device, too; if they are "
            "two, give each a label of its own",
        )
        for name, sight in seen.items()
        if tokens[sight.token, sight.label] > 1
    ]


async def _administrator(plan: Plan, table: AdministratorTable, people: People) -> Finding:
    """Whether a role holder's key is where the plan says; nothing is signed with it."""
    what = "the key is where the plan says"
    public = next(PublicKey.load(each.key) for each in plan.declaration.holders if each.name == table.name)
    if not table.held:
        return Finding(table.name, what, "not-tested", "the plan does not say where; asked for at the ceremony")
    base = plan.path.parent
    if not table.held.startswith(URI) and not _is_there(base / table.held):
        return Finding(table.name, what, "not-tested", f"{base / table.held} is not here now")
    try:
        signer = await role_holder.open_signer(
            table.name, table.held, public, environment=table.environment, base=base, ask_pin=people.pin
        )
    except CommandError as error:
        return Finding(table.name, what, "fail", error.reason)
    await signer.close()
    return Finding(table.name, what, "pass", f"{public.scheme}, key {public.id[:16]}…")


async def _unchanged(plan: Plan, name: str, before: Sight, pin: Pin | None) -> Finding:
    """The dry run itself must have left nothing behind."""
    what = "nothing was changed"
    try:
        after = await dry_run.look(plan.token(name), pin)
    except DeviceError as error:
        return Finding(name, what, "fail", str(error))
    same = (after.objects, after.labels) == (before.objects, before.labels)
    said = f"{before.objects} objects before, {after.objects} after"
    return Finding(name, what, "pass" if same else "fail", said)


def _is_there(path: Path) -> bool:
    return path.exists()
