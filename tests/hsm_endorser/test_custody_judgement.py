"""What the audit concludes from numbers, names and answers: pure, without a token."""

import math
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_endorser.custody import arithmetic, profile, published_keys, software, token_checks
from hsm_endorser.custody.catalogue import ATTACKS, CATALOGUE, READ_BACK, TOKEN
from hsm_endorser.custody.cryptoki import MechanismFlag, TokenFlag
from hsm_endorser.custody.inventory import bare_point
from hsm_endorser.custody.probe_messages import Done, MechanismInfo, TokenInfo
from hsm_endorser.custody.tier import tier
from hsm_endorser.custody.verdicts import Rows
from hsm_endorser.worker_messages import Failed
from protocol.custody import Row, Verdict
from protocol.tier import Tier

STRICT = profile.load("strict")
M39 = math.prod(n for n in range(2, 168) if all(n % d for d in range(2, n)))
GOOD_FLAGS = 0x42D


def info(manufacturer: str, model: str, *, slot_flags: int = 1, flags: int = GOOD_FLAGS) -> TokenInfo:
    """What a token says of itself."""
    return TokenInfo(
        manufacturer=manufacturer, model=model, serial="1", label="t", flags=flags, hardware=(1, 0), firmware=(2, 3),
        slot=0, slot_description="a slot", slot_manufacturer=manufacturer, slot_flags=slot_flags, library="library",
        library_manufacturer="maker", library_version=(1, 0), cryptoki=(2, 40),
    )  # fmt: skip


@pytest.mark.requirement("K-5")
@pytest.mark.parametrize(
    ("manufacturer", "model", "slot_flags"),
    [
        ("SoftHSM project", "SoftHSM v2", 1),
        ("SoftHSM project", "SoftHSM v2", 5),
        ("Mozilla Foundation", "NSS 3", 1),
        ("IBM", "Soft", 1),
        ("IBM", "SW   TPM", 5),
        ("nobody that is known", "HSM 9000", 5),
        ("Thales", "Luna K7", 1),
        ("", "", 5),
    ],
)
def test_what_is_not_known_as_hardware_is_software(manufacturer: str, model: str, slot_flags: int) -> None:
    """Soft tokens by name, strangers, and a name of hardware in a slot that is none."""
    assert software.nature(info(manufacturer, model, slot_flags=slot_flags)).software


@pytest.mark.requirement("K-5")
@pytest.mark.parametrize(("manufacturer", "slot_flags"), [("Yubico (www.yubico.com)", 7), ("Infineon", 1)])
def test_known_hardware_is_called_so(manufacturer: str, slot_flags: int) -> None:
    """And with the words that a token could say anything."""
    nature = software.nature(info(manufacturer, "device", slot_flags=slot_flags))
    assert (nature.software, "by what it says of itself" in nature.why) == (False, True)


def test_the_roca_fingerprint_is_found() -> None:
    """In a modulus whose factors are k·M + (65537^a mod M), and not in its neighbour."""
    weak = (1234567 * M39 + pow(65537, 98765, M39)) * (7654321 * M39 + pow(65537, 56789, M39))
    assert arithmetic.has_roca_fingerprint(weak)
    assert not arithmetic.has_roca_fingerprint(weak + 2)
    assert not arithmetic.has_roca_fingerprint(published_keys.RSA_MODULUS)


def test_a_shared_prime_accuses_both() -> None:
    """And nobody else."""
    p, q, r, s = 2**61 - 1, 2**89 - 1, 2**107 - 1, 2**127 - 1
    assert arithmetic.shared_primes({"a": p * q, "b": q * r, "c": s * 3}) == {"a": "b", "b": "a"}


def test_a_private_half_is_recognised_by_arithmetic() -> None:
    """The published keys, as their RFCs give them, bare and in DER; and not another's."""
    point = published_keys.P256_POINT
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    value = published_keys.P256_VALUE
    assert arithmetic.is_private_half(public, value)
    assert arithmetic.is_private_half(public, b"\x30\x10\x04\x20" + value + b"\x00")
    assert not arithmetic.is_private_half(public, value[::-1])
    assert arithmetic.p256_times(int.from_bytes(value, "big")) == (
        int.from_bytes(point[1:33], "big"),
        int.from_bytes(point[33:], "big"),
    )


def test_a_bare_point_that_looks_wrapped_is_left_alone() -> None:
    """An X that begins with the length of the rest is no DER."""
    bare = bytes((4, 63)) + bytes(63)
    assert bare_point(bare, 65) == bare
    assert bare_point(bytes((4, 65)) + bare, 65) == bare


