"""Keys that count no more, or not for long: what a device does not sign, and how it warns in good time."""

from typing import Any

import msgspec
import pytest

from protocol import canonical
from protocol.messages import Failure, SignCertificate
from protocol.registry import Center, Node, Registrar, Revocation
from tests.chain_builder import FOR_EVER
from tests.hsm_endorser.device_world import NAME, RunningDevice, World, running

DAY = 24 * 3600 * 1000


async def apply(device: RunningDevice, world: World, *entries: Any, time: int | None = None) -> None:
    """A block that puts entries into the registry, or that is empty, at a block time."""
    transactions = [world.network.put(*entries)] if entries else []
    block = world.network.block(world.copy, transactions, [], time=time).encode()
    world.copy.apply(block)
    for outcome in world.copy.store.outcomes(world.copy.height) or ():
        assert outcome.code == "valid"
    await device.apply(block)


def lived(world: World, node: str = "A", **lifetime: int) -> Node:
    """A node's entry whose one key has another lifetime."""
    (key,) = world.copy.registry.node(node).keys
    return Node(node, (msgspec.structs.replace(key, **lifetime),))


async def refusal(device: RunningDevice, world: World, node: str = "A") -> Failure:
    """Why the device does not vote for a node."""
    answer = await device.endorse((world.network.evidence(f"{world.copy.height}"), [node]))
    assert answer.answers[0].failure is not None, "it voted"
    assert answer.answers[0].votes == ()
    return answer.answers[0].failure


async def header(device: RunningDevice, world: World, *, time: int, entries: tuple[Any, ...] = ()) -> tuple[str, str]:
    """The code and the detail with which a header of this time is refused; empty when it is signed."""
    transactions = [world.network.put(*entries)] if entries else [world.network.evidence("x")]
    trees = world.network.endorse(transactions, by=("B", "C"), height=world.copy.height)
    block = world.copy.draft(time, transactions, trees).block
    reply = await device.http.post("/v1/sign-header", content=block.encode())
    if reply.status_code == 200:
        return "", ""
    return reply.json()["type"].rpartition(":")[2], reply.json()["detail"]


async def certificate(device: RunningDevice) -> tuple[str, str]:
    """The code and the detail with which the CA's door refuses."""
    reply = await device.http.post("/v1/sign-certificate", content=canonical.encode(SignCertificate(b"x")))
    return reply.json()["type"].rpartition(":")[2], reply.json()["detail"]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock is far ahead: what is signed is decided by block time."""
    monkeypatch.setattr("hsm_endorser.doors.clock", lambda: FOR_EVER)


# --- what is not signed ----------------------------------------------------------------------------------------


@pytest.mark.requirement("K-13")
async def test_a_key_votes_until_it_expires_by_block_time(world: World, device: RunningDevice) -> None:
    """One millisecond of block time before its end it votes, at its end no more: not a signed no, a failure."""
    end = world.copy.time + 1000
    await apply(device, world, lived(world, until=end), time=end - 1)
    answer = await device.endorse((world.network.evidence("before"), ["A"]))
    assert [vote.verdict for vote in answer.answers[0].votes] == ["approve"]
    before = device.signatures()
    await apply(device, world, time=end)
    failure = await refusal(device, world)
    assert failure.code == "key-expired"
    assert "has expired" in failure.detail
    assert "hsm-endorser key rotate --unannounced node/A" in failure.detail
    assert device.signatures() == before


@pytest.mark.requirement("K-13")
@pytest.mark.parametrize(
    ("lifetime", "code", "why"),
    [
        ({"last": 1}, "key-expired", "counted up to height 1"),
        ({"since": 9}, "not-assigned", "counts from height 9 on"),
        ({"not_before": FOR_EVER - 1}, "not-assigned", "is not valid yet"),
    ],
)
async def test_a_key_outside_its_lifetime_signs_nothing(
    world: World, device: RunningDevice, lifetime: dict[str, int], code: str, why: str
) -> None:
    """By height or by time, too early or too late: the failure says which."""
    await apply(device, world, lived(world, **lifetime))
    failure = await refusal(device, world)
    assert failure.code == code
    assert why in failure.detail


@pytest.mark.requirement("K-14")
async def test_a_revoked_key_signs_nothing(world: World, device: RunningDevice) -> None:
    """From the block after the revocation on; the other nodes' keys on the same token go on."""
    key = world.keys["node/A"].id
    await apply(device, world, Revocation(key, "node/A", "key-compromise", 0))
    assert (await refusal(device, world)).code == "revoked"
    answer = await device.endorse((world.network.evidence("x"), ["R"]))
    assert [vote.node for vote in answer.answers[0].votes] == ["R"]
    assert (await device.parts.health.status()).nodes == ("E", "R")


