"""The numbers of PKCS#11 v3.1 that the audit speaks of, by name; and values in and out of their bytes."""

import enum
import sys
from typing import Final

from hsm_endorser import failures
from hsm_endorser.worker_messages import Failed

ULONG_BYTES: Final = 8
UNAVAILABLE: Final = (1 << 64) - 1
"""CK_UNAVAILABLE_INFORMATION."""


class Attribute(enum.IntEnum):
    """CKA_…"""

    CLASS = 0x000
    TOKEN = 0x001
    PRIVATE = 0x002
    LABEL = 0x003
    UNIQUE_ID = 0x004
    VALUE = 0x011
    TRUSTED = 0x086
    KEY_TYPE = 0x100
    SUBJECT = 0x101
    ID = 0x102
    SENSITIVE = 0x103
    ENCRYPT = 0x104
    DECRYPT = 0x105
    WRAP = 0x106
    UNWRAP = 0x107
    SIGN = 0x108
    SIGN_RECOVER = 0x109
    VERIFY = 0x10A
    DERIVE = 0x10C
    START_DATE = 0x110
    END_DATE = 0x111
    MODULUS = 0x120
    MODULUS_BITS = 0x121
    PUBLIC_EXPONENT = 0x122
    PRIVATE_EXPONENT = 0x123
    PRIME_1 = 0x124
    PRIME_2 = 0x125
    EXPONENT_1 = 0x126
    EXPONENT_2 = 0x127
    COEFFICIENT = 0x128
    PUBLIC_KEY_INFO = 0x129
    VALUE_LEN = 0x161
    EXTRACTABLE = 0x162
    LOCAL = 0x163
    NEVER_EXTRACTABLE = 0x164
    ALWAYS_SENSITIVE = 0x165
    KEY_GEN_MECHANISM = 0x166
    MODIFIABLE = 0x170
    COPYABLE = 0x171
    DESTROYABLE = 0x172
    EC_PARAMS = 0x180
    EC_POINT = 0x181
    ALWAYS_AUTHENTICATE = 0x202
    WRAP_WITH_TRUSTED = 0x210
    WRAP_TEMPLATE = 0x40000211
    UNWRAP_TEMPLATE = 0x40000212
    DERIVE_TEMPLATE = 0x40000213
    ALLOWED_MECHANISMS = 0x40000600


class ObjectClass(enum.IntEnum):
    """CKO_…"""

    DATA = 0
    CERTIFICATE = 1
    PUBLIC_KEY = 2
    PRIVATE_KEY = 3
    SECRET_KEY = 4


class KeyType(enum.IntEnum):
    """CKK_…"""

    RSA = 0x00
    EC = 0x03
    GENERIC_SECRET = 0x10
    DES3 = 0x15
    AES = 0x1F
    EC_EDWARDS = 0x40


class Mechanisms(enum.IntEnum):
    """CKM_… that the audit calls by name; what a token offers besides has a name in its list."""

    RSA_PKCS_KEY_PAIR_GEN = 0x0000
    RSA_PKCS = 0x0001
    RSA_X_509 = 0x0003
    RSA_PKCS_OAEP = 0x0009
    RSA_X9_31_KEY_PAIR_GEN = 0x000A
    SHA256_RSA_PKCS = 0x0040
    DES3_KEY_GEN = 0x0131
    SHA_1 = 0x0220
    EC_KEY_PAIR_GEN = 0x1040
    ECDSA = 0x1041
    ECDSA_SHA256 = 0x1044
    ECDH1_DERIVE = 0x1050
    ECDH1_COFACTOR_DERIVE = 0x1051
    RSA_AES_KEY_WRAP = 0x1054
    EC_EDWARDS_KEY_PAIR_GEN = 0x1055
    EDDSA = 0x1057
    AES_KEY_GEN = 0x1080
    AES_ECB = 0x1081
    AES_CBC = 0x1082
    AES_CBC_PAD = 0x1085
    AES_CTR = 0x1086
    AES_GCM = 0x1087
    AES_KEY_WRAP = 0x2109
    AES_KEY_WRAP_PAD = 0x210A
    AES_KEY_WRAP_KWP = 0x210B
    EC_KEY_PAIR_GEN_W_EXTRA_BITS = 0x140B


class MechanismFlag(enum.IntFlag):
    """Flags of CK_MECHANISM_INFO."""

    HW = 0x1
    ENCRYPT = 0x100
    DECRYPT = 0x200
    SIGN = 0x800
    VERIFY = 0x2000
    WRAP = 0x20000
    UNWRAP = 0x40000
    DERIVE = 0x80000


class TokenFlag(enum.IntFlag):
    """Flags of CK_TOKEN_INFO."""

    RNG = 0x1
    WRITE_PROTECTED = 0x2
    LOGIN_REQUIRED = 0x4
    USER_PIN_INITIALIZED = 0x8
    RESTORE_KEY_NOT_NEEDED = 0x20
    CLOCK_ON_TOKEN = 0x40
    PROTECTED_AUTHENTICATION_PATH = 0x100
    DUAL_CRYPTO_OPERATIONS = 0x200
    TOKEN_INITIALIZED = 0x400
    SECONDARY_AUTHENTICATION = 0x800
    USER_PIN_COUNT_LOW = 0x10000
    USER_PIN_FINAL_TRY = 0x20000
    USER_PIN_LOCKED = 0x40000
    USER_PIN_TO_BE_CHANGED = 0x80000
    SO_PIN_COUNT_LOW = 0x100000
    SO_PIN_FINAL_TRY = 0x200000
    SO_PIN_LOCKED = 0x400000
    SO_PIN_TO_BE_CHANGED = 0x800000
    ERROR_STATE = 0x1000000


HW_SLOT: Final = 0x4
"""Flag of CK_SLOT_INFO: the slot is a hardware slot."""


def flag_names(flags: int, kind: type[enum.IntFlag]) -> str:
    """The names of the flags that are set, and what is left over in hexadecimal."""
    names = [str(each.name) for each in kind if flags & each]
    rest = flags & ~sum(kind)
    return ", ".join(names + ([f"{rest:#x}"] if rest else [])) or "none"


def boolean(value: bool) -> bytes:
    """CK_BBOOL."""
    return b"\1" if value else b"\0"


def number(value: int) -> bytes:
    """CK_ULONG."""
    return int(value).to_bytes(ULONG_BYTES, sys.byteorder)


def numbers_in(value: bytes) -> list[int]:
    """An array of CK_ULONG."""
    parts = [value[i : i + ULONG_BYTES] for i in range(0, len(value), ULONG_BYTES)]
    return [int.from_bytes(part, sys.byteorder) for part in parts]


def code(failed: Failed) -> str:
    """The return code as the standard spells it; a word of the worker's own stays as it is."""
    rule = failures.BY_WORD.get(failed.ckr)
    if rule:
        return rule.name
    return f"CKR {failed.text}" if failed.ckr == failures.UNKNOWN and failed.text else failed.ckr
