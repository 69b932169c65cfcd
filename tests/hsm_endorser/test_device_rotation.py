"""Rotation at the device: who announces which key, what is refused, what a crash leaves behind. The token is real."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from cryptography import x509

from hsm_endorser.app import create_control_app
from hsm_endorser.provision import issue_ca_certificate, provision
from hsm_endorser.rotation import KeyOrder, Made, Rotated, RotationOrder
from protocol import block as blocks
from protocol import canonical, rotation
from protocol.endorsement import decode_head
from protocol.envelope import Envelope, pae
from protocol.keys import PublicKey
from protocol.messages import Signed
from protocol.registry import Node, NodeKey, Revocation
from protocol.rotation import Announcement
from tests.hsm_endorser.device_world import Enrolled, RunningDevice, World, device_config, new_token, running

WANTED = (
    ("node/A", "ecdsa-p256-sha256"),
    ("node/R", "ecdsa-p256-sha256"),
    ("node/E", "ed25519"),
    ("center/center-1", "ecdsa-p256-sha256"),
    ("ca/ca", "ecdsa-p256-sha256"),
)
DAY = 24 * 3600 * 1000
rotated_decoder = msgspec.json.Decoder(Rotated)
made_decoder = msgspec.json.Decoder(Made)
signed_decoder = msgspec.json.Decoder(Signed)


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolled:
    """A token of the test's own: keys are made on it."""
    token = new_token(tmp_path / "own-token")
    config = device_config(tmp_path / "own-token", token)

    async def set_up() -> Enrolled:
        provisioned = await provision(config, "test", WANTED)
        return Enrolled(token, provisioned, await issue_ca_certificate(config, "test", "ca/ca", "ca"))

    return asyncio.run(set_up())


@contextlib.asynccontextmanager
async def operated(device: RunningDevice) -> AsyncIterator[httpx2.AsyncClient]:
    """The operator's listener of a device."""
    parts = device.parts
    app = create_control_app(parts.operator, parts.health, parts.metrics)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://operator") as http:
        yield http


def order(world: World, holder: str = "node/A", **changed: Any) -> RotationOrder:
    """An order that is right for its holder at the world's height."""
    now = world.copy.time
    node = holder.startswith("node/")
    fields = {
        "holder": holder,
        "since": world.copy.height + 3 if node else 0,
        "overlap": 2 if node else 0,
        "not_before": now,
        "until": now + 365 * DAY,
    }
    return RotationOrder(**{**fields, **changed})


async def ask(device: RunningDevice, body: RotationOrder | KeyOrder) -> tuple[str, Any]:
    """The code of the refusal, or an empty one and what was made."""
    path, decoder = ("rotations", rotated_decoder) if isinstance(body, RotationOrder) else ("keys", made_decoder)
    async with operated(device) as http:
        answer = await http.post(f"/v1/{path}", content=canonical.encode(body))
    if answer.status_code == 200:
        return "", canonical.decode(answer.content, decoder)
    problem = answer.json()
    return problem["type"].rpartition(":")[2], problem["detail"]


async def rotated(device: RunningDevice, body: RotationOrder) -> Rotated:
    """What came of an order, which must be carried out."""
    code, answer = await ask(device, body)
    assert code == "", answer
    return answer


def labels(device: RunningDevice, start: str) -> list[str]:
    """The labels of the keys on the token that begin so."""
    return sorted(key.label for key in device.parts.signer.token.keys.values() if key.label.startswith(start))


def rotate(world: World, announcement: Envelope) -> bytes:
    """The block with the administrators' transaction that puts an announced key into the registry."""
    wish = world.network.registry("rotate", {"announcement": msgspec.json.decode(canonical.encode(announcement))})
    block = world.block([wish])
    (outcome,) = world.copy.store.outcomes(world.copy.height)
    assert outcome.code == "valid"
    return block


async def voting_key(device: RunningDevice, world: World, node: str = "A") -> str:
    """The key that signs for a node now."""
    answer = await device.endorse((world.network.evidence(f"at {world.copy.height}"), [node]))
    assert answer.answers[0].failure is None, answer.answers[0].failure
    (branch,) = answer.trees[0].branches
    return decode_head(branch.head).key


