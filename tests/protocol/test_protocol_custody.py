"""Custody statements and tiers: who signed, what they judge, and how tiers compare (requirements K-5, K-6)."""

import itertools
from typing import Any

import msgspec
import pytest

from protocol import canonical, custody
from protocol.errors import BadSignatureError, LimitExceededError, MalformedError
from protocol.tier import ORDER, Tier, reaches
from tests import software_keys
from tests.chain_builder import Network

KEY = software_keys.ecdsa("an audited key")


@pytest.fixture(scope="module")
def network() -> Network:
    """Devices that sign statements."""
    return Network()


@pytest.mark.requirement("K-5")
def test_tiers_are_in_order() -> None:
    """Each tier reaches itself and those below it."""
    assert ORDER == ("claimed", "read-back", "probed", "attested")
    pairs: list[tuple[Tier, Tier]] = list(itertools.combinations(ORDER, 2))
    for low, high in pairs:
        assert reaches(high, low)
        assert reaches(high, high)
        assert not reaches(low, high)


@pytest.mark.requirement("K-6")
def test_the_device_signs(network: Network) -> None:
    """Signed by the device's identity key alone, it holds and says what was judged."""
    statement = custody.verify(network.statement("device-a", {KEY.id: "probed"}), network.devices["device-a"].public)
    assert [each.digest for each in statement.subject] == [{"sha256": KEY.id}]
    assert custody.tier_of(statement, KEY.id) == "probed"
    assert custody.tier_of(statement, network.devices["device-a"].id) == "claimed"


@pytest.mark.requirement("K-6")
def test_nobody_else_does(network: Network) -> None:
    """Another key, a second signature beside it, and a changed payload are refused."""
    identity = network.devices["device-a"]
    good = network.statement("device-a", {KEY.id: "read-back"})
    other = network.statement("device-a", {KEY.id: "read-back"}, signer=network.devices["device-b"])
    beside = msgspec.structs.replace(good, signatures=good.signatures + other.signatures)
    swapped = msgspec.structs.replace(
        good, signatures=(msgspec.structs.replace(other.signatures[0], keyid=identity.id),)
    )
    for bad in (other, beside, swapped, msgspec.structs.replace(good, signatures=())):
        with pytest.raises(BadSignatureError):
            custody.verify(bad, identity.public)


@pytest.mark.requirement("K-6")
def test_subjects_are_the_keys(network: Network) -> None:
    """A statement whose subjects are not the keys that it judges is none."""
    envelope = network.statement("device-a", {KEY.id: "probed"})
    statement = custody.decode(envelope)
    subject = msgspec.structs.replace(statement.subject[0], digest={"sha256": "ab" * 32})
    for subjects in ((), (subject,), statement.subject * 2):
        payload = canonical.encode(msgspec.structs.replace(statement, subject=subjects))
        with pytest.raises(MalformedError, match="are not the keys"):
            custody.decode(msgspec.structs.replace(envelope, payload=payload))


@pytest.mark.requirement("K-5")
def test_a_key_that_is_named_twice_is_claimed(network: Network) -> None:
    """Two rows about one key say nothing of it, not even the better or the worse."""
    statement = custody.decode(network.statement("device-a", {KEY.id: "probed"}))
    (row,) = statement.predicate.keys
    tiers: tuple[Tier, ...] = ("probed", "attested")
    for tier in tiers:
        keys = (row, msgspec.structs.replace(row, tier=tier))
        twice = msgspec.structs.replace(statement, predicate=msgspec.structs.replace(statement.predicate, keys=keys))
        assert custody.tier_of(twice, KEY.id) == "claimed"


def test_it_is_not_too_large(network: Network) -> None:
    """Beyond its limit a statement is not read."""
    envelope = network.statement("device-a", {KEY.id: "probed"})
    padded: Any = msgspec.structs.replace(envelope, payload=envelope.payload + b" " * custody.MAX_STATEMENT_BYTES)
    with pytest.raises(LimitExceededError):
        custody.decode(padded)


def test_what_names_it(network: Network) -> None:
    """Its digest covers the payload and its type, not the signature."""
    one = network.statement("device-a", {KEY.id: "probed"})
    same = network.statement("device-a", {KEY.id: "probed"}, signer=KEY)
    other = network.statement("device-a", {KEY.id: "attested"})
    assert custody.digest_of(one) == custody.digest_of(same)
    assert custody.digest_of(one) != custody.digest_of(other)
