"""Key material that anybody may have, to import into a token and to plant on it: can it be deceived?

Their private halves are published, here or in the RFC named: nobody may use them for anything.
"""

from typing import Final

from hsm_endorser.custody.cryptoki import Attribute, KeyType
from hsm_endorser.custody.probe_messages import Template

A = Attribute
P256_PARAMETERS: Final = bytes.fromhex("06082a8648ce3d030107")
P256_VALUE: Final = bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
P256_POINT: Final = bytes.fromhex(
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
"""RFC 6979, appendix A.2.5."""
ED25519_PARAMETERS: Final = b"\x13\x0cedwards25519"
ED25519_VALUE: Final = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
ED25519_POINT: Final = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
"""RFC 8032, section 7.1, test 1."""
_P: Final = bytes.fromhex(
    """
    e24b7d29aba1a92e30aef6202c0ab7d6d5728e7994604f9803cf1e8d4beeb27f76b1134844f5e47cd2b7791121c435135de5d626
    050267611e5db6cd185efb6e3c8aaa7a6530ed4254a01efbd353a5a685c543df42780d888e31d1f4c11467e9627d095c4f0bc2e1
    833cfc3e146b04bcf7413b01483738ead81acc0aa226b30f
    """
)
_Q: Final = bytes.fromhex(
    """
    d6e9ed9cd24dd8ca2162f22ffb1b1e82bc4e48da54a61065cdda98c0572eafbc192de695bc2948d6c5c8bacd1e839828f852f029
    99eb8cf46df28b1e4a0d68c3dbc2b6547a192b56bdd2a3ee2687e60665564d2538e66545268af783a8ace427061e00fc51e33465
    7f027ece0bb0a4decd252b9a7d7e2d3b996da9e28d55169b
    """
)
"""Two primes that were drawn once and are published here."""
RSA_MODULUS: Final = int.from_bytes(_P, "big") * int.from_bytes(_Q, "big")
RSA_EXPONENT: Final = 65537


def private_value(key_type: int) -> Template:
    """What makes the private half of a published key of this kind."""
    if key_type == KeyType.RSA:
        return _rsa_private()
    if key_type == KeyType.EC_EDWARDS:
        return {A.EC_PARAMS: ED25519_PARAMETERS, A.VALUE: ED25519_VALUE}
    return {A.EC_PARAMS: P256_PARAMETERS, A.VALUE: P256_VALUE}


def public_value(key_type: int) -> Template:
    """What makes the public half."""
    if key_type == KeyType.RSA:
        return {A.MODULUS: _bytes(RSA_MODULUS), A.PUBLIC_EXPONENT: _bytes(RSA_EXPONENT)}
    if key_type == KeyType.EC_EDWARDS:
        return {A.EC_PARAMS: ED25519_PARAMETERS, A.EC_POINT: bytes((0x04, len(ED25519_POINT))) + ED25519_POINT}
    return {A.EC_PARAMS: P256_PARAMETERS, A.EC_POINT: bytes((0x04, len(P256_POINT))) + P256_POINT}


def _rsa_private() -> Template:
    p, q = int.from_bytes(_P, "big"), int.from_bytes(_Q, "big")
    exponent = pow(RSA_EXPONENT, -1, (p - 1) * (q - 1))
    return {
        A.MODULUS: _bytes(RSA_MODULUS),
        A.PUBLIC_EXPONENT: _bytes(RSA_EXPONENT),
        A.PRIVATE_EXPONENT: _bytes(exponent),
        A.PRIME_1: _P,
        A.PRIME_2: _Q,
        A.EXPONENT_1: _bytes(exponent % (p - 1)),
        A.EXPONENT_2: _bytes(exponent % (q - 1)),
        A.COEFFICIENT: _bytes(pow(q, -1, p)),
    }


def _bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