# --- the announcement ------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-12", "K-1")
async def test_the_old_key_and_the_new_one_announce_it(world: World, device: RunningDevice) -> None:
    """Both signatures hold; the new key is on the token beside the old one; the journal has all of it before."""
    wanted = order(world)
    answer = await rotated(device, wanted)
    old = world.keys["node/A"]
    announcement = rotation.verify(answer.announcement, old)
    assert announcement == Announcement(
        network="test",
        holder="node/A",
        old=old.id,
        new=answer.made.key,
        device="device-a",
        since=wanted.since,
        overlap=2,
        not_before=wanted.not_before,
        until=wanted.until,
    )
    assert answer.made.id == PublicKey.load(announcement.new).id != old.id
    assert labels(device, "node/A") == ["node/A", "node/A/2"]
    digest = hashlib.sha256(pae(rotation.PAYLOAD_TYPE, answer.announcement.payload)).hexdigest()
    new_rows = device.parts.guard.journal(key=answer.made.id)
    assert [row.entry.purpose for row in new_rows] == ["challenge", "rotation"]
    old_rows = [row for row in device.parts.guard.journal(key=old.id) if row.entry.purpose == "rotation"]
    assert [row.entry.digest for row in (*old_rows, new_rows[1])] == [digest, digest]


@pytest.mark.requirement("K-12", "E-9")
async def test_the_device_votes_with_the_key_that_counts_in_the_next_block(world: World, device: RunningDevice) -> None:
    """Up to the block before `since` the old key signs, from then on the new one, in the overlap and after it."""
    wanted = order(world)
    answer = await rotated(device, wanted)
    old = world.keys["node/A"].id
    seen = {}
    await device.apply(rotate(world, answer.announcement))
    while world.copy.height < wanted.since + wanted.overlap + 1:
        seen[world.copy.height + 1] = await voting_key(device, world)
        await device.apply(world.block([]))
    new = answer.made.id
    assert wanted.since == 3
    assert seen == {2: old, 3: new, 4: new, 5: new, 6: new}


@pytest.mark.requirement("K-12")
async def test_the_same_order_again_uses_the_same_new_key(world: World, device: RunningDevice) -> None:
    """Until the key is in the registry it is announced again, also with other dates; two at once make one key."""
    first = await rotated(device, order(world))
    again, other = await asyncio.gather(
        rotated(device, order(world)), rotated(device, order(world, since=world.copy.height + 9))
    )
    assert {each.made.id for each in (first, again, other)} == {first.made.id}
    assert labels(device, "node/A") == ["node/A", "node/A/2"]


@pytest.mark.requirement("K-12")
async def test_the_next_rotation_makes_a_key_of_its_own(world: World, device: RunningDevice) -> None:
    """A key that is in the registry is announced by none but itself and its successor."""
    first = await rotated(device, order(world, since=2))
    await device.apply(rotate(world, first.announcement))
    second = await rotated(device, order(world))
    assert rotation.decode(second.announcement).old == first.made.id
    assert labels(device, "node/A") == ["node/A", "node/A/2", "node/A/3"]
    await device.apply(rotate(world, second.announcement))
    for _ in range(3):
        await device.apply(world.block([]))
    assert await voting_key(device, world) == second.made.id


@pytest.mark.requirement("K-12", "K-10")
async def test_a_crash_leaves_no_pile_of_keys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device dies after the token has made the key and before anything else: the next process finds and uses it."""
    async with running(world.config) as device:

        async def dies(*_: object) -> None:
            raise OSError("killed")

        monkeypatch.setattr(device.parts.signer.token, "journal", dies)
        with pytest.raises(OSError, match="killed"):
            await device.parts.operator.rotations.announce(order(world))
        assert labels(device, "node/A") == ["node/A", "node/A/2"]
    for _ in range(2):
        async with running(world.config) as device:
            answer = await rotated(device, order(world))
            assert labels(device, "node/A") == ["node/A", "node/A/2"]
            made = next(key for key in device.parts.signer.token.keys.values() if key.label == "node/A/2")
            assert answer.made.id == made.public_key.id


@pytest.mark.requirement("K-1", "K-12")
async def test_a_key_that_somebody_put_on_the_token_is_not_taken(world: World, device: RunningDevice) -> None:
    """Only a key whose making stands in this guard's journal is announced, whatever its label."""
    planted = await device.parts.signer.token.generate("node/A/2", "ecdsa-p256-sha256")
    other = await ask(device, KeyOrder("node/R"))
    answer = await rotated(device, order(world))
    assert answer.made.id not in {planted.public_key.id, other[1].id}
    assert answer.made.label == "node/A/3"


