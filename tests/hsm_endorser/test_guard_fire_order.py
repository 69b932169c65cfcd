"""Starting a guard anew: by order of the administrators alone, and with no second word afterwards (K-10)."""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cli.main import main
from cli.plan import Layout, default_plan, network_settings, write_settings
from hsm_endorser import guard_order as device_order
from hsm_endorser.errors import GuardDamagedError, GuardInUseError, RefusedError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_order import LONGEST_AGE_MILLISECONDS, Started
from hsm_endorser.service import open_replica
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical, guard_order
from protocol.envelope import Envelope
from protocol.guard_order import Order
from protocol.messages import EndorseResponse
from protocol.registry import GuardOrder
from tests import software_keys
from tests.hsm_endorser.device_world import NAME, RunningDevice, World, running
from tests.hsm_endorser.guard_fire_program import CLOCK
from tests.software_keys import SoftwareKey

NOW = CLOCK


def draft(world: World, **changed: object) -> Order:
    """An order for the device at its own height; `changed` replaces single fields."""
    order = guard_order.draft(
        network="test",
        device=NAME,
        height=world.copy.height,
        sequence=0,
        reason="the disk died",
        time=NOW,
        nonce=secrets.token_hex(16),
    )
    return msgspec.structs.replace(order, **changed)


def signed(world: World, order: Order, *by: str | SoftwareKey) -> Envelope:
    """The order under the signatures of administrators (by name) or of anybody (by key)."""
    keys = [world.network.administrators[each] if isinstance(each, str) else each for each in by]
    return software_keys.envelope(guard_order.PAYLOAD_TYPE, canonical.encode(order), keys)


def good(world: World, **changed: object) -> Envelope:
    """An order as it should be."""
    return signed(world, draft(world, **changed), "admin-1", "admin-3")


def apply(world: World, envelope: Envelope, *, now: int = NOW) -> Started:
    """Carry an order out on the device's folder, while the device stands still."""
    replica = open_replica(world.config)
    try:
        return device_order.apply(world.config.guard, envelope, replica, NAME, now=now)
    finally:
        replica.store.close()


def code_of(response: EndorseResponse) -> str:
    """The code of the only answer, which must be unsigned."""
    (answer,) = response.answers
    assert (answer.votes, response.trees) == ((), ())
    return answer.failure.code


async def used_device(world: World) -> tuple[EndorseResponse, object]:
    """What the device said on one transaction before it lost its guard; block 1 came after that."""
    wish = world.network.evidence("before")
    async with running(world.config) as device:
        said = await device.endorse((wish, ["A"]))
        await device.apply(world.block([]))
    return said, wish


@pytest.mark.requirement("K-10")
async def test_a_new_guard_votes_on_later_transactions_alone(world: World) -> None:
    """What the lost guard can have voted on gets no second word, whatever it was; later transactions are voted on."""
    _, wish = await used_device(world)
    early = world.network.evidence("early", valid_from=2)  # the lost guard could have voted on it at height 1
    later = world.network.evidence("later", valid_from=3)
    world.config.guard.unlink()
    started = apply(world, good(world))
    assert (started.since, started.headers_since, started.signers) == (3, 2, ("admin-1", "admin-3"))
    async with running(world.config) as device:
        before = device.signatures()
        for refused in (wish, early):
            response = await device.endorse((refused, ["A"]))
            assert code_of(response) == "before-guard"
            assert "from height 3 on" in response.answers[0].failure.detail
        assert code_of(await device.endorse((later, ["A"]))) == "not-yet-valid"
        assert device.signatures() == before
        await device.apply(world.block([]))
        response = await device.endorse((later, ["A"]))
        assert [vote.verdict for vote in response.answers[0].votes] == ["approve"]
        (head,) = [msgspec.json.decode(branch.head.payload) for branch in response.trees[0].branches]
        assert head["sequence"] == guard_order.SEQUENCE_MARGIN + 1


@pytest.mark.requirement("K-10", "M-6")
async def test_a_new_guard_signs_no_header_that_the_chain_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when the device's copy of the chain begins anew, so that the height would be its next."""
    monkeypatch.setattr("hsm_endorser.doors.clock", lambda: CLOCK)
    block = world.network.block(world.copy, [])
    body = block.signed(msgspec.structs.replace(block.envelope, signatures=())).encode()
    await used_device(world)
    world.config.guard.unlink()
    apply(world, good(world))
    async with running(world.config) as device:
        assert await refusal(device, body) == (422, "before-guard")
    for file in world.config.database.parent.glob("chain.db*"):
        file.unlink()
    async with running(world.config) as device:
        assert await refusal(device, body) == (422, "before-guard")


async def refusal(device: RunningDevice, body: bytes) -> tuple[int, str]:
    """How a header is refused."""
    answer = await device.http.post("/v1/sign-header", content=body)
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