@pytest.mark.parametrize(
    ("name", "flags", "why"),
    [
        ("DES3_CBC", 0, "DES"),
        ("DES_ECB", 0, "DES"),
        ("AES_ECB", 0, "ECB"),
        ("MD5_RSA_PKCS", MechanismFlag.SIGN, "broken hash"),
        ("SHA1_RSA_PKCS", MechanismFlag.SIGN, "SHA-1 signature"),
        ("ECDSA_SHA1", MechanismFlag.SIGN, "SHA-1 signature"),
        ("RSA_X_509", 0, "RSA without padding"),
        ("RSA_PKCS", MechanismFlag.DECRYPT, "PKCS #1 v1.5 encryption"),
        ("RSA_PKCS", MechanismFlag.SIGN, ""),
        ("RC2_CBC", 0, "outdated cipher"),
        ("ECDSA", MechanismFlag.SIGN, ""),
        ("AES_KEY_WRAP", MechanismFlag.WRAP, ""),
        ("SHA256_RSA_PKCS", MechanismFlag.SIGN, ""),
        ("SHA512", 0, ""),
    ],
)
def test_weak_mechanisms_are_named(name: str, flags: int, why: str) -> None:
    """Each with what is weak in it; sound ones are not accused."""
    assert token_checks.weakness(MechanismInfo(1, name, 0, 0, flags)) == why


def test_a_pin_on_its_last_try_is_a_finding() -> None:
    """Flags of trouble are told by name."""
    rows = Rows()
    token_checks.flags(rows, info("a", "b", flags=GOOD_FLAGS | TokenFlag.USER_PIN_FINAL_TRY), STRICT.token_flags)
    assert [(row.check, row.verdict) for row in rows.all] == [("token.flags", "pass"), ("token.pin-state", "fail")]
    assert rows.all[1].answer == "USER_PIN_FINAL_TRY"


def test_a_token_without_login_is_a_finding() -> None:
    """Its private objects are anybody's."""
    rows = Rows()
    token_checks.visible_before_login(rows, info("a", "b", flags=GOOD_FLAGS & ~TokenFlag.LOGIN_REQUIRED), [])
    assert (rows.all[0].verdict, "does not ask for a login" in rows.all[0].reason) == ("fail", True)


@pytest.mark.requirement("K-3")
@pytest.mark.parametrize(
    ("reply", "control", "verdict"),
    [
        (Failed("KeyUnextractable", ""), None, "pass"),
        (Failed("KeyUnextractable", ""), False, "pass"),
        (Failed("GeneralError", ""), True, "pass"),
        (Failed("GeneralError", ""), False, "not-tested"),
        (Failed("GeneralError", ""), None, "not-tested"),
        (Failed("MechanismParamInvalid", ""), None, "not-tested"),
        (Done(), True, "fail"),
        (Done(), None, "fail"),
    ],
)
def test_a_refusal_must_be_for_the_keys_sake(reply: object, control: bool | None, verdict: str) -> None:
    """Shown by the code, or by the same with a key to which it is allowed; else it is not tested, never passed."""
    rows = Rows()
    rows.attack("attack.wrap", "probe-1", "wrap", reply, "it came out", control=control)
    assert [row.verdict for row in rows.all] == [verdict]
    assert bool(rows.all[0].reason) == (verdict != "pass")


PROVEN = Row("key.challenge", "k", "sign", "verified", "pass")
READ = Row("key.extractable", "k", "read", "false", "pass")
TRIED = Row("attack.wrap", "probe-1", "wrap", "CKR_KEY_UNEXTRACTABLE", "pass")


def other(row: Row, verdict: Verdict) -> Row:
    """The same with another end."""
    return Row(row.check, row.target, row.tried, row.answer, verdict, "because")


@pytest.mark.requirement("K-5")
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([PROVEN, READ, TRIED], "probed"),
        ([PROVEN, READ, other(TRIED, "not-tested")], "read-back"),
        ([PROVEN, READ, TRIED, other(TRIED, "not-tested")], "read-back"),
        ([PROVEN, READ], "read-back"),
        ([PROVEN, READ, other(TRIED, "fail")], "claimed"),
        ([PROVEN, other(READ, "not-tested"), TRIED], "claimed"),
        ([PROVEN, other(READ, "fail"), TRIED], "claimed"),
        ([other(PROVEN, "not-tested"), READ, TRIED], "claimed"),
        ([READ, TRIED], "claimed"),
        ([TRIED], "claimed"),
        ([], "claimed"),
        ([PROVEN, READ, TRIED, Row("attack.sign-length", "probe-1", "sign", "CKR_OK", "fail", "long")], "probed"),
    ],
)
def test_the_tier_follows_the_rows(rows: Sequence[Row], expected: Tier) -> None:
    """What was not tried raises no tier, what failed leaves the lowest, and what is informative counts for nothing."""
    assert tier(STRICT, rows) == expected


def test_the_catalogue_has_three_parts() -> None:
    """Every check is one of the token, one that is read back, or an attack."""
    assert set(CATALOGUE) == {*TOKEN, *READ_BACK, *ATTACKS}
    assert len(CATALOGUE) == len(TOKEN) + len(READ_BACK) + len(ATTACKS)
