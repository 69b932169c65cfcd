"""What would become of a transaction type now: who would endorse it, on which devices; and what a lost device stops.

Nothing is asked of any device: the registry in force says who may, the last known state of each device who can
(requirements E-5 to E-8).
"""

from collections.abc import Mapping

import msgspec

from ledger.endorsement_rule import EndorsementRule
from ledger.registry_view import RegistryView
from protocol.registry import Rotation


class DeviceState(msgspec.Struct, frozen=True):
    """A device as this center sees it; `reason` says why it is not ready, `nodes` for whom it can sign."""

    ready: bool
    reason: str = ""
    nodes: tuple[str, ...] = ()


class SimulatedVote(msgspec.Struct, frozen=True):
    """A node that would be asked, and where."""

    node: str
    device: str


class Turn(msgspec.Struct, frozen=True):
    """A group of devices that serves a transaction together: who would vote, or why that is not enough."""

    devices: tuple[str, ...]
    votes: tuple[SimulatedVote, ...]
    reason: str


class MissingNode(msgspec.Struct, frozen=True):
    """A node whose approval could count and for whom nobody can sign now, with the reason of each of its devices."""

    node: str
    devices: dict[str, str]


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: `endorsed` says whether the devices would do, `blocks` why no block could be signed, or nothing."""

    kind: str
    policy: str
    expression: str
    meaning: str
    routing: str
    distinct_devices: bool
    height: int
    without: str | None
    endorsed: bool
    turns: tuple[Turn, ...]
    missing: tuple[MissingNode, ...]
    blocks: str


def simulate(
    kind: str,
    view: RegistryView,
    states: Mapping[str, DeviceState],
    *,
    height: int,
    time: int,
    without: str | None = None,
) -> Simulation | None:
    """What would become of a transaction of this type in the block after `height`; None when no policy covers it.

    `time` (ms) is the one that keys are judged by; the device `without` is taken as lost.
    """
    rule = view.rule_at(kind, height=height + 1, time=time)
    if rule is None:
        return None
    able: dict[str, tuple[str, ...]] = {}
    missing: list[MissingNode] = []
    for node in rule.holders:
        reasons = {
            device: _obstacle(node, device, states, without)
            for device in view.devices_in_force(node, height=height + 1, time=time)
        }
        able[node] = tuple(device for device, reason in reasons.items() if not reason)
        if not able[node]:
            missing.append(MissingNode(node, reasons))
    turns = tuple(_turn(rule, able, group) for group in rule.turns)
    return Simulation(
        kind=kind,
        policy=rule.name,
        expression=rule.policy.text,
        meaning=rule.meaning,
        routing=str(rule.routing.__struct_config__.tag),
        distinct_devices=rule.distinct_devices,
        height=height,
        without=without,
        endorsed=any(not turn.reason for turn in turns),
        turns=turns,
        missing=tuple(missing),
        blocks=_no_blocks(view, states, without, height=height + 1, time=time),
    )


def _obstacle(node: str, device: str, states: Mapping[str, DeviceState], without: str | None) -> str:
    state = states.get(device)
    if device == without:
        return "taken as lost"
    if state is None:
        return "not configured here"
    if not state.ready:
        return state.reason or "not ready"
    return "" if node in state.nodes else f"its token does not serve node {node}"


def _turn(rule: EndorsementRule, able: Mapping[str, tuple[str, ...]], group: tuple[str, ...]) -> Turn:
    here = {node: tuple(device for device in devices if device in group) for node, devices in able.items()}
    chosen = rule.choose(here)
    if chosen is not None:
        return Turn(group, tuple(SimulatedVote(node, chosen[node]) for node in sorted(chosen)), "")
    can = {node: devices for node, devices in here.items() if devices}
    reason = rule.shortfall(can, rule.evaluate(can))
    if isinstance(rule.routing, Rotation):
        reason = f"{', '.join(group)}: {reason}"
    return Turn(group, (), reason)


def _no_blocks(
    view: RegistryView, states: Mapping[str, DeviceState], without: str | None, *, height: int, time: int
) -> str:
    """Why the centers' devices could not sign a block. Of devices of other centers nothing is known here."""
    unable: list[str] = []
    in_force = view.centers_in_force(height=height, time=time)
    for name in in_force:
        center = view.center(name)
        if center is None:
            continue
        state = states.get(center.device)
        if center.device == without or (state is not None and not state.ready):
            unable.append(f"{name} on {center.device}")
    able, needed = len(in_force) - len(unable), view.channel.centers_needed
    if able >= needed:
        return ""
    if len(in_force) < needed:
        return f"no block can be signed: {needed} centers are needed, and {len(in_force)} are in force; bring new keys"
    return f"no block can be signed: {needed} centers are needed, and the key of {', '.join(unable)} cannot be used"
