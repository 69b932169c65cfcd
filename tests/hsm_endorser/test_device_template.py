"""New keys where the module does not take the whole template: the strictest that it takes, and what that was."""

from pathlib import Path

import msgspec
import pytest
from pkcs11 import Attribute

from hsm_endorser import key_template
from hsm_endorser.config import Config
from hsm_endorser.errors import TokenRefusedError, TokenUnavailableError
from hsm_endorser.key_template import GROUPS, KEPT
from hsm_endorser.provision import provision
from hsm_endorser.token import Token
from hsm_endorser.token_key import TokenKey
from tests.hsm_endorser.shimmed_token import Shimmed, shimmed

TYPE_INVALID, GENERAL_ERROR, MECHANISM_INVALID = 0x12, 0x05, 0x70
SCHEME = "ecdsa-p256-sha256"


async def generated(token: Shimmed, label: str = "k") -> tuple[TokenKey, list[tuple[str, str]]]:
    """A new key, and what of its template the token did not take."""
    started = await Token.start(token.config)
    try:
        key = await started.generate(label, SCHEME)
        return key, [(each.half, each.attribute) for each in started.left_out.get(key.public_key.id, ())]
    finally:
        await started.close()


@pytest.mark.requirement("K-1")
def test_what_keeps_a_key_in_custody_is_never_left_out() -> None:
    """No step does without TOKEN, PRIVATE, SENSITIVE, EXTRACTABLE or SIGN."""
    everything = frozenset[tuple[str, str]]().union(*key_template.steps())
    assert {name for _, name in everything}.isdisjoint(KEPT)
    assert everything == frozenset[tuple[str, str]]().union(*GROUPS)


def test_the_whole_template_is_asked_for_first() -> None:
    """Steps start with nothing left out, end with everything, name no combination twice, least loss first."""
    steps = list(key_template.steps())
    assert steps[0] == frozenset()
    assert steps[1] == GROUPS[0]
    assert steps[2] == GROUPS[1]
    assert steps[3] == GROUPS[0] | GROUPS[1]
    assert steps[-1] == frozenset[tuple[str, str]]().union(*GROUPS)
    assert len(set(steps)) == len(steps) == 2 ** len(GROUPS)


@pytest.mark.requirement("K-1")
@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ([Attribute.VERIFY], [("public", "ENCRYPT"), ("public", "VERIFY")]),
        ([Attribute.ALLOWED_MECHANISMS], [("private", "ALLOWED_MECHANISMS")]),
        (
            [Attribute.COPYABLE, Attribute.ALLOWED_MECHANISMS],
            [("private", "ALLOWED_MECHANISMS"), ("private", "COPYABLE"), ("public", "COPYABLE")],
        ),
        ([Attribute.DERIVE], [("private", "DERIVE")]),
        ([Attribute.UNWRAP, Attribute.DECRYPT], [("private", "DECRYPT"), ("private", "UNWRAP")]),
    ],
    ids=lambda value: "+".join(each.name for each in value) if isinstance(value[0], Attribute) else "",
)
@pytest.mark.parametrize("code", [TYPE_INVALID, GENERAL_ERROR], ids=["type-invalid", "general-error"])
async def test_only_what_is_refused_is_left_out(
    tmp_path: Path, refused: list[Attribute], expected: list[tuple[str, str]], code: int
) -> None:
    """Whatever the module's word for it, the key has all the rest of the template, and says what it lacks."""
    token = shimmed(tmp_path)
    token.control.refuse_attributes(*refused, code=code)
    _, left_out = await generated(token)
    assert left_out == expected


@pytest.mark.requirement("K-1")
@pytest.mark.parametrize("needed", [Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.PRIVATE])
async def test_a_token_that_refuses_what_is_needed_gets_no_key(tmp_path: Path, needed: Attribute) -> None:
    """Every step is tried, the first refusal is told, and nothing is generated."""
    token = shimmed(tmp_path)
    token.control.refuse_attributes(needed, code=TYPE_INVALID)
    with pytest.raises(TokenRefusedError, match="AttributeTypeInvalid"):
        await generated(token)
    assert token.control.successes("generate_key_pair") == 0
    assert token.control.calls("generate_key_pair") == 2 ** len(GROUPS)


@pytest.mark.requirement("K-1")
async def test_a_fault_that_passes_weakens_no_key(tmp_path: Path) -> None:
    """After CKR_GENERAL_ERROR the same template is asked for again, and taken whole."""
    token = shimmed(tmp_path)
    token.control.set("generate_key_pair", "fail", code=GENERAL_ERROR, times=1)
    _, left_out = await generated(token)
    assert left_out == []
    assert token.control.calls("generate_key_pair") == 2


