"""The device as a service: its configuration, its sockets, the chain that it follows, what it says of itself."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from cli.plan import device_settings, write_settings
from hsm_endorser.config import Config, load
from hsm_endorser.errors import ConfigError
from hsm_endorser.identity import STATEMENT_TYPE, IdentityStatement
from hsm_endorser.service import serve
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.envelope import Envelope, pae
from protocol.messages import DeviceStatus, EndorseResponse
from tests.hsm_endorser.device_world import RunningDevice, World, eventually, request_body
from transport import listen
from transport.connect import connect

TOKEN = "pkcs11:token=a?module-path=/m"
status_decoder = msgspec.json.Decoder(DeviceStatus)


class Source:
    """A stream of blocks, as management has it."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.asked: list[int] = []

    async def stream(self, request: Request) -> StreamingResponse:
        """`GET /v1/blocks?from=H`."""
        height = int(request.query_params["from"])
        self.asked.append(height)

        async def lines() -> AsyncIterator[bytes]:
            at = height - 1  # block 0 is the genesis file
            yield b"\n"
            while True:
                for block in self.blocks[at:]:
                    at += 1
                    yield block + b"\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(lines())


@contextlib.asynccontextmanager
async def served(config: Config, source: Source) -> AsyncIterator[None]:
    """The device and its source, both at their sockets."""
    stop = asyncio.Event()
    app = Starlette(routes=[Route("/v1/blocks", source.stream)])
    parts = [
        asyncio.create_task(listen.serve(app, list(config.chain), stop)),
        asyncio.create_task(serve(config, stop)),
    ]
    socket = config.listen[0].path
    try:
        await eventually(lambda: socket.exists() or parts[1].done(), seconds=10)
        if parts[1].done():
            parts[1].result()
        yield
    finally:
        stop.set()
        await asyncio.gather(*parts, return_exceptions=True)


async def status(config: Config) -> DeviceStatus:
    """What the device says of itself over its socket."""
    async with connect(config.listen[0], timeout=5) as http:
        return canonical.decode((await http.get("/v1/status")).content, status_decoder)


async def status_becomes(config: Config, holds: Callable[[DeviceStatus], bool]) -> DeviceStatus:
    """Ask until the status is as expected."""
    async with asyncio.timeout(5):
        while True:
            now = await status(config)
            if holds(now):
                return now
            await asyncio.sleep(0.01)


@pytest.mark.requirement("E-10")
async def test_a_device_follows_the_chain_and_endorses(world: World) -> None:
    """It applies the blocks of the stream, says so, votes at their height, and resumes there after a stop."""
    source = Source()
    source.blocks = [world.block([world.network.evidence(f"s{index}")]) for index in range(3)]
    async with served(world.config, source):
        await status_becomes(world.config, lambda now: now.height == 3)
        async with connect(world.config.listen[0], timeout=5) as http:
            body = request_body([(world.network.evidence("s0"), ["A"]), (world.network.evidence("new"), ["A"])], 3)
            answer = await http.post("/v1/endorse", content=body)
        response = canonical.decode(answer.content, msgspec.json.Decoder(EndorseResponse))
        verdicts = [(vote.verdict, vote.reason) for each in response.answers for vote in each.votes]
        assert verdicts == [("reject", "already-recorded"), ("approve", "")]
        assert response.height == 3
        now = await status(world.config)
        assert (now.nodes, now.ready, now.reason, now.queued) == (("A", "E", "R"), True, "", 0)
    assert source.asked == [1]
    async with served(world.config, source):
        assert (await status(world.config)).height == 3
        await eventually(lambda: source.asked[-1] == 4)


@pytest.mark.requirement("E-16")
async def test_a_device_halts_at_a_block_that_lies(world: World) -> None:
    """A block that the centers signed and whose outcomes are wrong: no vote any more, and the reason everywhere."""
    good = world.copy.draft(world.copy.time + 1, [], []).block
    lie = world.network.forge(good, outcome_root="00" * 32)
    source = Source()
    source.blocks = [lie.encode()]
    async with served(world.config, source):
        now = await status_becomes(world.config, lambda now: not now.ready)
        assert "halted: block 1: diverged" in now.reason
        assert now.height == 0