@pytest.mark.requirement("K-10")
async def test_the_chains_own_height_counts_where_it_is_greater(world: World) -> None:
    """The chain has gone on since the order was drawn up: the device starts above its own height."""
    envelope = good(world)
    await used_device(world)
    world.config.guard.unlink()
    assert (apply(world, envelope).since, world.copy.height) == (3, 1)


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("left", ["a sound guard", "a damaged guard", "no guard"])
async def test_the_old_guard_is_kept_aside(world: World, left: str) -> None:
    """With all that it had, for whoever finds out what happened; it is not deleted and not read."""
    await used_device(world)
    if left == "a damaged guard":
        world.config.guard.write_bytes(b"garbage")
    elif left == "no guard":
        world.config.guard.unlink()
    content = world.config.guard.read_bytes() if left != "no guard" else b""
    started = apply(world, good(world))
    assert started.kept is not None  # without the guard its mark is kept
    assert started.kept.with_name(f"{started.kept.name}.mark").exists()
    assert content == (started.kept.read_bytes() if left != "no guard" else b"")
    guard = Guard.open(world.config.guard, network="test", device=NAME)
    assert (guard.guard_order, guard.since, guard.recorded([])) == (started.digest, 3, {})
    guard.close()


# --- refused orders -------------------------------------------------------------------------------------------


def forged(world: World) -> Envelope:
    """Signed by somebody in an administrator's place."""
    return signed(world, draft(world), "admin-1", software_keys.ecdsa("somebody"))


def tampered(world: World) -> Envelope:
    """Another device's order with the name changed after it was signed."""
    payload = canonical.encode(draft(world))
    return msgspec.structs.replace(good(world, device="device-b"), payload=payload)


def typed_otherwise(world: World) -> Envelope:
    """Signatures of administrators over a transaction."""
    return world.network.put(GuardOrder(NAME, "ab" * 32, 5)).envelope


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize(
    ("order", "code", "reason"),
    [
        (forged, "not-authorized", "no administrator's"),
        (tampered, "not-authorized", "is not by key"),
        (lambda w: signed(w, draft(w)), "not-authorized", "signed by nobody alone where 2"),
        (lambda w: signed(w, draft(w), "admin-2"), "not-authorized", "signed by admin-2 alone where 2"),
        (lambda w: signed(w, draft(w), "admin-2", "admin-2"), "not-authorized", "signed by admin-2 alone where 2"),
        (lambda w: good(w, network="other"), "wrong-network", "for network other, this is test"),
        (lambda w: good(w, device="device-b"), "wrong-device", "for device device-b, this is device-a"),
        (lambda w: good(w, time=NOW - LONGEST_AGE_MILLISECONDS - 1), "order-expired", "within the last seven days"),
        (lambda w: good(w, time=NOW + 3_600_000), "order-expired", "within the last seven days"),
        (lambda w: good(w, valid_from=w.copy.height + 1), "malformed", "so 2 is the least"),
        (lambda w: good(w, height=7, valid_from=9), "order-ahead", "drawn up at height 7"),
        (typed_otherwise, "malformed", "payload type"),
    ],
)
def test_a_wrong_order_is_refused_and_changes_nothing(
    world: World, order: Callable[[World], Envelope], code: str, reason: str
) -> None:
    """Forged, too few signatures, for somebody else, too old, too early, of another kind: the guard stays as it is."""
    before = {file.name: file.read_bytes() for file in world.folder.iterdir() if file.name.startswith("guard.db")}
    with pytest.raises(RefusedError, match=reason) as refused:
        apply(world, order(world))
    assert refused.value.reason == code
    after = {file.name: file.read_bytes() for file in world.folder.iterdir() if file.name.startswith("guard.db")}
    assert before == after


@pytest.mark.requirement("K-10")
async def test_an_order_is_good_for_once(world: World) -> None:
    """Given again it is refused, also when the guard that it made is gone and the signatures are others."""
    order = draft(world)
    apply(world, signed(world, order, "admin-1", "admin-2"))
    world.config.guard.unlink()
    for by in (("admin-1", "admin-2"), ("admin-2", "admin-3")):
        with pytest.raises(RefusedError, match="carried out before") as refused:
            apply(world, signed(world, order, *by))
        assert refused.value.reason == "order-replayed"
    assert apply(world, good(world)).since == 2


@pytest.mark.requirement("K-10")
async def test_an_anchored_order_is_used_up_for_ever(world: World) -> None:
    """Once it stands on the chain it is refused without any file of the device, and so are those before it."""
    envelope, older = good(world, valid_from=5), good(world, valid_from=4)
    started = apply(world, envelope)
    entry = GuardOrder(NAME, started.digest, 5)
    async with running(world.config) as device:
        await device.apply(world.block([world.network.put(entry)]))
        assert device.parts.guard.trouble == ""
    for file in world.folder.glob("guard.db*"):
        file.unlink()
    for old in (envelope, older):
        with pytest.raises(RefusedError, match="order for this device from height 5 on") as refused:
            apply(world, old)
        assert refused.value.reason == "order-replayed"


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("seen", ["at the start", "in a later block"])
async def test_the_old_guard_put_back_signs_nothing(world: World, seen: str) -> None:
    """The chain shows that it was replaced."""
    started = apply(world, good(world))
    block = world.block([world.network.put(GuardOrder(NAME, started.digest, started.since))])
    if seen == "at the start":
        async with running(world.config) as device:
            await device.apply(block)
    for suffix in ("", ".mark"):
        shutil.copy(f"{started.kept}{suffix}", f"{world.config.guard}{suffix}")
    async with running(world.config) as device:
        if seen == "in a later block":
            await device.apply(block)
        response = await device.endorse((world.network.evidence("x", valid_from=2), ["A"]))
        assert code_of(response) == "guard-failed"
        assert "the administrators have ordered a new one from 2 on" in response.answers[0].failure.detail