@pytest.mark.requirement("K-1")
async def test_what_a_module_takes_and_ignores_is_told(tmp_path: Path) -> None:
    """It accepts the whole template, and the new key reads otherwise: that is read back, and said."""
    token = shimmed(tmp_path)
    token.control.ignore_attributes(Attribute.MODIFIABLE, Attribute.COPYABLE)
    started = await Token.start(token.config)
    key = await started.generate("k", SCHEME)
    assert [str(each) for each in started.left_out[key.public_key.id]] == [
        "private COPYABLE (reads True)",
        "private MODIFIABLE (reads True)",
        "public COPYABLE (reads True)",
        "public MODIFIABLE (reads True)",
    ]
    await started.close()


@pytest.mark.requirement("K-1")
async def test_a_key_that_is_not_in_custody_is_not_used(tmp_path: Path) -> None:
    """A module that takes PRIVATE and makes a key that shows itself before login: the key is refused by name."""
    token = shimmed(tmp_path)
    token.control.ignore_attributes(Attribute.PRIVATE, Attribute.SENSITIVE)
    with pytest.raises(TokenRefusedError, match="SENSITIVE=False where True was asked for; do not use it"):
        await generated(token)


async def test_another_refusal_ends_the_search(tmp_path: Path) -> None:
    """A module that lacks the mechanism is asked once: no template helps."""
    token = shimmed(tmp_path)
    token.control.set("generate_key_pair", "fail", code=MECHANISM_INVALID)
    with pytest.raises(TokenRefusedError, match="MechanismInvalid"):
        await generated(token)
    assert token.control.calls("generate_key_pair") == 1


async def test_a_dead_token_is_reported_as_such(tmp_path: Path) -> None:
    """When every template meets CKR_GENERAL_ERROR, it was not the template."""
    token = shimmed(tmp_path)
    token.control.set("generate_key_pair", "fail", code=GENERAL_ERROR)
    with pytest.raises(TokenUnavailableError, match="GeneralError"):
        await generated(token)
    assert token.control.successes("generate_key_pair") == 0


async def test_what_is_refused_is_found_out_once(tmp_path: Path) -> None:
    """The next key of the scheme begins with the template that was taken."""
    token = shimmed(tmp_path)
    token.control.refuse_attributes(Attribute.DERIVE, code=TYPE_INVALID)
    started = await Token.start(token.config)
    await started.generate("one", SCHEME)
    before = token.control.calls("generate_key_pair")
    two = await started.generate("two", SCHEME)
    assert token.control.calls("generate_key_pair") - before == 1
    assert [str(each) for each in started.left_out[two.public_key.id]] == ["private DERIVE (reads False)"]
    await started.close()


async def test_provisioning_says_what_was_left_out_and_how_long_rsa_keys_are(tmp_path: Path) -> None:
    """By label, beside the public keys; `rsa_bits` of the token's settings is the size of RSA keys."""
    token = shimmed(tmp_path / "token")
    token.control.refuse_attributes(Attribute.ALLOWED_MECHANISMS, code=TYPE_INVALID)
    settings = {"uri": token.config.uri.format(), "environment": dict(token.config.environment), "rsa_bits": 2048}
    places = {"listen": ["unix:d"], "chain": ["unix:m"], "genesis": "g", "database": "c", "guard": "guard.db"}
    config = Config.model_validate({"name": "device-a", **places, "token": settings}, context=tmp_path)
    made = await provision(config, "test", [("node/R", "rsa-pkcs1-sha256")])
    expected = ("private ALLOWED_MECHANISMS (reads [])",)
    assert made.left_out == {"identity": expected, "node/R": expected}
    assert len(made.keys["node/R"].spki) == 294, "SubjectPublicKeyInfo of 2048 bits"


async def test_rsa_keys_have_3072_bits_unless_told_otherwise(tmp_path: Path) -> None:
    """The default, and what a setting changes."""
    token = shimmed(tmp_path)
    for bits, length in ((None, 422), (2048, 294)):
        config = token.config if bits is None else msgspec.structs.replace(token.config, rsa_bits=bits)
        started = await Token.start(config)
        key = await started.generate(f"r{bits}", "rsa-pkcs1-sha256")
        assert len(key.public_key.spki) == length
        await started.close()
