"""Bad keys planted among good ones: each is found with its own reason, and no good one is accused."""

import asyncio
import secrets
from collections.abc import Mapping

import msgspec
import pytest

from hsm_endorser.custody import profile
from hsm_endorser.custody.audit import audit
from hsm_endorser.custody.cryptoki import Attribute
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe import Probe
from hsm_endorser.token import TokenConfig
from protocol.custody import Predicate, Row
from protocol.keys import Scheme
from tests.hsm_endorser.custody_planting import P384, Planter, good_keys, key_named, rows_about
from tests.hsm_endorser.device_world import new_token

A = Attribute
STRICT = profile.load("strict")
GOOD: tuple[tuple[str, Scheme], ...] = (
    *((f"node/{index}", "ecdsa-p256-sha256") for index in range(18)),
    ("node/rsa", "rsa-pkcs1-sha256"),
    ("node/ed", "ed25519"),
)
FLAWS: Mapping[str, tuple[set[str], str]] = {
    "imported": ({"key.local", "key.always-sensitive", "key.never-extractable", "key.generated"}, "imported"),
    "extractable": ({"key.extractable", "key.never-extractable", "attack.wrap"}, "can leave the token"),
    "unextractable later": ({"key.never-extractable", "key.modifiable", "attack.flip"}, "could leave the token"),
    "modifiable": ({"key.modifiable", "attack.flip"}, "can be changed later"),
    "copyable": ({"key.copyable"}, "can be copied"),
    "copied": ({"key.copyable", "key.modifiable", "attack.copy", "attack.flip"}, "the key was copied"),
    "derives": ({"key.derive"}, "derives secrets"),
    "decrypts": ({"key.decrypt"}, "it decrypts"),
    "unwraps": ({"key.unwrap"}, "it unwraps"),
    "destroyable": ({"key.destroyable", "attack.destroy"}, "can delete it"),
    "unrestricted": ({"key.allowed-mechanisms"}, "mechanisms are not restricted"),
    "public wraps": ({"key.public-object"}, "it can wrap keys"),
    "one of two": ({"key.pair"}, "2 private and 2 public objects have its id"),
    "two of two": ({"key.pair"}, "2 private and 2 public objects have its id"),
    "looked alike": ({"key.pair"}, "1 private and 2 public objects have its id"),
    "swapped": ({"key.challenge", "key.acceptable", "key.curve"}, "somebody swapped it"),
    "off curve": ({"key.acceptable", "key.curve"}, "not on the curve"),
    "no public half": ({"key.pair", "key.acceptable", "key.curve"}, "1 private and 0 public objects have its id"),
    "rsa 1024": ({"key.acceptable", "key.rsa-size"}, "an RSA key of 1024 bits"),
    "rsa e=3": ({"key.acceptable", "key.rsa-exponent"}, "an RSA exponent of 3"),
    "other curve": ({"key.acceptable"}, "secp384r1"),
}
"""Label → the checks that fail for it, all of them, and words of the reason that is its own."""


async def plant(config: TokenConfig) -> None:
    """All the bad keys, and what is no key."""
    async with Probe.open(config) as probe:
        await probe.start()
        await probe.login()
        planter = Planter(probe)
        await planter.imported("imported")
        await planter.ec("extractable", private={A.EXTRACTABLE: True})
        _, late = await planter.ec("unextractable later", private={A.EXTRACTABLE: True, A.MODIFIABLE: True})
        await planter.write(late, A.EXTRACTABLE, False)
        await planter.ec("modifiable", private={A.MODIFIABLE: True})
        await planter.ec("copyable", private={A.COPYABLE: True})
        await planter.ec("copied", private={A.COPYABLE: True, A.MODIFIABLE: True})
        await planter.ec("derives", private={A.DERIVE: True})
        await planter.ec("decrypts", private={A.DECRYPT: True})
        await planter.ec("unwraps", private={A.UNWRAP: True})
        await planter.ec("destroyable", private={A.DESTROYABLE: True})
        await planter.ec("unrestricted", unrestricted=True)
        await planter.ec("public wraps", public={A.WRAP: True})
        same = secrets.token_bytes(16)
        await planter.ec("one of two", id_=same)
        await planter.ec("two of two", id_=same)
        id_ = secrets.token_bytes(16)
        await planter.ec("looked alike", id_=id_)
        await planter.public("another label", id_)
        for label, point in (("swapped", None), ("off curve", b"\x04" + b"\x01" * 64), ("no public half", b"")):
            id_ = secrets.token_bytes(16)
            public, _ = await planter.ec(label, id_=id_)
            await planter.destroy(public)
            if point is None:
                await planter.public(label, id_)
            elif point:
                await planter.public(label, id_, point)
        await planter.rsa("rsa 1024", bits=1024)
        await planter.rsa("rsa e=3", bits=2048, exponent=3)
        await planter.ec("other curve", curve=P384)
        await planter.secret("kek")
        await planter.ghost("boo")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predicate, int, int]:
    """The audit of a token with 20 good keys and all the bad ones; the objects on it before and after."""
    config = new_token(tmp_path_factory.mktemp("planted")).config

    async def run() -> tuple[Predicate, int, int]:
        await good_keys(msgspec.structs.replace(config, rsa_bits=2048), GOOD)
        await plant(config)
        before = await count(config)
        predicate = await audit(config, profile=STRICT)
        return predicate, before, await count(config)

    return asyncio.run(run())