async def test_a_bad_copy_is_asked_for_again(world: World) -> None:
    """A block that no center signed is a source's fault: the device asks again and goes on."""
    block = world.block([])
    source = Source()
    source.blocks = [block.replace(b'"sig":"MEQ', b'"sig":"MEU').replace(b'"sig":"MEU', b'"sig":"MEQA', 1)]
    async with served(world.config, source):
        await eventually(lambda: len(source.asked) >= 2)
        source.blocks = [block]
        assert (await status_becomes(world.config, lambda now: now.height == 1)).ready


@pytest.mark.requirement("K-10")
async def test_a_device_without_its_guard_runs_to_say_so(world: World) -> None:
    """The guard is never made in passing: the listener is there, and answers why nothing is signed."""
    world.config.guard.unlink()
    async with served(world.config, Source()):
        now = await status(world.config)
    assert not now.ready
    assert "without it this device could sign two different votes" in now.reason
    assert not world.config.guard.exists()


async def test_a_device_that_is_not_enrolled_does_not_start(world: World) -> None:
    """The registry must know the device by its name."""
    stranger = world.config.model_copy(update={"name": "device-x"})
    with pytest.raises(ConfigError, match="knows no device device-x"):
        await serve(stranger, asyncio.Event())


async def test_another_networks_chain_is_not_opened(world: World) -> None:
    """The stored chain must begin with the genesis file that is configured."""
    ChainStore.create(url_of(world.config.database)).close()
    async with served(world.config, Source()):
        pass
    world.config.genesis.write_bytes(world.genesis + b" ")
    with pytest.raises(ConfigError, match="does not begin with"):
        await serve(world.config, asyncio.Event())


@pytest.mark.requirement("E-20")
async def test_the_identity_key_answers_for_the_device(world: World, device: RunningDevice) -> None:
    """A statement over the asker's nonce verifies under the identity key of the registry."""
    nonce = "5a" * 32
    answer = await device.http.get(f"/v1/identity?nonce={nonce}")
    envelope = canonical.decode(answer.content, msgspec.json.Decoder(Envelope))
    assert envelope.payload_type == STATEMENT_TYPE
    (signature,) = envelope.signatures
    world.keys["identity"].verify(signature.sig, pae(STATEMENT_TYPE, envelope.payload), low_s=True)
    said = canonical.decode(envelope.payload, msgspec.json.Decoder(IdentityStatement))
    assert (said.device, said.network, said.nonce) == ("device-a", "test", nonce)
    assert said.token == world.enrolled.provisioned.token
    purposes = [row.entry.purpose for row in device.parts.guard.journal(key=world.keys["identity"].id)]
    assert purposes == ["challenge", "statement"]


@pytest.mark.parametrize("nonce", ["", "5a", "5A" * 32, "zz" * 32, "5a" * 65])
async def test_odd_nonces_are_refused(device: RunningDevice, nonce: str) -> None:
    """A nonce has 16 to 64 bytes in lower-case hexadecimal."""
    answer = await device.http.get("/v1/identity", params={"nonce": nonce})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


async def test_readiness_is_a_real_signature(device: RunningDevice) -> None:
    """Being asked costs one signature, and the next two seconds none; a hanging token is not ready."""
    device.parts.health._asked = float("-inf")
    before = device.signatures()
    for _ in range(5):
        assert (await device.http.get("/health/ready")).status_code == 200
    assert device.signatures() == before + 1
    os.kill(device.parts.signer.token.worker_pid, signal.SIGSTOP)
    device.parts.health._asked = float("-inf")
    answer = await device.http.get("/health/ready")
    assert answer.status_code == 503
    assert "did not answer within 1 s" in answer.json()["checks"]["token"]


