"""A network of three nodes for the tests of management: everybody else's keys, and devices that can be attacked.

The devices speak the protocol over Unix sockets like real ones, with software keys: they stand for the whole other
side, so that it can lie. Real devices come in the flow tests.
"""

import asyncio
import contextlib
import datetime as dt
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ledger.genesis import draft_genesis, genesis_payload
from management.config import Config, DeviceConfig
from management.service import serve
from protocol import canonical, merkle
from protocol import registry as entries
from protocol.block import PAYLOAD_TYPE as HEADER_TYPE
from protocol.block import Block
from protocol.endorsement import PAYLOAD_TYPE as HEAD_TYPE
from protocol.endorsement import Branch, Tree, TreeHead, Vote
from protocol.envelope import Envelope, Signature, pae
from protocol.keys import key_id, low_s
from protocol.messages import (
    Answer,
    DeviceStatus,
    EndorseRequest,
    EndorseResponse,
    Failure,
    SignCertificate,
    SignCrl,
    Signed,
    SignRegistration,
)
from protocol.transaction import PAYLOAD_TYPE as TRANSACTION_TYPE
from protocol.transaction import Transaction, TransactionPayload
from transport import listen
from transport.address import Address
from transport.connect import connect
from transport.problem import ProblemError, problem_response

NETWORK = "testnet"
HOUR = 3_600_000


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Key:
    """A software key of somebody on the other side."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.id = key_id(self.spki)

    def sign(self, message: bytes) -> Signature:
        """A signature in the form of nodes: DER, low s."""
        return Signature(self.id, low_s(self.private.sign(message, ec.ECDSA(hashes.SHA256()))))

    def envelope(self, payload_type: str, payload: bytes) -> Envelope:
        """A signed envelope."""
        return Envelope(payload, payload_type, (self.sign(pae(payload_type, payload)),))


def _identifier(key: Key) -> bytes:
    """How a CA's certificates and lists name its key."""
    return x509.SubjectKeyIdentifier.from_public_key(key.private.public_key()).digest


class Author:
    """A client or an administrator, who signs transactions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = Key()

    def transaction(
        self,
        kind: str = "evidence.record",
        arguments: dict[str, object] | None = None,
        *,
        network: str = NETWORK,
        valid_until: int | None = None,
        valid_from: int = 0,
    ) -> Transaction:
        """A signed transaction; evidence under a new subject unless another kind is wanted."""
        contract, _, operation = kind.partition(".")
        payload = canonical.encode(
            TransactionPayload(
                version=1,
                network=network,
                client=self.name,
                contract=contract,
                operation=operation,
                arguments=arguments or {"subject": secrets.token_hex(8), "digest": "ab" * 32, "attributes": {}},
                nonce=secrets.token_hex(16),
                valid_from=valid_from,
                valid_until=now_ms() + HOUR if valid_until is None else valid_until,
            )
        )
        return Transaction.decode(canonical.encode(self.key.envelope(TRANSACTION_TYPE, payload)))

    def csr(self) -> bytes:
        """A certificate signing request (PEM)."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.key.private, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.PEM)


