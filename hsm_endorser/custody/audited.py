"""A private key under audit: its object, the public objects that claim to be its, and what was proven of it."""

from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hsm_endorser.custody.cryptoki import Attribute, KeyType, Mechanisms
from hsm_endorser.custody.inventory import AnyPublicKey, Item, spki
from hsm_endorser.custody.probe_messages import Mechanism
from protocol.errors import UnacceptableKeyError
from protocol.keys import PublicKey, key_id

SIGNS_BY: Final[Mapping[int, Mechanism]] = {
    KeyType.EC: Mechanism(Mechanisms.ECDSA),
    KeyType.RSA: Mechanism(Mechanisms.RSA_PKCS),
    KeyType.EC_EDWARDS: Mechanism(Mechanisms.EDDSA),
}
"""By which mechanism each kind of key signs for the network: the only one that it should be allowed."""
GENERATED_BY: Final[Mapping[int, tuple[Mechanisms, ...]]] = {
    KeyType.EC: (Mechanisms.EC_KEY_PAIR_GEN, Mechanisms.EC_KEY_PAIR_GEN_W_EXTRA_BITS),
    KeyType.RSA: (Mechanisms.RSA_PKCS_KEY_PAIR_GEN, Mechanisms.RSA_X9_31_KEY_PAIR_GEN),
    KeyType.EC_EDWARDS: (Mechanisms.EC_EDWARDS_KEY_PAIR_GEN,),
}


class Audited(msgspec.Struct):
    """One private key. `public` is set when a challenge has proven it."""

    item: Item
    publics: list[Item]
    """Public objects with its id."""
    public: AnyPublicKey | None = None
    public_item: Item | None = None
    number: int = 0
    """The number of the private object at the worker of the moment; 0 when it is not found any more."""
    probe: str = ""
    """The target of the rows of the probe key that stands for it; empty when there is none."""

    @property
    def key(self) -> str:
        """The id of its public key: empty unless that is proven and acceptable."""
        if self.public is None:
            return ""
        try:
            return PublicKey.load(spki(self.public)).id
        except UnacceptableKeyError:
            return ""

    @property
    def target(self) -> str:
        """What its rows are about: its key id, else its CKA_ID and the number that the object had in this audit."""
        return self.key or f"id:{self.item.id.hex()[:64] or 'none'}#{self.item.number}"

    @property
    def kind(self) -> int | None:
        """CKA_KEY_TYPE."""
        return self.item.key_type


def kind_name(public: AnyPublicKey) -> str:
    """What a key is called in reports."""
    match public:
        case rsa.RSAPublicKey():
            return f"RSA-{public.key_size}"
        case ec.EllipticCurvePublicKey():
            return f"EC {public.curve.name}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
    raise TypeError(type(public).__name__)


def name_of(public: AnyPublicKey) -> str:
    """The key id of any public key, acceptable or not."""
    return key_id(spki(public))


BOOLEANS: Final[Mapping[str, Attribute]] = {
    "key.token": Attribute.TOKEN,
    "key.private": Attribute.PRIVATE,
    "key.sensitive": Attribute.SENSITIVE,
    "key.extractable": Attribute.EXTRACTABLE,
    "key.always-sensitive": Attribute.ALWAYS_SENSITIVE,
    "key.never-extractable": Attribute.NEVER_EXTRACTABLE,
    "key.local": Attribute.LOCAL,
    "key.sign": Attribute.SIGN,
    "key.sign-recover": Attribute.SIGN_RECOVER,
    "key.decrypt": Attribute.DECRYPT,
    "key.unwrap": Attribute.UNWRAP,
    "key.derive": Attribute.DERIVE,
    "key.modifiable": Attribute.MODIFIABLE,
    "key.copyable": Attribute.COPYABLE,
    "key.destroyable": Attribute.DESTROYABLE,
}
"""Checks of one boolean attribute."""
STRICT: Final[Mapping[Attribute, bool]] = {
    attribute: attribute.name
    in {"TOKEN", "PRIVATE", "SENSITIVE", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE", "LOCAL", "SIGN"}
    for attribute in BOOLEANS.values()
}
"""What each must be where a profile does not say otherwise (requirement K-1)."""