@pytest.mark.requirement("K-14")
async def test_a_revoked_device_signs_nothing(world: World, device: RunningDevice) -> None:
    """With its identity key all its keys are refused: nodes', a center's; it serves no node and says why."""
    await apply(device, world, Revocation(world.keys["identity"].id, f"device/{NAME}", "cessation-of-operation", 0))
    for node in ("A", "R", "E"):
        failure = await refusal(device, world, node)
        assert failure.code == "revoked"
        assert f"device {NAME}" in failure.detail
    code, why = await header(device, world, time=world.copy.time + 1)
    assert code == "revoked"
    assert "center-1" in why
    assert (await device.parts.health.status()).nodes == ()
    reply = await device.http.get("/v1/identity?nonce=" + "ab" * 16)
    assert reply.json()["type"].rpartition(":")[2] == "revoked"


@pytest.mark.requirement("K-13")
async def test_a_device_that_has_ended_signs_nothing(world: World, device: RunningDevice) -> None:
    """Past the end of its own entry it votes for nobody, says not even who it is, and names what to do."""
    entry = world.copy.registry.device(NAME)
    await apply(device, world, msgspec.structs.replace(entry, until=world.copy.time + 500))
    failure = await refusal(device, world)
    assert failure.code == "key-expired"
    assert f"hsm-endorser device replace {NAME}" in failure.detail
    reply = await device.http.get("/v1/identity?nonce=" + "ab" * 16)
    assert reply.json()["type"].rpartition(":")[2] == "key-expired"


@pytest.mark.requirement("K-5")
async def test_a_key_below_the_channels_tier_signs_nothing(world: World, device: RunningDevice) -> None:
    """Nobody has audited the device, and the channel asks for more than a claim: unsigned failures with the reason."""
    channel = msgspec.structs.replace(world.copy.registry.channel, least_tier="read-back")
    await apply(device, world, channel)
    failure = await refusal(device, world)
    assert failure.code == "tier-too-low"
    assert "is claimed, the channel asks for read-back" in failure.detail
    assert "hsm-endorser custody audit" in failure.detail


@pytest.mark.requirement("K-13", "M-4")
async def test_an_expired_center_key_signs_repairs_alone(world: World, device: RunningDevice) -> None:
    """Its header is refused from its end on by the block's own time; a block that brings new keys is signed still."""
    end = world.copy.time + 1000
    mine = Center("center-1", world.keys["center/center-1"].spki, NAME, until=end)
    await apply(device, world, mine)
    assert await header(device, world, time=end - 1) == ("", "")
    await apply(device, world, Center("center-2", world.other_center.spki, "device-b", until=end + 1))
    code, why = await header(device, world, time=end)
    assert code == "key-expired"
    assert "has expired" in why
    assert "key rotate --unannounced center/center-1" in why
    repair = Center("center-1", world.keys["node/Z"].spki, NAME)
    assert (await header(device, world, time=end, entries=(repair,)))[0] == "key-expired"
    assert await header(device, world, time=end + 1, entries=(repair,)) == ("", "")


