"""What the audit reads back of each private key, and what follows from its public key (requirements K-2, K-4)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hsm_endorser.custody import arithmetic
from hsm_endorser.custody.audited import BOOLEANS, GENERATED_BY, SIGNS_BY, STRICT, Audited, kind_name, name_of
from hsm_endorser.custody.cryptoki import UNAVAILABLE, Attribute, Mechanisms, ObjectClass, code, numbers_in
from hsm_endorser.custody.inventory import BadPublicKeyError, Item, of_class, public_key, spki
from hsm_endorser.custody.verdicts import Rows, listed
from hsm_endorser.worker_messages import Failed
from protocol.errors import UnacceptableKeyError
from protocol.keys import PublicKey

A = Attribute
UNSUPPORTED: Final = "the module does not tell, which is not the same as false"
PUBLIC_FALSE: Final = (A.MODIFIABLE, A.WRAP, A.ENCRYPT)
TOLD_ELSEWHERE: Final = frozenset({*BOOLEANS.values(), A.KEY_GEN_MECHANISM, A.ALLOWED_MECHANISMS, A.CLASS, A.VALUE_LEN})
LONG: Final = 16


def attributes(rows: Rows, key: Audited, wanted: Mapping[str, bool]) -> None:
    """Every attribute of the private object, against the profile."""
    for check, attribute in BOOLEANS.items():
        _boolean(rows, key, check, attribute, wanted.get(attribute.name, STRICT[attribute]))
    _generated(rows, key)
    _allowed(rows, key)
    _others(rows, key)


def pair(rows: Rows, key: Audited, objects: Sequence[Item]) -> None:
    """One private and one public object for the id, and the same for the label."""
    item = key.item
    privates, publics = of_class(objects, ObjectClass.PRIVATE_KEY), of_class(objects, ObjectClass.PUBLIC_KEY)
    tried = "count the objects with its id, and those with its label"
    by_id = _count(privates, publics, lambda each: each.id == item.id)
    by_label = _count(privates, publics, lambda each: each.label == item.label)
    answer = (
        f"id {item.id.hex() or 'none'}: {by_id[0]} private, {by_id[1]} public; "
        f"label {item.label!r}: {by_label[0]} private, {by_label[1]} public"
    )
    wrong = []
    if not item.id:
        wrong.append("it has no id")
    if by_id != (1, 1):
        wrong.append(f"{by_id[0]} private and {by_id[1]} public objects have its id where one each is expected")
    if by_label != (1, 1):
        wrong.append(
            f"{by_label[0]} private and {by_label[1]} public objects have its label where one each is expected"
        )
    if wrong:
        rows.failed("key.pair", key.target, tried, answer, "; ".join(wrong))
    else:
        rows.passed("key.pair", key.target, tried, answer)


def public_object(rows: Rows, key: Audited) -> None:
    """The attributes of the public object that matter."""
    tried = f"read {listed(each.name for each in PUBLIC_FALSE)} of the public object"
    if key.public_item is None:
        rows.untested("key.public-object", key.target, tried, "no public object is proven to be its")
        return
    flags = {each: key.public_item.flag(each) for each in PUBLIC_FALSE}
    answer = listed(f"{each.name} {_word(value)}" for each, value in flags.items())
    wrong = [each.name for each, value in flags.items() if value]
    if wrong:
        can = {A.MODIFIABLE: "be exchanged for another", A.WRAP: "wrap keys", A.ENCRYPT: "encrypt"}
        reason = f"{listed(wrong)} {'is' if len(wrong) == 1 else 'are'} true: it can " + " and ".join(
            can[each] for each in PUBLIC_FALSE if flags[each]
        )
        rows.failed("key.public-object", key.target, tried, answer, reason)
    elif None in flags.values():
        rows.untested("key.public-object", key.target, tried, UNSUPPORTED, answer)
    else:
        rows.passed("key.public-object", key.target, tried, answer)


def numbers(rows: Rows, key: Audited, moduli: Mapping[str, int]) -> None:
    """What can be told from the public key alone. `moduli`: target → modulus, of all RSA keys on the token."""
    public, target = key.public, key.target
    if public is None:
        reason = _why_no_public(key)
        for check in ("key.acceptable", "key.curve"):
            rows.failed(check, target, "read the public key", "none", reason)
        return
    _acceptable(rows, key)
    match public:
        case ec.EllipticCurvePublicKey():
            # The point was refused before if it was not on the curve.
            rows.passed("key.curve", target, "put the point into the equation of its curve", f"on {public.curve.name}")
        case ed25519.Ed25519PublicKey():
            rows.passed("key.curve", target, "put the point into the equation of its curve", "on edwards25519")
        case rsa.RSAPublicKey():
            _rsa(rows, target, public.public_numbers(), moduli)


def unique(rows: Rows, key: Audited, keys: Sequence[Audited], known: Mapping[str, str]) -> None:
    """Whether the same public key is anywhere else."""
    tried = f"compare with {len(keys) - 1} other keys on the token and {len(known)} keys of other tokens"
    if key.public is None:
        rows.untested("key.unique", key.target, tried, "no public key is proven to be its")
        return
    mine = name_of(key.public)
    twins = [
        each.item.name for each in keys if each is not key and each.public is not None and name_of(each.public) == mine
    ]
    if twins:
        reason = f"the key {listed(twins)} on this token is the same key: one of them was copied or imported"
        rows.failed("key.unique", key.target, tried, mine, reason)
    elif mine in known:
        rows.failed("key.unique", key.target, tried, mine, f"the same key is on {known[mine]}: it left a token")
    else:
        rows.passed("key.unique", key.target, tried, "no other")


def attestation(rows: Rows, key: Audited) -> None:
    """There is none to check: no vendor's attestation is understood here yet."""
    reason = "no attestation by the vendor of this token is known to hsm-endorser, so no key of it is `attested`"
    rows.untested("key.attestation", key.target, "nothing", reason)


