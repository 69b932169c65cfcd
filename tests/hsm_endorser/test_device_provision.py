from pathlib import Path

import pytest
from cryptography import x509

from hsm_endorser.errors import GuardConflictError, GuardError, TokenStoppedError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.provision import issue_ca_certificate, provision, sign_genesis
from hsm_endorser.signing import GuardedToken
from ledger.genesis import draft_genesis
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol.keys import PublicKey
from tests.chain_builder import GENESIS_TIME
from tests.hsm_endorser.device_world import SoftToken, World, device_config


@pytest.mark.requirement("K-1", "E-20")
async def test_a_device_gets_its_keys_and_its_guard(token: SoftToken, tmp_path: Path) -> None:
    """The wanted keys and an identity key are made on the token; the guard lists a challenge answered by each."""
    config = device_config(tmp_path, token)
    made = await provision(config, "n", [("node/A", "ecdsa-p256-sha256"), ("node/B", "ed25519")])
    assert set(made.keys) == {"identity", "node/A", "node/B"}
    assert made.keys["node/B"].scheme == "ed25519"
    assert made.token.serial == token.created.serial
    guard = Guard.open(config.guard, network="n", device="device-a")
    rows = guard.journal()
    guard.close()
    assert [(row.entry.purpose, row.entry.key) for row in rows] == [
        ("challenge", made.keys[label].id) for label in ("identity", "node/A", "node/B")
    ]


@pytest.mark.requirement("K-10")
async def test_a_device_is_set_up_once(token: SoftToken, tmp_path: Path) -> None:
    """A second provisioning does not replace the guard."""
    config = device_config(tmp_path, token)
    await provision(config, "n", [])
    with pytest.raises(GuardError, match="never replaced"):
        await provision(config, "n", [])


@pytest.mark.requirement("K-1")
async def test_a_key_from_elsewhere_is_not_taken(token: SoftToken, tmp_path: Path) -> None:
    """A token that holds a key under a wanted label is refused, and gets no key."""
    first = device_config(tmp_path, token)
    made = await provision(first, "n", [("node/A", "ecdsa-p256-sha256")])
    other = first.model_copy(update={"guard": tmp_path / "another-guard.db"})
    with pytest.raises(TokenStoppedError, match="keys labelled identity, node/A already"):
        await provision(other, "n", [("node/A", "ecdsa-p256-sha256"), ("node/B", "ecdsa-p256-sha256")])
    signer = await GuardedToken.start(Guard.open(first.guard, network="n", device="device-a"), first.token_config)
    held = set(signer.token.keys)
    await signer.close()
    assert held == {key.id for key in made.keys.values()}


@pytest.mark.requirement("E-1")
@pytest.mark.parametrize("scheme", ["ecdsa-p256-sha256", "rsa-pkcs1-sha256", "ed25519"])
async def test_a_ca_certificate_is_signed_on_the_token(token: SoftToken, tmp_path: Path, scheme) -> None:
    """The certificate verifies as issued by itself, says CA:TRUE with no CA below, and is in the journal."""
    config = device_config(tmp_path, token)
    made = await provision(config, "n", [("ca/ca", scheme)])
    certificate = x509.load_der_x509_certificate(await issue_ca_certificate(config, "n", "ca/ca", "ca"))
    certificate.verify_directly_issued_by(certificate)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    guard = Guard.open(config.guard, network="n", device="device-a")
    assert [row.entry.purpose for row in guard.journal(key=made.keys["ca/ca"].id)] == ["challenge", "certificate"]
    guard.close()
    assert PublicKey.load(made.keys["ca/ca"].spki) == made.keys["ca/ca"]


@pytest.mark.requirement("K-10", "M-4")
async def test_genesis_is_signed_through_the_guard(world: World, tmp_path: Path) -> None:
    """The signed block starts a chain; another block 0 is never signed by this device."""
    transaction = world.network.genesis_transaction(world.entries())
    first, second = (draft_genesis(transaction.raw, GENESIS_TIME + more) for more in (0, 1))
    signed = await sign_genesis(world.config, first, "center/center-1")
    replica = Replica.create(ChainStore.create(url_of(tmp_path / "fresh.db")), signed.encode())
    assert replica.height == 0
    with pytest.raises(GuardConflictError, match="for height 0 already"):
        await sign_genesis(world.config, second, "center/center-1")
    with pytest.raises(UnknownKeyError, match="0 keys on the token"):
        await sign_genesis(world.config, first, "center/other")