@pytest.mark.requirement("K-12")
async def test_a_key_is_made_for_a_holder_once(world: World, device: RunningDevice) -> None:
    """`/v1/keys` gives the same key until it is registered; it has answered a challenge; another scheme is another."""
    wanted = KeyOrder("node/N")
    (code, made), again, edwards = (
        await ask(device, wanted),
        await ask(device, wanted),
        await ask(device, KeyOrder("node/N", "ed25519")),
    )
    assert (code, again[1], made.label) == ("", made, "node/N")
    assert PublicKey.load(made.key).id == made.id
    assert PublicKey.load(edwards[1].key).scheme == "ed25519"
    assert [row.entry.purpose for row in device.parts.guard.journal(key=made.id)] == ["challenge"]
    await device.apply(world.block([world.network.put(Node("N", (NodeKey(made.key, "device-a"),)))]))
    assert (await ask(device, wanted))[1].id != made.id


# --- centers and the CA ------------------------------------------------------------------------------------------


@pytest.mark.requirement("K-12", "M-4")
async def test_the_handover_block_is_signed_by_the_key_before(
    world: World, device: RunningDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block that brings a center's new key has a header by the old one; the next header is by the new one."""
    monkeypatch.setattr("hsm_endorser.doors.clock", lambda: world.copy.time + 1000)
    old = world.keys["center/center-1"]
    answer = await rotated(device, order(world, "center/center-1"))
    wish = world.network.registry(
        "rotate", {"announcement": msgspec.json.decode(canonical.encode(answer.announcement))}
    )
    signers = []
    for transactions in ([wish], []):
        block = world.copy.draft(world.copy.time + 500, transactions, []).block
        reply = await device.http.post("/v1/sign-header", content=block.encode())
        assert reply.status_code == 200, reply.text
        signature = canonical.decode(reply.content, signed_decoder).signature
        signed = block.signed(Envelope(block.envelope.payload, blocks.PAYLOAD_TYPE, (signature,)))
        signers.append(signature.keyid)
        world.copy.apply(signed.encode())
        await device.apply(signed.encode())
    assert signers == [old.id, answer.made.id]


@pytest.mark.requirement("K-12", "E-1")
async def test_the_ca_certifies_its_own_new_key(world: World, device: RunningDevice) -> None:
    """The announcement carries a CA certificate of the new key under the same name; from then on it alone signs."""
    wanted = order(world, "registrar/ca")
    answer = await rotated(device, wanted)
    announcement = rotation.verify(answer.announcement, world.keys["ca/ca"])
    certificate = x509.load_der_x509_certificate(announcement.certificate)
    certificate.verify_directly_issued_by(certificate)
    before = x509.load_der_x509_certificate(world.enrolled.ca_certificate)
    assert certificate.subject == before.subject
    assert PublicKey.of(certificate.public_key()).id == answer.made.id
    assert certificate.not_valid_after_utc.timestamp() * 1000 == wanted.until // 1000 * 1000
    assert answer.made.label == "ca/ca/2"
    await device.apply(rotate(world, answer.announcement))
    assert device.parts.doors._ca().key.id == answer.made.id


@pytest.mark.requirement("K-12")
async def test_a_retired_key_never_comes_back(world: World, device: RunningDevice) -> None:
    """A center's key that was rotated in and out before it signed a header is in no entry; it is not made use of."""
    made = []
    for number in (2, 3, 4):
        answer = await rotated(device, order(world, "center/center-1"))
        assert answer.made.label == f"center/center-1/{number}"
        made.append(answer.made.id)
        await device.apply(rotate(world, answer.announcement))
    assert len(set(made)) == 3


@pytest.mark.requirement("K-12", "K-13")
async def test_an_expired_ca_gets_a_new_key_by_the_administrators_word(world: World, device: RunningDevice) -> None:
    """Its old key announces nothing any more; the device makes the next one, which certifies itself."""
    end = world.copy.time + 500
    entry = msgspec.structs.replace(world.copy.registry.registrar("ca"), until=end)
    await device.apply(world.block([world.network.put(entry)]))
    assert (await ask(device, order(world, "registrar/ca")))[0] == "no-key-in-force"
    code, made = await ask(device, KeyOrder("registrar/ca", until=end + DAY))
    assert code == ""
    assert (await ask(device, KeyOrder("registrar/ca", until=end + DAY)))[1].id == made.id
    certificate = x509.load_der_x509_certificate(made.certificate)
    assert PublicKey.of(certificate.public_key()).id == made.id
    fresh = msgspec.structs.replace(entry, key=made.key, certificate=made.certificate, until=end + DAY)
    await device.apply(world.block([world.network.put(fresh)]))
    assert device.parts.doors._ca().key.id == made.id


# --- refusals ----------------------------------------------------------------------------------------------------


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"holder": "node/X"}, "unknown-holder"),
    ({"holder": "node/B"}, "no-key-in-force"),
    ({"holder": "center/center-2", "since": 0, "overlap": 0}, "no-key-in-force"),
    ({"holder": "client/c1"}, "malformed"),
    ({"holder": "administrator/admin-1"}, "malformed"),
    ({"since": 0}, "bad-rotation"),
    ({"since": 10**9}, "bad-rotation"),
    ({"until": 1}, "bad-rotation"),
    ({"not_before": 2 * 10**13, "until": 10**13}, "bad-rotation"),
    ({"holder": "center/center-1", "overlap": 1, "since": 0}, "bad-rotation"),
    ({"holder": "registrar/ca", "overlap": 0, "since": 9}, "bad-rotation"),
    ({"certificate": b"x"}, "wrong-certificate"),
    ({"holder": "registrar/ca", "overlap": 0, "since": 0, "certificate": b"x"}, "malformed"),
    ({"old": "00" * 32}, "no-key-in-force"),
)