async def test_figures_are_there(world: World, device: RunningDevice) -> None:
    """The counters that operators and the demo read."""
    await device.endorse((world.network.evidence("x"), ["A"]))
    text = (await device.http.get("/metrics")).text
    assert "hsm_endorser_device_signatures_total 2.0" in text
    assert 'hsm_endorser_device_votes_total{verdict="approve"} 1.0' in text
    assert 'hsm_endorser_device_token_calls_total{operation="sign",result="ok"} 2.0' in text


@pytest.mark.parametrize(
    ("body", "status_code", "code"),
    [
        (b"", 400, "malformed"),
        (b"[]", 400, "malformed"),
        (b'{"least_height":0,"proposals":[]}', 400, "malformed"),
        (b'{"least_height":0, "proposals":[{"nodes":["A"],"transaction":{}}]}', 400, "malformed"),
        (b'{"least_height":0,"least_height":0,"proposals":[{"nodes":["A"],"transaction":{}}]}', 400, "malformed"),
        (b'{"least_height":-1,"proposals":[{"nodes":["A"],"transaction":{}}]}', 400, "malformed"),
        (b"\xff\xfe", 400, "malformed"),
        (b"[" * 100_000, 400, "malformed"),
        (b'{"least_height":0,"proposals":[{"nodes":["A"],"transaction":' + b"[" * 100_000, 400, "limit-exceeded"),
    ],
)
async def test_odd_bodies_are_refused(device: RunningDevice, body: bytes, status_code: int, code: str) -> None:
    """What is not canonical, not of the type, not UTF-8 or too deep is a problem with the reason."""
    answer = await device.http.post("/v1/endorse", content=body)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status_code, code)
    assert answer.json()["detail"]


async def test_the_interface_is_documented(device: RunningDevice) -> None:
    """The OpenAPI document has the schema of every body and answer, without loose references."""
    document = (await device.http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        *("/v1/endorse", "/v1/sign-header", "/v1/sign-certificate", "/v1/sign-crl", "/v1/sign-registration"),
        *("/v1/status", "/v1/identity"),
    }
    body = document["paths"]["/v1/endorse"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"least_height", "proposals"}
    answer = document["paths"]["/v1/endorse"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answer["properties"]) == {"device", "height", "answers", "trees"}
    assert "#/$defs" not in str(document)


# --- configuration -------------------------------------------------------------------------------------------


def written(folder: Path, **changed: object) -> Path:
    """A `device.toml` as `network init` writes it, with changes."""
    uri = "pkcs11:token=a;serial=1?module-path=/m.so&pin-source=file:pin"
    settings = device_settings("device-a", uri, {"SOFTHSM2_CONF": "softhsm2.conf"})
    path = folder / "device.toml"
    write_settings(path, {**settings, **changed})
    return path


def test_a_configuration_is_read(tmp_path: Path) -> None:
    """File names are relative to the file, those in the token's URI and environment too."""
    config = load(written(tmp_path))
    assert config.guard == tmp_path / "guard.db"
    assert config.token_config.uri.pin_file == tmp_path / "pin"
    assert config.token_config.environment == {"SOFTHSM2_CONF": str(tmp_path / "softhsm2.conf")}
    assert config.token_config.seconds == 1.0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"name": "no name"}, "name:"),
        ({"listen": []}, "listen:"),
        ({"listen": ["http://0.0.0.0:8080"]}, "listen.0: .*reachable from other machines"),
        ({"more": 1}, "more:"),
        ({"token": {"uri": "pkcs11:token=a?module-path=/m&pin-value=secret-77"}}, "token.uri: .*pin-source=file:"),
        (
            {"token": {"uri": "pkcs11:token=a?module-path=/m&pin-source=file:/p", "deadline_ms": 1}},
            "token.deadline_ms:",
        ),
    ],
)
@pytest.mark.requirement("S-1", "S-6")
def test_a_wrong_configuration_is_refused_by_its_field(tmp_path: Path, changed: dict, reason: str) -> None:
    """The message names the file and the field, and never a PIN."""
    with pytest.raises(ConfigError, match=reason) as caught:
        load(written(tmp_path, **changed))
    assert str(tmp_path / "device.toml") in str(caught.value)
    assert "secret-77" not in str(caught.value)
