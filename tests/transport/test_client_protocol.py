"""The page for writers of clients: its examples build what the protocol takes, and send what was built."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from protocol.transaction import Transaction
from tests import software_keys
from tests.client_protocol import PAGE, run
from tests.transport.conftest import Serve


@pytest.mark.requirement("E-3")
@pytest.mark.parametrize("make", [software_keys.ecdsa, software_keys.rsa_key])
async def test_the_example_builds_a_transaction(tmp_path: Path, make: Any) -> None:
    """Every byte is as the protocol asks for it, the id is right, and the client's key made the signature."""
    key = make("shell")
    (tmp_path / "key.pem").write_bytes(key.pem())
    (tmp_path / "evidence").write_bytes(b"what happened")
    await run(
        "build",
        NETWORK="test",
        CLIENT="c1",
        KEY=str(tmp_path / "key.pem"),
        SUBJECT="pump-7",
        FILE=str(tmp_path / "evidence"),
        WORK=str(tmp_path),
    )
    made = Transaction.decode((tmp_path / "envelope").read_bytes())
    made.verify(key.public)
    assert made.id == (tmp_path / "id").read_text().strip()
    assert (made.kind, made.payload.client, made.payload.network) == ("evidence.record", "c1", "test")
    expected = {"attributes": {}, "digest": hashlib.sha256(b"what happened").hexdigest(), "subject": "pump-7"}
    assert made.payload.arguments == expected
    assert 500_000 < made.payload.valid_until - time.time() * 1000 < 700_000


async def test_the_example_sends_what_was_built(tmp_path: Path, serving: Serve) -> None:
    """The envelope arrives byte for byte at the door for one transaction, and the answer is shown."""
    arrived: list[tuple[str, bytes]] = []

    async def submit(request: Request) -> JSONResponse:
        arrived.append((str(request.url.query), await request.body()))
        return JSONResponse({"status": "committed"})

    address = await serving(Starlette(routes=[Route("/v1/transactions", submit, methods=["POST"])]))
    (tmp_path / "envelope").write_bytes(b'{"an":"envelope"}')
    printed = await run("send", SOCKET=str(address.path), WORK=str(tmp_path))
    assert printed == '200\n{"status":"committed"}'
    assert arrived == [("wait=30", b'{"an":"envelope"}')]


@pytest.mark.requirement("E-1")
async def test_the_example_enrols(tmp_path: Path, serving: Serve) -> None:
    """A fresh key that nobody else can read, and a CSR that it signed, with the client's name."""
    arrived: list[dict[str, str]] = []

    async def enrol(request: Request) -> JSONResponse:
        arrived.append(json.loads(await request.body()))
        return JSONResponse({"certificate": "…"}, 201)

    address = await serving(Starlette(routes=[Route("/v1/enrol", enrol, methods=["POST"])]))
    key = tmp_path / "c9.key"
    printed = await run(
        "enrol", SOCKET=str(address.path), WORK=str(tmp_path), KEY=str(key), CLIENT="c9", SECRET="a-secret"
    )
    assert printed.startswith("201\n")
    (asked,) = arrived
    csr = x509.load_pem_x509_csr(asked.pop("csr").encode())
    assert asked == {"name": "c9", "secret": "a-secret"}
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == "CN=c9"
    assert key.stat().st_mode & 0o077 == 0


def test_the_page_states_the_lengths_that_it_shows() -> None:
    """The payload type's length in the example of the PAE is its length."""
    assert len("application/vnd.hsm-endorser.transaction.v1+json") == 48
    assert "DSSEv1 48 application/vnd.hsm-endorser.transaction.v1+json " in PAGE.read_text(encoding="utf-8")