def moduli_of(keys: Sequence[Audited]) -> dict[str, int]:
    """Target → modulus, of the RSA keys."""
    return {each.target: each.public.public_numbers().n for each in keys if isinstance(each.public, rsa.RSAPublicKey)}


def _boolean(rows: Rows, key: Audited, check: str, attribute: Attribute, wanted: bool) -> None:
    tried = f"read {attribute.name}"
    answer = key.item.answers[attribute]
    got = key.item.flag(attribute)
    if isinstance(answer, Failed):
        rows.untested(check, key.target, tried, f"{code(answer)}: {UNSUPPORTED}", code(answer))
    elif got is None:
        rows.failed(check, key.target, tried, answer.value.hex()[:64], "neither true nor false")
    elif got != wanted:
        rows.failed(check, key.target, tried, _word(got), f"{attribute.name} is {_word(got)}: {MEANING[check]}")
    else:
        rows.passed(check, key.target, tried, _word(got))


MEANING: Final[Mapping[str, str]] = {
    "key.token": "a session key ends with its session",
    "key.private": "it shows itself to anybody, without login",
    "key.sensitive": "its value can be read in clear",
    "key.extractable": "it can leave the token, wrapped under another key",
    "key.always-sensitive": "its value could be read at some time, or it was imported",
    "key.never-extractable": "it could leave the token at some time, or it was imported",
    "key.local": "it was made outside of the token and imported: whoever made it may have it still",
    "key.sign": "it does not sign",
    "key.sign-recover": "it makes signatures that carry their message",
    "key.decrypt": "it decrypts: a signature can be had as a decryption (RSA)",
    "key.unwrap": "it unwraps: other keys come onto the token in its name",
    "key.derive": "it derives secrets: it is used for more than signatures",
    "key.modifiable": "its attributes and its id can be changed later",
    "key.copyable": "it can be copied, and the copy given other attributes",
    "key.destroyable": "whoever is logged in can delete it",
}
"""What it means when an attribute is not as the strict template has it."""


def _generated(rows: Rows, key: Audited) -> None:
    tried = "read KEY_GEN_MECHANISM"
    answer = key.item.answers[A.KEY_GEN_MECHANISM]
    if isinstance(answer, Failed):
        rows.untested("key.generated", key.target, tried, f"{code(answer)}: {UNSUPPORTED}", code(answer))
        return
    value = int.from_bytes(answer.value, "little")
    names = {int(each): each.name for each in Mechanisms}
    if value in GENERATED_BY.get(key.kind or 0, ()):
        rows.passed("key.generated", key.target, tried, names[value])
    elif value == UNAVAILABLE or not answer.value:
        rows.failed("key.generated", key.target, tried, "CK_UNAVAILABLE_INFORMATION", "it was not generated here")
    else:
        reason = "that is no generation of a key pair of its kind"
        rows.failed("key.generated", key.target, tried, names.get(value, f"{value:#x}"), reason)


