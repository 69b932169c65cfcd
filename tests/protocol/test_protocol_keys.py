"""Public keys: which may be registered, and which signatures count."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa, utils, x25519
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys
from protocol.errors import BadSignatureError, UnacceptableKeyError
from protocol.keys import ED25519_LOW_ORDER_Y, ED25519_PRIME, P256_ORDER, PublicKey, key_id
from tests import software_keys
from tests.software_keys import SoftwareKey

pytestmark = pytest.mark.requirement("E-18")

MESSAGE = b"what is signed"
EVERY_KIND = {
    "ecdsa-p256-sha256": lambda: software_keys.ecdsa("a"),
    "rsa-pkcs1-sha256": lambda: software_keys.rsa_key("a"),
    "ed25519": lambda: software_keys.ed25519_key("a"),
}


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = bytes([len(content)]) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
    return bytes([tag]) + length + content


def _spki(algorithm: bytes, key: bytes) -> bytes:
    """RFC 5280, section 4.1: a SubjectPublicKeyInfo around raw key bytes, without asking any library."""
    return _der(0x30, algorithm, _der(0x03, b"\0", key))


P256 = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
RSA = bytes.fromhex("300d06092a864886f70d0101010500")
ED25519 = bytes.fromhex("300506032b6570")


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _rsa(n: int, e: int) -> bytes:
    return _spki(RSA, _der(0x30, _integer(n), _integer(e)))


def _ed25519(y: int) -> bytes:
    return _spki(ED25519, y.to_bytes(32, "little"))


def _point(key: SoftwareKey, form: serialization.PublicFormat) -> bytes:
    return key.private.public_key().public_bytes(serialization.Encoding.X962, form)


GOOD_POINT = _point(software_keys.ecdsa("a"), serialization.PublicFormat.UncompressedPoint)
GOOD_MODULUS = software_keys.rsa_key("a").private.public_key().public_numbers().n


def _off_curve() -> bytes:
    return GOOD_POINT[:-1] + bytes([GOOD_POINT[-1] ^ 1])


def _hybrid() -> bytes:
    return bytes([6 | GOOD_POINT[-1] & 1]) + GOOD_POINT[1:]


def _public(private: object) -> bytes:
    return private.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


REFUSED = {
    "nothing": (lambda: b"", "no usable"),
    "garbage": (lambda: b"\x30\x03abc", "no usable"),
    "PEM": (lambda: b"-----BEGIN PUBLIC KEY-----", "no usable"),
    "a byte after the key": (lambda: software_keys.ecdsa("a").spki + b"\0", "SubjectPublicKeyInfo"),
    "a point off the curve": (lambda: _spki(P256, _off_curve()), "no usable"),
    "the point at infinity": (lambda: _spki(P256, b"\0"), "no usable"),
    "a point beyond the field": (lambda: _spki(P256, b"\4" + b"\xff" * 64), "no usable"),
    "a compressed point": (
        lambda: _spki(P256, _point(software_keys.ecdsa("a"), serialization.PublicFormat.CompressedPoint)),
        "DER's one form",
    ),
    "a hybrid point": (lambda: _spki(P256, _hybrid()), "SubjectPublicKeyInfo"),
    "P-384": (lambda: _public(ec.generate_private_key(ec.SECP384R1())), "curve secp384r1 where P-256"),
    "secp256k1": (lambda: _public(ec.generate_private_key(ec.SECP256K1())), "curve secp256k1 where P-256"),
    "X25519": (lambda: _public(x25519.X25519PrivateKey.generate()), "where ECDSA P-256, RSA or Ed25519"),
    "Ed448": (lambda: _public(ed448.Ed448PrivateKey.generate()), "where ECDSA P-256, RSA or Ed25519"),
    "DSA": (lambda: _public(dsa.generate_private_key(2048)), "where ECDSA P-256, RSA or Ed25519"),
    "RSA of 1024 bits": (lambda: _public(rsa.generate_private_key(65537, 1024)), "1024 bits where 2048"),  # noqa: S505  that is the point
    "RSA of 2047 bits": (lambda: _rsa((GOOD_MODULUS >> 1) | 1, 65537), "2047 bits where 2048"),
    "RSA of 8193 bits": (lambda: _rsa((1 << 8192) + 1, 65537), "8193 bits where 2048 to 8192|no usable"),
    "RSA with exponent 3": (lambda: _rsa(GOOD_MODULUS, 3), "exponent 3 where"),
    "RSA with exponent 1": (lambda: _rsa(GOOD_MODULUS, 1), "exponent|no usable"),
    "RSA with an even exponent": (lambda: _rsa(GOOD_MODULUS, 65538), "exponent|no usable"),
    "RSA with a huge exponent": (lambda: _rsa(GOOD_MODULUS, (1 << 65) + 1), "exponent|no usable"),
    "RSA with an even modulus": (lambda: _rsa(GOOD_MODULUS + 1, 65537), "small prime factor|no usable"),
    "RSA with the factor 3": (lambda: _rsa(GOOD_MODULUS // 6 * 6 + 3, 65537), "small prime factor"),
    "RSA with the factor 997": (lambda: _rsa(GOOD_MODULUS // 1994 * 1994 + 997, 65537), "small prime factor"),
    "RSA with a negative modulus": (lambda: _spki(RSA, _der(0x30, b"\2\1\xff", _integer(65537))), "no usable"),
    "Ed25519 of 31 bytes": (lambda: _spki(ED25519, b"\1" * 31), "no usable"),
}


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_may_register(name: str) -> None:
    """A weak key, a point off its curve, another kind of key, and any second spelling of a good one."""
    make, reason = REFUSED[name]
    with pytest.raises(UnacceptableKeyError, match=reason):
        PublicKey.load(make())


@pytest.mark.parametrize("scheme", EVERY_KIND)
def test_every_kind_verifies_its_own_signature_alone(scheme: str) -> None:
    """The scheme comes from the key; another message, key or signature is refused."""
    key = EVERY_KIND[scheme]()
    signature = key.sign(MESSAGE)
    assert key.public.scheme == scheme
    assert key.public.id == hashlib.sha256(key.spki).hexdigest() == key_id(key.spki)
    key.public.verify(signature, MESSAGE)
    key.public.verify(signature, MESSAGE, low_s=True)
    with pytest.raises(BadSignatureError, match=f"not by key {key.id[:16]}"):
        key.public.verify(signature, MESSAGE + b" ")
    for other in EVERY_KIND.values():
        if other().public != key.public:
            with pytest.raises(BadSignatureError):
                other().public.verify(signature, MESSAGE)
    for at in {0, 1, len(signature) // 2, len(signature) - 1}:
        changed = bytearray(signature)
        changed[at] ^= 1
        with pytest.raises(BadSignatureError):
            key.public.verify(bytes(changed), MESSAGE)


@pytest.mark.parametrize("scheme", EVERY_KIND)
@given(signature=st.binary(max_size=300))
def test_garbage_is_a_bad_signature_and_nothing_else(scheme: str, signature: bytes) -> None:
    """No bytes make a key raise anything but a bad signature."""
    for low_s in (False, True):
        with pytest.raises(BadSignatureError):
            EVERY_KIND[scheme]().public.verify(signature, MESSAGE, low_s=low_s)


def test_a_digest_serves_where_the_scheme_signs_one() -> None:
    """ECDSA and RSA verify a known digest; Ed25519 signs the message itself and says so."""
    digest = hashlib.sha256(MESSAGE).digest()
    for scheme in ("ecdsa-p256-sha256", "rsa-pkcs1-sha256"):
        key = EVERY_KIND[scheme]()
        key.public.verify_digest(key.sign(MESSAGE), digest)
        assert keys.signing_input(key.public.scheme, MESSAGE) == digest
    with pytest.raises(TypeError, match="messages, not digests"):
        software_keys.ed25519_key("a").public.verify_digest(b"", digest)
    assert keys.signing_input("ed25519", MESSAGE) == MESSAGE


def test_a_high_s_counts_for_clients_alone() -> None:
    """Nodes sign in one form: the other one verifies, and is refused where one form is asked for."""
    key = software_keys.ecdsa("a")
    high = software_keys.high_s(key.sign(MESSAGE))
    key.public.verify(high, MESSAGE)
    with pytest.raises(BadSignatureError, match="high s"):
        key.public.verify(high, MESSAGE, low_s=True)
    assert keys.low_s(high) == key.sign(MESSAGE)


def test_the_low_half_of_the_order_includes_its_border() -> None:
    """S of half the order is low, one more is high."""
    half = P256_ORDER // 2
    keys.check_low_s(utils.encode_dss_signature(1, half))
    with pytest.raises(BadSignatureError, match="high s"):
        keys.check_low_s(utils.encode_dss_signature(1, half + 1))


def test_a_signature_has_one_form_in_der() -> None:
    """Longer spellings of the same numbers are refused."""
    r, s = utils.decode_dss_signature(software_keys.ecdsa("a").sign(MESSAGE))
    padded = _der(0x30, _der(0x02, b"\0" * 2 + r.to_bytes(32, "big")), _integer(s))
    for wrong in (padded, software_keys.ecdsa("a").sign(MESSAGE) + b"\0"):
        with pytest.raises(BadSignatureError):
            keys.check_low_s(wrong)
        with pytest.raises(BadSignatureError):
            software_keys.ecdsa("a").public.verify(wrong, MESSAGE)


def test_rsa_of_another_padding_or_hash_is_refused() -> None:
    """PKCS#1 v1.5 over SHA-256 is the one RSA scheme."""
    key = software_keys.rsa_key("a")
    assert isinstance(key.private, rsa.RSAPrivateKey)
    pss = key.private.sign(MESSAGE, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    sha512 = key.private.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA512())
    for wrong in (pss, sha512):
        with pytest.raises(BadSignatureError):
            key.public.verify(wrong, MESSAGE)