@pytest.mark.requirement("K-12")
async def test_what_is_not_announced(world: World, device: RunningDevice) -> None:
    """Each is refused with its reason, and no signature for an announcement is made."""
    got = [(changed, (await ask(device, order(world, **changed)))[0]) for changed, _ in REFUSED]
    assert got == list(REFUSED)
    assert [row for row in device.parts.guard.journal() if row.entry.purpose == "rotation"] == []


@pytest.mark.requirement("K-12")
async def test_a_ca_certificate_must_be_of_the_new_key(world: World, device: RunningDevice) -> None:
    """A certificate that was brought along is looked at: that of the old key does not do."""
    wanted = order(world, "registrar/ca", certificate=world.enrolled.ca_certificate)
    assert (await ask(device, wanted))[0] == "wrong-certificate"


@pytest.mark.requirement("K-12")
async def test_a_rotation_waits_for_the_one_before(world: World, device: RunningDevice) -> None:
    """While an announced key has yet to count, no further one is announced: two would follow one another at once."""
    first = await rotated(device, order(world, since=world.copy.height + 5))
    await device.apply(rotate(world, first.announcement))
    code, why = await ask(device, order(world))
    assert code == "rotation-under-way"
    assert "from height 5 on" in why


@pytest.mark.requirement("K-12", "K-14")
async def test_a_revoked_key_announces_nothing(world: World, device: RunningDevice) -> None:
    """Who has stolen a key cannot use it to bring in one of his own; nor is a revoked new key used again."""
    first = await rotated(device, order(world))
    old = world.keys["node/A"]
    await device.apply(world.block([world.network.put(Revocation(old.id, "node/A", "key-compromise", 0))]))
    code, why = await ask(device, order(world))
    assert code == "no-key-in-force"
    assert "was revoked" in why
    assert "hsm-endorser device replace" in why
    assert first.made.id in device.parts.signer.token.keys


@pytest.mark.requirement("K-12", "K-10")
async def test_nothing_is_announced_without_the_guard(world: World, device: RunningDevice) -> None:
    """A device whose guard is in trouble makes no key and signs no announcement."""
    device.parts.guard._fall_behind("is old")
    assert (await ask(device, order(world)))[0] == "guard-failed"
    assert labels(device, "node/A") == ["node/A"]


@pytest.mark.requirement("K-12")
async def test_a_drained_device_rotates(world: World, device: RunningDevice) -> None:
    """The gate is closed for those who want signatures, not for the operator."""
    device.parts.device.gate.close()
    assert (await rotated(device, order(world))).made.label == "node/A/2"
