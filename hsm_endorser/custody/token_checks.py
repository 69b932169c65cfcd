"""What the audit checks on the token itself (requirement K-2)."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from hsm_endorser.custody.cryptoki import (
    Attribute,
    KeyType,
    MechanismFlag,
    ObjectClass,
    TokenFlag,
    code,
    flag_names,
)
from hsm_endorser.custody.inventory import Item, of_class
from hsm_endorser.custody.probe_messages import MechanismInfo, TokenInfo
from hsm_endorser.custody.software import Nature
from hsm_endorser.custody.verdicts import Rows, listed
from hsm_endorser.worker_messages import Failed

TOKEN: Final = "token"
FLAGS: Final[Mapping[str, bool]] = {
    "RNG": True,
    "LOGIN_REQUIRED": True,
    "USER_PIN_INITIALIZED": True,
    "TOKEN_INITIALIZED": True,
    "WRITE_PROTECTED": False,
    "ERROR_STATE": False,
}
"""What the flags must be where a profile does not say otherwise."""
PIN_TROUBLE: Final = (
    TokenFlag.USER_PIN_COUNT_LOW
    | TokenFlag.USER_PIN_FINAL_TRY
    | TokenFlag.USER_PIN_LOCKED
    | TokenFlag.USER_PIN_TO_BE_CHANGED
    | TokenFlag.SO_PIN_COUNT_LOW
    | TokenFlag.SO_PIN_FINAL_TRY
    | TokenFlag.SO_PIN_LOCKED
    | TokenFlag.SO_PIN_TO_BE_CHANGED
)
KINDS: Final = (
    ("token.mechanisms-wrap", MechanismFlag.WRAP, "wraps"),
    ("token.mechanisms-unwrap", MechanismFlag.UNWRAP, "unwraps"),
    ("token.mechanisms-derive", MechanismFlag.DERIVE, "derives"),
    ("token.mechanisms-decrypt", MechanismFlag.DECRYPT, "decrypts"),
)
WEAK: Final = (
    (re.compile(r"(?:^|_)DES\d?(?:_|$)|^CDMF"), "DES"),
    (re.compile(r"(?:^|_)(?:RC2|RC4|RC5|CAST\d*|IDEA|BATON|SKIPJACK)(?:_|$)"), "outdated cipher"),
    (re.compile(r"(?:^|_)(?:MD2|MD5|RIPEMD128)(?:_|$)"), "broken hash"),
    (re.compile(r"^(?:DSA|ECDSA)_SHA1$|^SHA1_RSA|^SHA_1_RSA"), "SHA-1 signature"),
    (re.compile(r"_ECB(?:_|$)"), "ECB"),
    (re.compile(r"^RSA_X_509$"), "RSA without padding"),
    (re.compile(r"^RSA_PKCS$"), "PKCS #1 v1.5 encryption"),
    (re.compile(r"^DSA(?:_|$)"), "DSA"),
    (re.compile(r"^SSL3_|^TLS_(?:PRE_MASTER|MASTER|KEY_AND_MAC)"), "SSL 3 or TLS 1.0"),
    (re.compile(r"^PBE_"), "outdated password encryption"),
)
"""Weak mechanisms by their name in the standard, and what is weak in them."""
_USES: Final = (Attribute.WRAP, Attribute.UNWRAP, Attribute.DECRYPT)


def identity(rows: Rows, info: TokenInfo) -> None:
    """Manufacturer, model and serial number."""
    told = {"manufacturer": info.manufacturer, "model": info.model, "serial number": info.serial}
    missing = [name for name, value in told.items() if not value.strip("\0 ")]
    answer = listed(f"{name} {value!r}" for name, value in told.items())
    tried = "read what the token says of itself"
    if missing:
        rows.failed("token.identity", TOKEN, tried, answer, f"it has no {listed(missing)}: it cannot be told apart")
    else:
        rows.passed("token.identity", TOKEN, tried, answer)


def firmware(rows: Rows, info: TokenInfo) -> None:
    """Versions."""
    rows.passed(
        "token.firmware",
        TOKEN,
        "read the versions",
        f"hardware {_version(info.hardware)}, firmware {_version(info.firmware)}, module "
        f"{info.library.strip() or 'unnamed'} {_version(info.library_version)} of "
        f"{info.library_manufacturer.strip() or 'nobody'}, Cryptoki {_version(info.cryptoki)}",
    )


def hardware(rows: Rows, info: TokenInfo, nature: Nature) -> None:
    """Hardware or software."""
    tried = "compare manufacturer, model and slot with known tokens"
    answer = f"{nature.why} ({info.manufacturer} {info.model}, slot {info.slot_description.strip()})"
    if nature.software:
        rows.failed(
            "token.hardware", TOKEN, tried, answer,
            "a software token: it meets neither FIPS 140 nor EN 419 221-5 nor GM/T 0028 nor the code-signing baseline "
            "requirements, whatever else this audit finds",
        )  # fmt: skip
    else:
        rows.passed("token.hardware", TOKEN, tried, answer)


def flags(rows: Rows, info: TokenInfo, wanted: Mapping[str, bool]) -> None:
    """Flags against the profile, and the state of the PINs."""
    answer = flag_names(info.flags, TokenFlag)
    known = {name: value for name, value in (wanted or FLAGS).items() if name in TokenFlag.__members__}
    wrong = [
        f"{name} is {'not ' if value else ''}set"
        for name, value in known.items()
        if bool(info.flags & TokenFlag[name]) != value
    ]
    tried = "read the flags"
    unknown = sorted(set(wanted) - set(known))
    if wrong:
        rows.failed("token.flags", TOKEN, tried, answer, listed(wrong))
    elif unknown:
        rows.untested("token.flags", TOKEN, tried, f"there is no flag {listed(unknown)} in the standard", answer)
    else:
        rows.passed("token.flags", TOKEN, tried, answer)
    trouble = info.flags & PIN_TROUBLE
    tried = "read the flags of the PINs"
    if trouble:
        reason = "somebody mistyped a PIN, or it is locked or must be changed; find out who, then log in or reset it"
        rows.failed("token.pin-state", TOKEN, tried, flag_names(trouble, TokenFlag), reason)
    else:
        rows.passed("token.pin-state", TOKEN, tried, "none set")


def visible_before_login(rows: Rows, info: TokenInfo, found: Sequence[Item]) -> None:
    """Objects in a session without login."""
    tried = f"list the objects before login ({len(found)} seen)"
    secret = [item for item in found if item.kind in {ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY}]
    if secret:
        names = listed(item.name for item in secret)
        rows.failed("token.private-visible", TOKEN, tried, names, f"{len(secret)} keys show themselves to anybody")
    elif not info.flags & TokenFlag.LOGIN_REQUIRED:
        rows.failed(
            "token.private-visible", TOKEN, tried, "no private object", "but the token does not ask for a login at all"
        )
    else:
        rows.passed("token.private-visible", TOKEN, tried, "no private or secret object")


def security_officer(rows: Rows, info: TokenInfo) -> None:
    """What the SO may do. Trying it would take his PIN, which no audit has."""
    state = flag_names(info.flags & (PIN_TROUBLE & 0xF00000), TokenFlag)
    rows.untested(
        "token.security-officer",
        TOKEN,
        "nothing: the PIN of the security officer is not the audit's",
        "by the standard he may set the user's PIN anew (C_InitPIN), and so use every key as the user does, and may "
        "erase the token (C_InitToken); keep his PIN with somebody else",
        f"flags of his PIN: {state}",
    )


def mechanisms(rows: Rows, offered: Sequence[MechanismInfo] | Failed) -> None:
    """Which mechanisms wrap, unwrap, derive or decrypt, and which are weak."""
    if isinstance(offered, Failed):
        for check in (*(check for check, _, _ in KINDS), "token.mechanisms-weak"):
            rows.untested(check, TOKEN, "list the mechanisms", "the module does not list them", code(offered))
        return
    for check, flag, verb in KINDS:
        names = [each.name for each in offered if each.flags & flag]
        rows.passed(check, TOKEN, f"list the mechanisms: what {verb}", listed(names))
    weak = [(each, why) for each in offered if (why := weakness(each))]
    tried = f"look for weak ones among {len(offered)} mechanisms"
    if weak:
        shown = listed(f"{each.name} ({why})" for each, why in weak)
        reason = f"{len(weak)} weak mechanisms are offered; switch them off where the token can, and restrict each key"
        rows.failed("token.mechanisms-weak", TOKEN, tried, shown, reason)
    else:
        rows.passed("token.mechanisms-weak", TOKEN, tried, "none")


def weakness(mechanism: MechanismInfo) -> str:
    """What is weak in a mechanism; empty when nothing is known against it."""
    why = next((why for pattern, why in WEAK if pattern.search(mechanism.name)), "")
    if mechanism.name == "RSA_PKCS" and not mechanism.flags & (MechanismFlag.DECRYPT | MechanismFlag.UNWRAP):
        return ""  # as a signature it is sound
    if mechanism.name.endswith("_KEY_GEN") or "PARAMETER_GEN" in mechanism.name:
        return why if why == "DES" else ""
    return why


def other_keys(rows: Rows, objects: Sequence[Item]) -> None:
    """Keys that wrap, unwrap or decrypt beside those that sign."""
    tried = "read WRAP, UNWRAP and DECRYPT of every secret and public key"
    found = False
    for item in (*of_class(objects, ObjectClass.SECRET_KEY), *of_class(objects, ObjectClass.PUBLIC_KEY)):
        uses = [each.name for each in _USES if item.flag(each)]
        if uses:
            found = True
            rows.failed(
                "token.wrapping-keys", TOKEN, tried, f"{_kind(item)} {item.name}: {listed(uses)}",
                f"the key {item.name} can {listed(use.lower() for use in uses)}: with it, whoever is logged in can "
                "carry away every key that is extractable; remove it",
            )  # fmt: skip
    if not found:
        rows.passed("token.wrapping-keys", TOKEN, tried, "none has any of them")


def strange_objects(rows: Rows, objects: Sequence[Item]) -> None:
    """Ghosts, and public keys without a private half."""
    tried = f"read class, kind, id and label of each of {len(objects)} objects"
    private_ids = {item.id for item in of_class(objects, ObjectClass.PRIVATE_KEY)}
    found = False
    for item in objects:
        reason = _strangeness(item, private_ids)
        if reason:
            found = True
            rows.failed("token.strange-objects", TOKEN, tried, f"{_kind(item)} {item.name}", reason)
    if not found:
        rows.passed("token.strange-objects", TOKEN, tried, "all are what they seem")


def is_ghost(item: Item) -> bool:
    """Whether a private key object holds no key: it has no kind, or no numbers of its kind."""
    if item.key_type is None:
        return True
    numbers = Attribute.MODULUS if item.key_type == KeyType.RSA else Attribute.EC_PARAMS
    return item.read(numbers) == b""  # what the module does not tell may be there


def _strangeness(item: Item, private_ids: set[bytes]) -> str:
    kind = item.kind
    if kind is None:
        return "a ghost: an object without a class; destroy it"
    if kind not in {ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY, ObjectClass.SECRET_KEY}:
        return ""
    if kind != ObjectClass.SECRET_KEY and is_ghost(item):
        return "a ghost: a key object without a key in it, such as a failed import leaves behind; destroy it"
    if not item.id and not item.label:
        return "a key object without id and label, which nobody can name"
    if kind == ObjectClass.PUBLIC_KEY and item.id not in private_ids:
        return "a public key whose private half is not on the token"
    return ""


def _kind(item: Item) -> str:
    kind = item.kind
    named = ObjectClass(kind).name if kind in set(ObjectClass) else f"class {kind}"
    return named.replace("_", " ").lower()


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
