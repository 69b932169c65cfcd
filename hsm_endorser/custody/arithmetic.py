"""Weak public keys: what can be told from the numbers alone."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm_endorser.custody.inventory import AnyPublicKey

RSA_LEAST_BITS: Final = 2048
RSA_LEAST_EXPONENT: Final = 65537
ROCA_GENERATOR: Final = 65537
ROCA_PRIMES: Final = tuple(n for n in range(3, 168) if all(n % d for d in range(2, math.isqrt(n) + 1)))
"""The primes whose product is M in the weak generator's p = k·M + (65537^a mod M) (CVE-2017-15361), up to 512-bit p."""


@functools.cache
def _powers(prime: int) -> frozenset[int]:
    found, power = {1}, ROCA_GENERATOR % prime
    while power not in found:
        found.add(power)
        power = power * ROCA_GENERATOR % prime
    return frozenset(found)


def has_roca_fingerprint(modulus: int) -> bool:
    """Whether a modulus is a power of 65537 modulo each of the primes, as next to no other one is."""
    return all(modulus % prime in _powers(prime) for prime in ROCA_PRIMES)


def shared_primes(moduli: Mapping[str, int]) -> dict[str, str]:
    """Key → another key with which it shares a prime (or the modulus)."""
    found: dict[str, str] = {}
    items = list(moduli.items())
    for index, (name, modulus) in enumerate(items):
        for other, theirs in items[index + 1 :]:
            if math.gcd(modulus, theirs) != 1:
                found.setdefault(name, other)
                found.setdefault(other, name)
    return found


P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_BASE: Final = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
P256_BYTES: Final = 32
Point = tuple[int, int] | None
"""A point in affine coordinates; None is the point at infinity."""


def is_private_half(public: AnyPublicKey, clear: bytes) -> bool:
    """Whether bytes that came out of a token hold the private half of a public key, in whatever wrapping.

    Read with plain arithmetic: nothing here can make a key of it. Other kinds than P-256 and RSA are not recognised.
    """
    if isinstance(public, rsa.RSAPublicKey):
        modulus = public.public_numbers().n
        return any(1 < each < modulus and modulus % each == 0 for each in _der_integers(clear))
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        point = (public.public_numbers().x, public.public_numbers().y)
        marks = [i + 2 for i in range(len(clear) - P256_BYTES - 1) if clear[i : i + 2] == bytes((4, P256_BYTES))]
        if len(clear) == P256_BYTES:
            marks.append(0)
        return any(p256_times(int.from_bytes(clear[i : i + P256_BYTES], "big")) == point for i in marks)
    return False


def p256_times(scalar: int) -> Point:
    """The base point of P-256 times a number."""
    total: Point = None
    addend: Point = P256_BASE
    while scalar:
        if scalar & 1:
            total = _add(total, addend)
        addend = _add(addend, addend)
        scalar >>= 1
    return total


def _add(one: Point, other: Point) -> Point:
    if one is None or other is None:
        return one or other
    (x1, y1), (x2, y2) = one, other
    if x1 == x2 and (y1 + y2) % P256_PRIME == 0:
        return None
    rise, run = (3 * x1 * x1 - 3, 2 * y1) if one == other else (y2 - y1, x2 - x1)
    slope = rise * pow(run, -1, P256_PRIME) % P256_PRIME
    x = (slope * slope - x1 - x2) % P256_PRIME
    return x, (slope * (x1 - x) - y1) % P256_PRIME


def _der_integers(data: bytes) -> Iterator[int]:
    """Every long INTEGER that DER could have at any place."""
    for i in range(len(data) - 4):
        if data[i] != 0x02:  # noqa: PLR2004  the tag
            continue
        if data[i + 1] == 0x81:  # noqa: PLR2004  a length in one byte
            start, length = i + 3, data[i + 2]
        elif data[i + 1] == 0x82:  # noqa: PLR2004  a length in two bytes
            start, length = i + 4, int.from_bytes(data[i + 2 : i + 4], "big")
        else:
            continue
        if start + length <= len(data):
            yield int.from_bytes(data[start : start + length], "big")