class SimulatedDevice:
    """An endorsement device with software keys that can be told to lie, to fail and to hang."""

    def __init__(self, name: str, node_keys: dict[str, Key], folder: Path) -> None:
        self.name = name
        self.identity = Key()
        self.node_keys = node_keys
        self.center: Key | None = None
        self.ca: Key | None = None
        self.ca_keys: dict[str, Key] = {}
        """Earlier keys of the CA, and the one in force, by id: for their lists."""
        self.registration_key: Key | None = None
        """What it signs registrations with, where it is not the CA's key."""
        self.address = Address(path=folder / f"{name}.sock")
        self.ready = True
        self.reason = "the token is gone"
        self.seconds = (0.0, 0.0)
        """How long it works on a request, and on each proposal in it; on one request after the other."""
        self.lock = asyncio.Lock()
        self.listens = False
        self.height = 0
        self.sequence = 0
        self.requests: list[list[str]] = []
        self.asked_headers: list[Block] = []
        self.signed_headers: list[Block] = []
        self.verdict: Callable[[Transaction, str], str] = lambda _transaction, _node: ""
        """The reason for which a node rejects; empty for an approval."""
        self.failure: Failure | None = None
        self.attacks: list[Callable[[EndorseResponse], EndorseResponse | bytes]] = []
        """Each is used up by one answer."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.header_gate = asyncio.Event()
        self.header_gate.set()
        self.header_attacks: list[Callable[[Signed], Signed | Response]] = []
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes whose keys it holds."""
        return tuple(sorted(self.node_keys))

    def app(self) -> Starlette:
        """Its doors."""
        return Starlette(
            routes=[
                Route("/v1/endorse", self._endorse, methods=["POST"]),
                Route("/v1/sign-header", self._sign_header, methods=["POST"]),
                Route("/v1/sign-certificate", self._sign_certificate, methods=["POST"]),
                Route("/v1/sign-crl", self._sign_crl, methods=["POST"]),
                Route("/v1/sign-registration", self._sign_registration, methods=["POST"]),
                Route("/v1/status", self._status),
            ]
        )

    async def start(self) -> None:
        """Listen."""
        self._stop = asyncio.Event()
        self.listens = True
        self._task = asyncio.create_task(listen.serve(self.app(), [self.address], self._stop))

    async def stop(self) -> None:
        """Be gone."""
        self.listens = False
        self.gate.set()
        self.header_gate.set()
        self._stop.set()
        if self._task:
            await self._task

    def vote(self, transaction: str, node: str, reason: str = "") -> Vote:
        """A vote of a node."""
        return Vote(NETWORK, transaction, node, "reject" if reason else "approve", reason)

    def respond(self, answers: list[Answer], height: int, keys: dict[str, Key] | None = None) -> EndorseResponse:
        """A response around these answers: one tree over all votes, honest unless `keys` are not."""
        votes: dict[str, list[Vote]] = {}
        for answer in answers:
            for vote in answer.votes:
                votes.setdefault(vote.node, []).append(vote)
        return EndorseResponse(self.name, height, tuple(answers), (self.tree(votes, height, keys),) if votes else ())

    def tree(self, votes: dict[str, list[Vote]], height: int, keys: dict[str, Key] | None = None) -> Tree:
        """A signed tree over votes by node."""
        self.sequence += 1
        leaves = [vote.leaf() for some in votes.values() for vote in some]
        root = merkle.root(leaves).hex()
        branches = []
        for node, some in votes.items():
            key = (keys or self.node_keys)[node]
            head = TreeHead(NETWORK, self.name, node, key.id, root, len(leaves), height, self.sequence)
            branches.append(
                Branch(node, tuple(v.leaf().hex() for v in some), key.envelope(HEAD_TYPE, canonical.encode(head)))
            )
        return Tree(tuple(branches))

    async def _endorse(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=EndorseRequest)
        transactions = [Transaction.decode(bytes(proposal.transaction)) for proposal in asked.proposals]
        self.requests.append([transaction.id for transaction in transactions])
        await self.gate.wait()
        async with self.lock:
            fixed, each = self.seconds
            await asyncio.sleep(fixed + each * len(transactions))
        answers = [
            Answer(failure=self.failure)
            if self.failure
            else Answer(
                tuple(self.vote(transaction.id, node, self.verdict(transaction, node)) for node in proposal.nodes)
            )
            for transaction, proposal in zip(transactions, asked.proposals, strict=True)
        ]
        response: EndorseResponse | bytes = self.respond(answers, asked.least_height)
        if self.attacks:
            assert isinstance(response, EndorseResponse)
            response = self.attacks.pop(0)(response)
        return Response(response if isinstance(response, bytes) else canonical.encode(response))

    async def _sign_header(self, request: Request) -> Response:
        block = Block.decode(await request.body())
        self.asked_headers.append(block)
        await self.header_gate.wait()
        if self.center is None:
            return problem_response(ProblemError(404, "no-such-door", "no center key here").problem)
        self.signed_headers.append(block)
        signed = Signed(self.center.sign(pae(HEADER_TYPE, block.envelope.payload)))
        if self.header_attacks:
            attacked = self.header_attacks.pop(0)(signed)
            return attacked if isinstance(attacked, Response) else Response(canonical.encode(attacked))
        self.height = block.header.height
        return Response(canonical.encode(signed))

    async def _sign_certificate(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=SignCertificate)
        return self._by_ca(asked.tbs)

    async def _sign_crl(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=SignCrl)
        named = [key for key in self.ca_keys.values() if _identifier(key) in asked.tbs]
        return self._by_ca(asked.tbs, named[0] if named else None)

    async def _sign_registration(self, request: Request) -> Response:
        asked = msgspec.json.decode(await request.body(), type=SignRegistration)
        return self._by_ca(pae(TRANSACTION_TYPE, asked.payload), self.registration_key)

    def _by_ca(self, message: bytes, key: Key | None = None) -> Response:
        signer = key or self.ca
        assert signer is not None
        return Response(canonical.encode(Signed(signer.sign(message))))

    async def _status(self, _request: Request) -> Response:
        doors = ("sign-header", "sign-certificate", "sign-crl", "sign-registration") if self.ca else ()
        reason = "" if self.ready else self.reason
        status = DeviceStatus(self.name, self.nodes, doors, self.height, self.ready, reason, 0, 0)
        return Response(canonical.encode(status))