@pytest.mark.requirement("K-13", "K-14", "E-1")
async def test_a_ca_key_that_does_not_count_certifies_nothing(world: World, device: RunningDevice) -> None:
    """Expired or revoked, with the reason and what to do; the doors of the CA are closed."""
    end = world.copy.time + 1000
    entry = Registrar("ca", world.keys["ca/ca"].spki, world.enrolled.ca_certificate, until=end)
    await apply(device, world, entry)
    assert "sign-certificate" in device.parts.doors.open_doors
    await apply(device, world, time=end)
    code, why = await certificate(device)
    assert code == "key-expired"
    assert "key rotate --unannounced registrar/ca" in why
    assert "sign-certificate" not in device.parts.doors.open_doors
    await apply(device, world, Revocation(world.keys["ca/ca"].id, "registrar/ca", "ca-compromise", 0))
    assert (await certificate(device))[0] == "revoked"


# --- warnings --------------------------------------------------------------------------------------------------


async def checks(device: RunningDevice) -> dict[str, str]:
    """What `/health/ready` says, which must be 200."""
    reply = await device.http.get("/health/ready")
    assert reply.status_code == 200, reply.text
    return reply.json()["checks"]


@pytest.mark.requirement("K-13")
async def test_a_device_warns_in_good_time(world: World, device: RunningDevice) -> None:
    """From 30 days before the end on the check names the key, the days and what to do; the device stays ready."""
    end = world.copy.time + 40 * DAY
    await apply(device, world, lived(world, until=end))
    assert (await checks(device))["keys"] == "ok"
    await apply(device, world, time=end - 29 * DAY)
    assert (await checks(device))["keys"] == "node/A expires in 29 days: hsm-endorser key rotate node/A --network DIR"
    await apply(device, world, time=end - DAY)
    assert "node/A expires in 24 hours" in (await checks(device))["keys"]
    await apply(device, world, time=end)
    assert "node/A has expired" in (await checks(device))["keys"]
    assert (await device.parts.health.status()).reason == ""


@pytest.mark.requirement("K-13")
async def test_a_key_with_a_successor_needs_no_warning(world: World, device: RunningDevice) -> None:
    """Once its end is set by a rotation, nothing is left to do about it."""
    await apply(device, world, lived(world, until=world.copy.time + DAY, last=99))
    assert (await checks(device))["keys"] == "ok"


@pytest.mark.requirement("K-13")
async def test_the_figure_counts_block_time(world: World, device: RunningDevice) -> None:
    """Seconds until each key of this device expires; keys without an end and other devices' keys have none."""
    key = world.keys["node/A"].id
    await apply(device, world, lived(world, until=world.copy.time + 500 + 2 * DAY))
    text = (await device.http.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("hsm_endorser_device_key_expires_seconds{")]
    assert lines == [f'hsm_endorser_device_key_expires_seconds{{holder="node/A",key="{key}"}} {2 * DAY / 1000}']


@pytest.mark.requirement("K-13")
async def test_a_warning_is_logged_once_a_day(
    world: World, device: RunningDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first sight, then after a day, or at once when it becomes more urgent."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "hsm_endorser.lifetimes.log.warning", lambda event, **fields: said.append({"": event, **fields})
    )
    now = 1000.0
    monkeypatch.setattr("hsm_endorser.lifetimes.time.monotonic", lambda: now)
    lifetimes = device.parts.lifetimes
    end = world.copy.time + 20 * DAY
    await apply(device, world, lived(world, until=end))
    counts = []
    for hours, time in ((0, None), (1, None), (24, None), (25, end - 6 * DAY), (26, end - DAY // 2), (27, end)):
        now = 1000.0 + hours * 3600
        await apply(device, world, time=time)
        lifetimes.log_warnings()
        counts.append(len(said))
    assert counts == [1, 1, 2, 3, 4, 5]
    assert said[0]["holder"] == "node/A"
    assert said[0]["key"] == world.keys["node/A"].id
    assert [each[""] for each in said[-2:]] == ["a key expires", "a key has expired"]


@pytest.mark.requirement("K-13")
async def test_the_days_are_configurable(world: World) -> None:
    """`warn_days` of device.toml decides when the check speaks."""
    config = world.config.model_copy(update={"warn_days": (3,)})
    async with running(config) as device:
        end = world.copy.time + 10 * DAY
        await apply(device, world, lived(world, until=end))
        assert (await checks(device))["keys"] == "ok"
        await apply(device, world, time=end - 2 * DAY)
        assert "node/A expires in 2 days" in (await checks(device))["keys"]