# --- Ed25519: the curve in a few lines of its own, so that the constants are not taken on trust ------------------

D = -121665 * pow(121666, -1, ED25519_PRIME) % ED25519_PRIME
ROOT_OF_MINUS_ONE = pow(2, (ED25519_PRIME - 1) // 4, ED25519_PRIME)
IDENTITY = (0, 1)


def _add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % ED25519_PRIME
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, ED25519_PRIME)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, ED25519_PRIME)
    return x % ED25519_PRIME, y % ED25519_PRIME


def _times(count: int, point: tuple[int, int]) -> tuple[int, int]:
    total = IDENTITY
    while count:
        if count & 1:
            total = _add(total, point)
        point = _add(point, point)
        count >>= 1
    return total


def _x_of(y: int) -> int | None:
    """RFC 8032, section 5.1.3, step 3: the even x of a point with this y, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, ED25519_PRIME) % ED25519_PRIME
    x = pow(square, (ED25519_PRIME + 3) // 8, ED25519_PRIME)
    if x * x % ED25519_PRIME != square:
        x = x * ROOT_OF_MINUS_ONE % ED25519_PRIME
    if x * x % ED25519_PRIME != square:
        return None
    return x if x % 2 == 0 else ED25519_PRIME - x


def _low_order_points() -> set[tuple[int, int]]:
    """All points whose order divides eight: the multiples of one of order eight, found by trying."""
    order = 2**252 + 27742317777372353535851937790883648493
    y = 2
    while True:
        x = _x_of(y)
        if x is not None:
            point = _times(order, (x, y))
            multiples = {_times(count, point) for count in range(8)}
            if len(multiples) == 8:
                return multiples
        y += 1


def test_the_low_order_constants_are_those_of_the_curve() -> None:
    """Eight points, five values of y, computed here from the curve's equation."""
    points = _low_order_points()
    assert IDENTITY in points
    assert {y for _, y in points} == ED25519_LOW_ORDER_Y


