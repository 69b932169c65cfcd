"""A network of which one device is real: its keys live on a SoftHSM token, and its process tree is the product's.

The other nodes, a second center and all clients have software keys, so that a test can make any block it likes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from hsm_endorser.app import create_app
from hsm_endorser.config import Config
from hsm_endorser.guard import Guard
from hsm_endorser.provision import Provisioned
from hsm_endorser.service import Parts, assemble
from hsm_endorser.token import TokenConfig
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import canonical
from protocol.keys import PublicKey, Scheme
from protocol.messages import EndorseRequest, EndorseResponse, Proposal
from protocol.registry import Center, Device, Entry, Node, NodeKey, Registrar
from protocol.transaction import Transaction
from softhsm.tokens import CreatedToken, create_pin_file, create_token
from tests import software_keys
from tests.chain_builder import Network
from tests.software_keys import SoftwareKey

NAME = "device-a"
WANTED: Final[tuple[tuple[str, Scheme], ...]] = (
    ("node/A", "ecdsa-p256-sha256"),
    ("node/R", "rsa-pkcs1-sha256"),
    ("node/E", "ed25519"),
    ("node/Z", "ecdsa-p256-sha256"),
    ("center/center-1", "ecdsa-p256-sha256"),
    ("ca/ca", "ecdsa-p256-sha256"),
)
"""Node Z's key is on the token, and the registry does not list it."""


class SoftToken(msgspec.Struct, frozen=True):
    """A SoftHSM token in a folder of its own."""

    folder: Path
    created: CreatedToken

    @property
    def pin(self) -> str:
        """The PIN, as the test may know it."""
        return (self.folder / "pin").read_text().strip()

    @property
    def config(self) -> TokenConfig:
        """How a device opens it."""
        return TokenConfig.parse(self.created.uri, self.created.environment)


def new_token(folder: Path, label: str = "token-a") -> SoftToken:
    """A fresh, empty token under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("pin", "so-pin"):
        if not (folder / name).exists():
            create_pin_file(folder / name)
    return SoftToken(folder, create_token(folder, label, folder / "pin", folder / "so-pin"))


def device_config(folder: Path, token: SoftToken) -> Config:
    """The configuration of the device, its records under `folder`."""
    return Config.model_validate(
        {
            "name": NAME,
            "listen": ["unix:device.sock"],
            "chain": ["unix:management.sock"],
            "genesis": "genesis.json",
            "database": "chain.db",
            "guard": "guard.db",
            "token": {"uri": token.created.uri, "environment": token.created.environment},
        },
        context=folder,
    )


class Enrolled(msgspec.Struct, frozen=True):
    """A token with all the keys of the device, and the CA's certificate."""

    token: SoftToken
    provisioned: Provisioned
    ca_certificate: bytes


class World:
    """The network around the device, and the device's folder."""

    def __init__(self, folder: Path, enrolled: Enrolled) -> None:
        self.folder = folder
        self.enrolled = enrolled
        self.config = device_config(folder, enrolled.token)
        self.network = Network(
            nodes=("A", "R", "E", "B", "C"),
            policies={
                "assets": "OutOf(2, 'A', 'B', 'C')",
                "evidence": "OutOf(2, 'A', 'R', 'E', 'B', 'C')",
                "assets.issue": "OutOf(2, 'B', 'C')",
            },
        )
        self.other_center = software_keys.ecdsa("test center-2")
        self.network.center = self.other_center
        self.genesis = self.network.genesis(self.entries())
        (folder / "genesis.json").write_bytes(self.genesis)
        Guard.create(self.config.guard, network="test", device=NAME).close()
        self.copy = Replica.create(ChainStore.create(url_of(folder / "copy.db")), self.genesis)

    @property
    def keys(self) -> dict[str, PublicKey]:
        """The public keys on the device's token, by label."""
        return self.enrolled.provisioned.keys

    def entries(self) -> list[Entry]:
        """The network's entries, with the real device's keys in their places."""
        held = {"A": self.keys["node/A"], "R": self.keys["node/R"], "E": self.keys["node/E"]}
        entries: list[Entry] = []
        for entry in self.network.entries():
            match entry:
                case Device(name="device-a"):
                    entries.append(Device(NAME, self.keys["identity"].spki, self.enrolled.provisioned.token))
                case Node(name=name) if name in held:
                    entries.append(Node(name, (NodeKey(held[name].spki, NAME),)))
                case Center():
                    entries.append(Center("center-1", self.keys["center/center-1"].spki, NAME))
                    entries.append(Center("center-2", self.other_center.spki, "device-b"))
                case Registrar():
                    entries.append(Registrar("ca", self.keys["ca/ca"].spki, self.enrolled.ca_certificate))
                case _:
                    entries.append(entry)
        return entries

    def block(self, transactions: Sequence[Transaction], *, by: Sequence[str] = ("B", "C")) -> bytes:
        """The next block of the chain, endorsed by software nodes; the world's own copy goes on to it."""
        endorsed = [each for each in transactions if each.payload.contract != "registry"]
        index_of = {each.id: index for index, each in enumerate(transactions)}
        trees = self.network.endorse(endorsed, by=by, height=self.copy.height) if endorsed else []
        assert [index_of[each.id] for each in endorsed] == list(range(len(endorsed))), "endorsed ones come first"
        block = self.network.block(self.copy, transactions, trees).encode()
        self.copy.apply(block)
        return block


class RunningDevice:
    """A device that runs in this process, and a client for its HTTP interface."""

    def __init__(self, parts: Parts, http: httpx2.AsyncClient) -> None:
        self.parts = parts
        self.http = http

    async def endorse(self, *proposals: tuple[Transaction, Sequence[str]], least_height: int = 0) -> EndorseResponse:
        """The answer to one request, which must be 200."""
        answer = await self.http.post("/v1/endorse", content=request_body(proposals, least_height))
        assert answer.status_code == 200, answer.text
        return canonical.decode(answer.content, msgspec.json.Decoder(EndorseResponse), limit=16 << 20)

    async def apply(self, block: bytes) -> None:
        """Let the device apply a block."""
        await self.parts.chain.apply(block, self.parts.applied)

    def signatures(self) -> int:
        """C_Sign calls so far."""
        return self.parts.signer.token.signatures


def request_body(proposals: Sequence[tuple[Transaction, Sequence[str]]], least_height: int = 0) -> bytes:
    """The bytes of an endorsement request."""
    return canonical.encode(
        EndorseRequest(least_height, tuple(Proposal(msgspec.Raw(tx.raw), tuple(nodes)) for tx, nodes in proposals))
    )


@contextlib.asynccontextmanager
async def running(config: Config) -> AsyncIterator[RunningDevice]:
    """The device of a configuration, all of it but its listener and its source of blocks."""
    async with assemble(config) as parts:
        app = create_app(parts.device, parts.doors, parts.health, parts.metrics)
        stop = asyncio.Event()
        loop = asyncio.create_task(parts.device.run(stop))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://device") as http:
            try:
                yield RunningDevice(parts, http)
            finally:
                stop.set()
                await loop


def software_client(world: World, name: str = "c1") -> SoftwareKey:
    """The key of a client."""
    return world.network.clients[name]


Poll = Callable[[], bool]


async def eventually(holds: Poll, *, seconds: float = 5.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.005)