class SimulatedNetwork:
    """Nodes A, B, C on devices a, b, c; center-1 and the CA on device-a; clients alice and bob.

    Each node has its key on its own device, or, `replicated`, one on each device. Evidence goes by `routing`.
    """

    def __init__(
        self,
        folder: Path,
        policy: str = "OutOf(2, 'A', 'B', 'C')",
        routing: entries.Routing | None = None,
        *,
        replicated: bool = False,
        distinct: bool = False,
    ) -> None:
        self.folder = folder
        self.routing = routing or entries.Partitioned()
        self.distinct = distinct
        self.alice, self.bob, self.mallory = Author("alice"), Author("bob"), Author("mallory")
        self.admin = Author("admin")
        self.node_keys = {node: Key() for node in "ABC"}
        self.devices = {
            f"device-{node.lower()}": SimulatedDevice(
                f"device-{node.lower()}",
                {other: Key() for other in self.node_keys if replicated and other != node} | {node: key},
                folder,
            )
            for node, key in self.node_keys.items()
        }
        self.center_key, self.ca_key = Key(), Key()
        self.device_a, self.device_b, self.device_c = self.devices.values()
        self.device_a.center, self.device_a.ca = self.center_key, self.ca_key
        self._write_genesis(policy)

    def config(self, **changes: object) -> Config:
        """The configuration of the center."""
        values: dict[str, object] = {
            "name": "center-1",
            "listen": [Address(path=self.folder / "management.sock")],
            "control": Address(path=self.folder / "control.sock"),
            "genesis": self.folder / "genesis.json",
            "database": self.folder / "chain.db",
            "devices": [DeviceConfig(name=name, address=device.address) for name, device in self.devices.items()],
            "period_ms": 50,
        }
        return Config(**{**values, **changes})  # type: ignore[arg-type]  # pydantic checks

    def _write_genesis(self, policy: str) -> None:
        first = [
            entries.Channel(NETWORK, 1, 1, 1, 24 * HOUR, "none"),
            entries.Administrator("admin", self.admin.key.spki),
            entries.Registrar("ca", self.ca_key.spki, self._ca_certificate()),
            entries.Center("center-1", self.center_key.spki, "device-a"),
            *(
                entries.Device(name, device.identity.spki, entries.Token("simulated", "software", name))
                for name, device in self.devices.items()
            ),
            *(
                entries.Node(
                    node,
                    tuple(
                        entries.NodeKey(device.node_keys[node].spki, name)
                        for name, device in self.devices.items()
                        if node in device.node_keys
                    ),
                )
                for node in self.node_keys
            ),
            entries.Client("alice", self.alice.key.spki, ""),
            entries.Client("bob", self.bob.key.spki, ""),
            entries.EndorsementPolicy("evidence", policy, self.routing, self.distinct),
            entries.EndorsementPolicy("assets", policy),
        ]
        payload = genesis_payload(NETWORK, first)
        block = draft_genesis(canonical.encode(self.admin.key.envelope(TRANSACTION_TYPE, payload)), now_ms())
        signed = block.signed(self.center_key.envelope(HEADER_TYPE, block.envelope.payload))
        (self.folder / "genesis.json").write_bytes(signed.encode())

    def registrar(self, key: Key) -> entries.Registrar:
        """The CA's entry with another key, which certifies itself."""
        return entries.Registrar("ca", key.spki, self._ca_certificate(key))

    def _ca_certificate(self, key: Key | None = None) -> bytes:
        key = key or self.ca_key
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.private.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.private.public_key()), critical=False)
            .sign(key.private, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)