@pytest.mark.requirement("K-10")
async def test_a_running_device_keeps_its_guard(world: World) -> None:
    """No order takes the guard from under a device: it must be stopped first; the order is not used up by trying."""
    envelope = good(world)
    async with running(world.config):
        with pytest.raises(GuardInUseError, match="stop that device first"):
            apply(world, envelope)
    assert apply(world, envelope).since == 2


@pytest.mark.requirement("K-10")
def test_a_crash_while_an_order_is_carried_out_leaves_nothing_to_sign_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is used up before anything is moved: after the crash there is no guard, and a new order is needed."""
    envelope = good(world)

    def crash(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Guard, "create", crash)
        with pytest.raises(KeyboardInterrupt):
            apply(world, envelope)
    with pytest.raises(GuardDamagedError, match="there is no guard"):
        Guard.open(world.config.guard, network="test", device=NAME)
    with pytest.raises(RefusedError, match="carried out before"):
        apply(world, envelope)
    assert apply(world, good(world)).kept is None


# --- on the chain ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-10")
def test_anchored_orders_only_go_forward(world: World) -> None:
    """On the chain an older order does not come back, is not taken away, and names a device that is there."""
    world.block([world.network.put(GuardOrder(NAME, "ab" * 32, 10))])
    for wish, code in (
        (world.network.put(GuardOrder(NAME, "cd" * 32, 10)), "inconsistent"),
        (world.network.put(GuardOrder(NAME, "cd" * 32, 9)), "inconsistent"),
        (world.network.put(GuardOrder("device-x", "cd" * 32, 11)), "unknown-device"),
        (world.network.registry("remove", {"keys": [f"guard-order/{NAME}"]}), "inconsistent"),
        (world.network.put(GuardOrder(NAME, "cd" * 32, 11)), "valid"),
    ):
        assert world.copy.simulate([wish]) == [code]


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_from_the_order_to_the_new_guard(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One administrator draws it up, which is not enough; another signs; it is carried out once."""
    layout = Layout(tmp_path / "net")
    write_network(world, layout)
    order, config = layout.device(NAME) / "guard-order.json", layout.device(NAME) / "device.toml"
    in_net = ("--network", str(layout.folder))
    draw_up = ("guard", "order", *in_net, "--device", NAME, "--reason", "lost", "--admin")
    carry_out = ("guard", "apply", str(order), "--config", str(config))
    assert main([*draw_up, "admin-1"]) == 0
    said = capsys.readouterr()
    assert "1 of 2 signatures" in said.out
    assert "management does not answer" in said.err
    assert main([*draw_up, "admin-2"]) == 2  # there is an order already
    assert main(list(carry_out)) == 1
    assert "not-authorized" in capsys.readouterr().err
    assert main(["guard", "sign", str(order), *in_net, "--admin", "admin-2"]) == 0
    assert "2 of 2 signatures" in capsys.readouterr().out
    assert main([*carry_out, "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert (document["valid_from"], document["headers_from"], document["signers"]) == (3, 2, ["admin-1", "admin-2"])
    assert main(list(carry_out)) == 1
    assert "order-replayed" in capsys.readouterr().err
    guard = Guard.open(layout.device(NAME) / "guard.db", network="test", device=NAME)
    assert (guard.since, guard.guard_order) == (3, document["digest"])
    guard.close()
    assert main(["guard", "anchor", str(order), *in_net]) == 3  # nobody serves this folder
    capsys.readouterr()


def write_network(world: World, layout: Layout) -> None:
    """A network folder that nobody runs: a peer and the device at height 1, the administrators' keys."""
    block = world.block([])
    for folder in (layout.peer("peer-1"), layout.device(NAME), layout.administrator_key("x").parent):
        folder.mkdir(parents=True)
    layout.genesis.write_bytes(world.genesis)
    for database in (layout.peer("peer-1") / "chain.db", layout.device(NAME) / "chain.db"):
        replica = Replica.create(ChainStore.create(url_of(database)), world.genesis)
        replica.apply(block)
        replica.store.close()
    plan = default_plan("test", ("A", "B", "C"), 1, {})
    write_settings(layout.network_file, network_settings(plan))
    for name, key in world.network.administrators.items():
        layout.administrator_key(name).write_bytes(key.pem())
        layout.administrator_key(name).chmod(0o600)
    uri = world.enrolled.token.created.uri
    (layout.device(NAME) / "device.toml").write_text(
        f'name = "{NAME}"\nlisten = ["unix:device.sock"]\nchain = ["unix:management.sock"]\n'
        f'genesis = "../../genesis.json"\ndatabase = "chain.db"\nguard = "guard.db"\n[token]\nuri = "{uri}"\n'
    )
