"""A ceremony in words: what a step will do, and what it did, for those who sign it and those who read it later."""

import datetime as dt
from typing import Final

import msgspec

from hsm_endorser.custody import profile
from protocol import canonical, custody
from protocol.ceremony import (
    Act,
    Audited,
    Authorized,
    Certified,
    Declaration,
    Declared,
    Expected,
    Founded,
    Generated,
    Proposed,
    Step,
)
from protocol.envelope import Envelope
from protocol.keys import key_id

DAY_MS: Final = 24 * 3600 * 1000


def intention(expected: Expected, declaration: Declaration) -> list[str]:
    """What a step is going to do."""
    if expected.kind is Generated:
        keys = next(each.keys for each in declaration.devices if each.name == expected.device)
        return [f"Generate on the token of {expected.device}: {', '.join(key.label for key in keys)}."]
    if expected.kind is Certified:
        return ["The CA's key certifies itself: this is the certificate that clients will see."]
    if expected.kind is Audited:
        return [f"Audit the token of {expected.device}: its keys must reach tier {declaration.least_tier}."]
    if expected.kind is Proposed:
        return [
            (
                f"Sign the first set of the registry of {declaration.network}: "
                f"{len(declaration.holders)} administrators of whom {declaration.needed} change it, "
                f"{len(declaration.devices)} devices, nodes {', '.join(declaration.nodes)}, "
                f"{len(declaration.policies)} policies, exactly as declared."
            ),
            "It names the digest of the transcript up to here; the center's key signs block 0 after it.",
        ]
    return [expected.words]


def done(act: Act) -> list[str]:
    """What a step says."""
    match act:
        case Declared(declaration=declaration):
            return _declared(declaration)
        case Authorized(device=device, token=token, keys=keys, objects=objects):
            return [
                (
                    f"Agreed: {', '.join(f'{key.label} ({key.scheme})' for key in keys)} are to be generated for "
                    f"{device} on the token {token.manufacturer} {token.model}, serial {token.serial}."
                ),
                f"The token held {objects} objects, none of them under these labels.",
            ]
        case Generated(device=device, keys=keys):
            return [f"Generated for {device}; each key has proven its possession:"] + [
                f"{key.label}: key {key_id(key.key)}" for key in keys
            ]
        case Certified(certificate=certificate):
            return [f"The CA certified itself ({len(certificate)} bytes)."]
        case Audited(device=device, statement=statement):
            return _audited(device, statement)
        case Proposed(time=time):
            return [f"The first set of the registry was signed, for a block 0 of {at(time)}."]
        case Founded(genesis=genesis):
            return [f"Block 0 was signed: authentication data {genesis}."]


def who(step: Step) -> str:
    """Who signed a step."""
    devices = f", and by {', '.join(step.devices)}" if step.devices else "; no device has an identity key yet"
    return f"signed by {', '.join(step.present)}{devices}"


def at(time: int) -> str:
    """A time in milliseconds, for people."""
    return dt.datetime.fromtimestamp(time / 1000, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _declared(declaration: Declaration) -> list[str]:
    of = declaration.lifetimes
    return [
        f"Network {declaration.network}, as the plan with SHA-256 {declaration.plan} says.",
        "Role holders: "
        + ", ".join(f"{holder.name} (key {key_id(holder.key)[:16]}…)" for holder in declaration.holders)
        + f"; {declaration.needed} of them sign each step and each later change of the registry.",
        *(
            f"{device.name} is to hold {', '.join(f'{key.label} ({key.scheme})' for key in device.keys)}."
            for device in declaration.devices
        ),
        *(f"Policy {policy.name}: {policy.expression}." for policy in declaration.policies),
        (
            f"Keys count for so many days: nodes {of.node // DAY_MS}, center {of.center // DAY_MS}, "
            f"CA {of.registrar // DAY_MS}, administrators {of.administrator // DAY_MS}, devices {of.device // DAY_MS}. "
            f"Least tier: {declaration.least_tier}."
        ),
    ]


def _audited(device: str, data: bytes) -> list[str]:
    found = custody.decode(canonical.decode(data, _envelope_decoder)).predicate
    kind = "a software token" if found.token.software else "a token that does not call itself software"
    ours = profile.by_digest(found.profile.digest) is not None
    judged_by = found.profile.name if ours else f"{found.profile.name} ({found.profile.digest}, which is none of ours)"
    audit = f"The token of {device} was audited by profile {judged_by}: {found.verdict}; {kind}. Its identity key "
    signed = f"signed the statement of {len(found.rows)} rows."
    return [audit + signed, *(f"{key.label}: {key.tier}" for key in found.keys)]


_envelope_decoder = msgspec.json.Decoder(Envelope)