async def count(config: TokenConfig) -> int:
    """The objects on a token."""
    async with Probe.open(config) as probe:
        await probe.start()
        await probe.login()
        return len(await find(probe))


def findings(rows: list[Row]) -> set[str]:
    """The checks that failed and are required."""
    return {row.check for row in rows if row.verdict == "fail" and STRICT.check(row.check).required}


@pytest.mark.requirement("K-2", "K-3", "K-5")
@pytest.mark.parametrize("label", [label for label, _ in GOOD])
def test_no_good_key_is_accused(planted: tuple[Predicate, int, int], label: str) -> None:
    """A key of the product's own template passes every required check, and is `probed`."""
    key = key_named(planted[0], label)
    assert findings(rows_about(planted[0], key)) == set()
    assert (key.tier, key.verdict) == ("probed", "pass")


@pytest.mark.requirement("K-1", "K-2", "K-3", "K-4")
@pytest.mark.parametrize("label", FLAWS)
def test_a_bad_key_is_found_for_its_own_reason(planted: tuple[Predicate, int, int], label: str) -> None:
    """Exactly the checks of its flaw fail, one of them says so in words, and its tier is the lowest."""
    key = key_named(planted[0], label)
    rows = rows_about(planted[0], key)
    checks, words = FLAWS[label]
    assert findings(rows) == checks
    assert any(words in row.reason for row in rows if row.verdict == "fail"), [row.reason for row in rows]
    assert (key.tier, key.verdict) == ("claimed", "fail")


@pytest.mark.requirement("K-3")
def test_an_extractable_key_comes_out(planted: tuple[Predicate, int, int]) -> None:
    """Wrapped, unwrapped outside and compared: what came out is the private half of the public key."""
    rows = rows_about(planted[0], key_named(planted[0], "extractable"))
    leaked = [row for row in rows if row.check == "attack.wrap" and "the private key came out" in row.reason]
    assert {"AES_KEY_WRAP", "AES_KEY_WRAP_PAD"} == {row.tried.rpartition(" ")[2] for row in leaked}
    assert any(row.verdict == "fail" and row.tried.startswith("wrap the key itself") for row in rows)


@pytest.mark.requirement("K-2")
def test_what_is_beside_the_keys_is_found(planted: tuple[Predicate, int, int]) -> None:
    """The wrapping keys, and the ghost; nothing else of the token is accused."""
    token = [row for row in planted[0].rows if row.target == "token" and row.verdict == "fail"]
    wrapping = [row.reason for row in token if row.check == "token.wrapping-keys"]
    assert [reason.partition("(")[0] for reason in wrapping] == ["the key 'kek' ", "the key 'public wraps' "]
    strange = [row.reason for row in token if row.check == "token.strange-objects"]
    assert [reason.partition(":")[0] for reason in strange] == ["a ghost"]
    assert findings(token) == {"token.wrapping-keys", "token.strange-objects"}


def test_every_key_is_accounted_for(planted: tuple[Predicate, int, int]) -> None:
    """The good and the bad, and no other."""
    assert {key.label for key in planted[0].keys} == {*(label for label, _ in GOOD), *FLAWS}


@pytest.mark.requirement("K-3")
def test_the_audit_leaves_nothing_behind(planted: tuple[Predicate, int, int]) -> None:
    """There are as many objects after it as before, and it says so."""
    predicate, before, after = planted
    (row,) = [row for row in predicate.rows if row.check == "token.objects"]
    assert (before, row.answer, row.verdict) == (after, f"{after} before, {after} after", "pass")


@pytest.mark.requirement("K-5")
def test_the_software_token_is_called_one(planted: tuple[Predicate, int, int]) -> None:
    """However good its keys are, SoftHSM meets no standard for hardware."""
    (row,) = [row for row in planted[0].rows if row.check == "token.hardware"]
    assert planted[0].token.software
    assert (row.verdict, "neither FIPS 140 nor EN 419 221-5 nor GM/T 0028" in row.reason) == ("fail", True)


@pytest.mark.requirement("K-3")
def test_a_refused_import_is_cleaned_up(planted: tuple[Predicate, int, int]) -> None:
    """SoftHSM keeps a ghost of each import that it refuses; the audit's own are gone, as the row says."""
    rows = rows_about(planted[0], key_named(planted[0], "node/0"))
    forged = [row for row in rows if row.check == "attack.import" and "claims" in row.tried]
    assert {row.answer for row in forged} == {"CKR_ATTRIBUTE_READ_ONLY"}
    assert all("(1 ghost objects came of it, and were removed)" in row.tried for row in forged)