def _allowed(rows: Rows, key: Audited) -> None:
    tried = "read ALLOWED_MECHANISMS"
    answer = key.item.answers[A.ALLOWED_MECHANISMS]
    check = "key.allowed-mechanisms"
    if isinstance(answer, Failed):
        rows.untested(check, key.target, tried, f"{code(answer)}: {UNSUPPORTED}", code(answer))
        return
    allowed = numbers_in(answer.value)
    names = {int(each): each.name for each in Mechanisms}
    shown = listed(names.get(each, f"{each:#x}") for each in allowed)
    wanted = SIGNS_BY.get(key.kind or 0)
    if not allowed:
        rows.failed(check, key.target, tried, "empty", "mechanisms are not restricted: it signs by any that fits it")
    elif wanted is None or allowed != [wanted.number]:
        rows.failed(check, key.target, tried, shown, "mechanisms are not restricted to the one that is needed")
    else:
        rows.passed(check, key.target, tried, shown)


def _others(rows: Rows, key: Audited) -> None:
    told = []
    for attribute, answer in key.item.answers.items():
        if attribute in TOLD_ELSEWHERE:
            continue
        value = code(answer) if isinstance(answer, Failed) else _shown(Attribute(attribute), answer.value)
        if value not in {"CKR_ATTRIBUTE_TYPE_INVALID", ""}:
            told.append(f"{Attribute(attribute).name} {value}")
    rows.passed("key.other-attributes", key.target, "read every other attribute", listed(told))


def _acceptable(rows: Rows, key: Audited) -> None:
    assert key.public is not None  # noqa: S101  for the type checker: the caller has looked
    tried = "read the public key in its one form"
    try:
        accepted = PublicKey.load(spki(key.public))
    except UnacceptableKeyError as error:
        rows.failed("key.acceptable", key.target, tried, kind_name(key.public), str(error))
    else:
        rows.passed("key.acceptable", key.target, tried, accepted.scheme)


def _rsa(rows: Rows, target: str, public: rsa.RSAPublicNumbers, moduli: Mapping[str, int]) -> None:
    bits, exponent = public.n.bit_length(), public.e
    tried = "read the modulus"
    if bits < arithmetic.RSA_LEAST_BITS:
        reason = f"an RSA key of {bits} bits where at least {arithmetic.RSA_LEAST_BITS} are asked for"
        rows.failed("key.rsa-size", target, tried, f"{bits} bits", reason)
    else:
        rows.passed("key.rsa-size", target, tried, f"{bits} bits")
    if exponent < arithmetic.RSA_LEAST_EXPONENT or not exponent & 1:
        reason = f"an RSA exponent of {exponent} where an odd one from {arithmetic.RSA_LEAST_EXPONENT} is asked for"
        rows.failed("key.rsa-exponent", target, "read the exponent", str(exponent)[:80], reason)
    else:
        rows.passed("key.rsa-exponent", target, "read the exponent", str(exponent)[:80])
    tried = f"divide the modulus by {len(arithmetic.ROCA_PRIMES)} small primes"
    if arithmetic.has_roca_fingerprint(public.n):
        reason = "the key is of a generator whose keys can be factored (CVE-2017-15361): replace it"
        rows.failed("key.rsa-roca", target, tried, "has the fingerprint", reason)
    else:
        rows.passed("key.rsa-roca", target, tried, "no fingerprint")
    shared = arithmetic.shared_primes(moduli).get(target)
    tried = f"common divisors with {len(moduli) - 1} other moduli"
    if shared:
        rows.failed("key.rsa-shared-primes", target, tried, "one", f"it shares a prime with {shared}: both are broken")
    else:
        rows.passed("key.rsa-shared-primes", target, tried, "none")


def _why_no_public(key: Audited) -> str:
    if not key.publics:
        return "there is no public object with its id"
    reasons = []
    for item in key.publics:
        try:
            public_key(item)
        except BadPublicKeyError as error:
            reasons.append(str(error))
    return "; ".join(reasons) or "the public key with its id is not its own"


def _count(privates: Sequence[Item], publics: Sequence[Item], matches: Callable[[Item], bool]) -> tuple[int, int]:
    return sum(map(matches, privates)), sum(map(matches, publics))


def _shown(attribute: Attribute, value: bytes) -> str:
    if not value:
        return ""
    if attribute in {A.LABEL, A.UNIQUE_ID, A.START_DATE, A.END_DATE}:
        return repr(value.decode(errors="replace"))
    if len(value) == 1:
        return _word(value != b"\0")
    return value.hex() if len(value) <= LONG else f"{value.hex()[: 2 * LONG]}… ({len(value)} bytes)"


def _word(value: bool | None) -> str:
    return "unsupported" if value is None else "true" if value else "false"