class RunningCenter:
    """A management service that runs in this process, and how to talk to it."""

    def __init__(self, network: SimulatedNetwork, config: Config) -> None:
        self.network = network
        self.config = config
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(serve(config, self._stop))
        self.http = connect(config.listen[0], timeout=30.0)
        self.control = connect(config.control, timeout=30.0)

    async def until_ready(self) -> None:
        """Wait until the service has seen every device that listens and is ready."""
        expected = {name for name, device in self.network.devices.items() if device.listens and device.ready}
        async with asyncio.timeout(15):
            while True:
                if self._task.done():
                    await self._task
                with contextlib.suppress(httpx2.HTTPError, OSError):
                    devices = (await self.http.get("/v1/devices")).json()["devices"]
                    if {each["device"] for each in devices if each["ready"]} == expected:
                        return
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop it, and see it end well."""
        await self.http.aclose()
        await self.control.aclose()
        self._stop.set()
        async with asyncio.timeout(20):
            await self._task

    async def submit(self, transaction: Transaction | bytes, wait: float = 0) -> httpx2.Response:
        """Submit one transaction."""
        raw = transaction.raw if isinstance(transaction, Transaction) else transaction
        return await self.http.post(f"/v1/transactions?wait={wait}", content=raw)

    async def submit_batch(self, transactions: list[Transaction | bytes]) -> list[dict[str, object]]:
        """Submit many; their results in order."""
        body = b"\n".join(each.raw if isinstance(each, Transaction) else each for each in transactions)
        answer = await self.http.post("/v1/transactions:batch", content=body)
        assert answer.status_code == 202, answer.text
        results: list[dict[str, object]] = answer.json()["results"]
        return results

    async def status(self, transaction: Transaction, wait: float = 10) -> dict[str, object]:
        """Where a transaction stands."""
        answer = await self.http.get(f"/v1/transactions/{transaction.id}?wait={wait}")
        assert answer.status_code == 200, answer.text
        status: dict[str, object] = answer.json()
        return status

    async def blocks(self, start: int, count: int) -> list[Block]:
        """Blocks from the stream."""
        found: list[Block] = []
        async with (
            connect(self.config.listen[0], timeout=30.0) as http,
            http.stream("GET", f"/v1/blocks?from={start}") as response,
            asyncio.timeout(15),
        ):
            pending = b""
            async for chunk in response.aiter_raw():
                *lines, pending = (pending + chunk).split(b"\n")
                found.extend(Block.decode(line) for line in lines if line)
                if len(found) >= count:
                    break
        return found


@contextlib.asynccontextmanager
async def running(network: SimulatedNetwork, **changes: object) -> AsyncIterator[RunningCenter]:
    """A center that runs within the block; ready, unless its devices are not."""
    center = RunningCenter(network, network.config(**changes))
    try:
        await center.until_ready()
        yield center
    finally:
        await center.stop()