def test_no_point_of_low_order_may_be_registered() -> None:
    """All eight points are refused, with either sign of x."""
    for x, y in _low_order_points():
        for sign in {x & 1, 0, 1}:
            with pytest.raises(UnacceptableKeyError, match="low order"):
                PublicKey.load(_ed25519(y | sign << 255))


@pytest.mark.parametrize("y", [*range(ED25519_PRIME, 2**255)])
def test_no_y_beyond_the_prime_may_be_registered(y: int) -> None:
    """There is one spelling of each point: the other nineteen values are refused, with either sign."""
    for sign in (0, 1):
        with pytest.raises(UnacceptableKeyError, match="not canonical"):
            PublicKey.load(_ed25519(y | sign << 255))


@given(st.integers(2, ED25519_PRIME - 2))
def test_a_key_is_a_point_of_the_curve(y: int) -> None:
    """A y to which there is no x is refused, and no other."""
    if _x_of(y) is None:
        with pytest.raises(UnacceptableKeyError, match="no point of the curve"):
            PublicKey.load(_ed25519(y))
    elif y not in ED25519_LOW_ORDER_Y:
        assert PublicKey.load(_ed25519(y)).scheme == "ed25519"


def test_a_signature_with_a_large_s_is_refused() -> None:
    """S is below the order (RFC 8032, section 5.1.7): the same signature cannot be written twice."""
    key = software_keys.ed25519_key("a")
    assert isinstance(key.private, ed25519.Ed25519PrivateKey)
    signature = key.sign(MESSAGE)
    s = int.from_bytes(signature[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    with pytest.raises(BadSignatureError):
        key.public.verify(signature[:32] + s.to_bytes(32, "little"), MESSAGE)


def test_keys_are_values() -> None:
    """The same bytes are the same key."""
    key = software_keys.ecdsa("a").public
    assert PublicKey.load(bytes(key.spki)) == key
    assert {key, PublicKey.load(key.spki)} == {key}
    assert key != software_keys.ecdsa("b").public
    assert repr(key) == f"<PublicKey ecdsa-p256-sha256 {key.id[:16]}>"


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_key_that_was_read_already_is_the_same(kind: str) -> None:
    """From an object of `cryptography` comes the same key as from its SubjectPublicKeyInfo."""
    private = EVERY_KIND[kind]().private
    assert PublicKey.of(private.public_key()) == PublicKey.load(_public(private))


def test_a_key_that_was_read_already_is_judged_the_same() -> None:
    """What may not be registered is refused in whichever form it comes."""
    with pytest.raises(UnacceptableKeyError, match="curve secp384r1 where P-256 is expected"):
        PublicKey.of(ec.generate_private_key(ec.SECP384R1()).public_key())
