"""What a device does about every return code of PKCS#11 v3.1: the table, and nothing else.

`docs/token-failures.md` is generated from it (`scripts/token_failures.py`).

    retry        the session is sound: the same call once more on it, then the caller is told
    new worker   the state inside the module is not to be trusted: kill the worker, start another, log in once, prove
                 the enrolled identity, go on; the call that met it fails
    quarantine   the token or its module is not what was enrolled, or broken: nothing is signed until an operator acts
    stop         never repeated by itself: a person must change something first. While the token is being opened this
                 takes the token out of service (no further login); later it refuses the one call that met it
"""

import enum
from typing import Final, Literal

import msgspec


class Reaction(enum.Enum):
    """What is done about a failure."""

    RETRY = "retry"
    NEW_WORKER = "new worker"
    QUARANTINE = "quarantine"
    STOP = "stop"


class Rule(msgspec.Struct, frozen=True):
    """One return code: its number, its name in the standard, what is done, and why."""

    number: int
    name: str
    reaction: Reaction
    why: str

    @property
    def word(self) -> str:
        """The short name in messages and metrics: `CKR_PIN_LOCKED` is PinLocked."""
        return _SPELLED.get(self.name) or "".join(part.capitalize() for part in self.name.split("_")[1:])


Phase = Literal["opening", "in use"]
"""`opening`: C_Initialize to C_Login and the proof of the identity; `in use`: every call after that."""

R, W, Q, S = Reaction.RETRY, Reaction.NEW_WORKER, Reaction.QUARANTINE, Reaction.STOP

_SPELLED: Final = {
    "CKR_FUNCTION_CANCELED": "FunctionCancelled",
    "CKR_RANDOM_NO_RNG": "RandomNoRNG",
    "CKR_SESSION_READ_WRITE_SO_EXISTS": "SessionReadWriteSOExists",
    "CKR_SLOT_ID_INVALID": "SlotIDInvalid",
    "CKR_TOKEN_NOT_RECOGNIZED": "TokenNotRecognised",
    "CKR_USER_ANOTHER_ALREADY_LOGGED_IN": "AnotherUserAlreadyLoggedIn",
}
"""Words of the binding that differ from the standard's names."""

_PIN: Final = "tokens lock themselves after a few wrong PINs: it is never given again until an operator acts"
_LOST: Final = "what the session held is gone or stale; a stale handle can come to mean another key"
_DEVICE: Final = "the token is away, restarting or broken; a fresh start with a proof of the identity tells which"
_MODULE: Final = "the module is confused; only a fresh process is certain"
_THIS_CALL: Final = "the token does not do what was asked, and will not the next time either"
_SETTING: Final = "the module does not work on this machine or with this configuration"
_SHORT: Final = "something was short for the moment; nothing was done, the session goes on"
_ODD: Final = "no answer to any call that the device makes: the module is confused; only a fresh process is certain"

RULES: Final = (
    Rule(0x001, "CKR_CANCEL", R, "the function was cancelled before it did anything"),
    Rule(0x002, "CKR_HOST_MEMORY", W, "this process is short of memory; a fresh one starts with none used"),
    Rule(0x003, "CKR_SLOT_ID_INVALID", W, "slots were renumbered; the token is looked for anew"),
    Rule(0x005, "CKR_GENERAL_ERROR", W, "the standard says that the module may be in an inconsistent state"),
    Rule(0x006, "CKR_FUNCTION_FAILED", R, "the standard says that the same call may succeed when made again"),
    Rule(0x007, "CKR_ARGUMENTS_BAD", S, "the module wants other arguments (NSS: parameters at C_Initialize)"),
    Rule(0x008, "CKR_NO_EVENT", W, _ODD),
    Rule(0x009, "CKR_NEED_TO_CREATE_THREADS", S, _SETTING),
    Rule(0x00A, "CKR_CANT_LOCK", S, _SETTING),
    Rule(0x010, "CKR_ATTRIBUTE_READ_ONLY", S, _THIS_CALL),
    Rule(0x011, "CKR_ATTRIBUTE_SENSITIVE", S, _THIS_CALL),
    Rule(0x012, "CKR_ATTRIBUTE_TYPE_INVALID", S, _THIS_CALL),
    Rule(0x013, "CKR_ATTRIBUTE_VALUE_INVALID", S, _THIS_CALL),
    Rule(0x01A, "CKR_COPY_PROHIBITED", S, _THIS_CALL),
    Rule(0x01B, "CKR_ACTION_PROHIBITED", S, _THIS_CALL),
    Rule(0x020, "CKR_DATA_INVALID", S, _THIS_CALL),
    Rule(0x021, "CKR_DATA_LEN_RANGE", S, _THIS_CALL),
    Rule(0x030, "CKR_DEVICE_ERROR", W, _DEVICE),
    Rule(0x031, "CKR_DEVICE_MEMORY", R, _SHORT),
    Rule(0x032, "CKR_DEVICE_REMOVED", W, _DEVICE),
    Rule(0x040, "CKR_ENCRYPTED_DATA_INVALID", W, _ODD),
    Rule(0x041, "CKR_ENCRYPTED_DATA_LEN_RANGE", W, _ODD),
    Rule(0x042, "CKR_AEAD_DECRYPT_FAILED", W, _ODD),
    Rule(0x050, "CKR_FUNCTION_CANCELED", R, "the function was cancelled before it did anything"),
    Rule(0x051, "CKR_FUNCTION_NOT_PARALLEL", W, _ODD),
    Rule(0x054, "CKR_FUNCTION_NOT_SUPPORTED", S, _THIS_CALL),
    Rule(0x060, "CKR_KEY_HANDLE_INVALID", W, _LOST),
    Rule(0x062, "CKR_KEY_SIZE_RANGE", S, _THIS_CALL),
    Rule(0x063, "CKR_KEY_TYPE_INCONSISTENT", W, "the handle means another kind of key than it did: it is stale"),
    Rule(0x064, "CKR_KEY_NOT_NEEDED", W, _ODD),
    Rule(0x065, "CKR_KEY_CHANGED", Q, "the token itself says that the key is not the same as before"),
    Rule(0x066, "CKR_KEY_NEEDED", W, _ODD),
    Rule(0x067, "CKR_KEY_INDIGESTIBLE", W, _ODD),
    Rule(0x068, "CKR_KEY_FUNCTION_NOT_PERMITTED", S, "the key may not do this"),
    Rule(0x069, "CKR_KEY_NOT_WRAPPABLE", S, _THIS_CALL),
    Rule(0x06A, "CKR_KEY_UNEXTRACTABLE", S, _THIS_CALL),
    Rule(0x070, "CKR_MECHANISM_INVALID", S, _THIS_CALL),
    Rule(0x071, "CKR_MECHANISM_PARAM_INVALID", S, _THIS_CALL),
    Rule(0x082, "CKR_OBJECT_HANDLE_INVALID", W, _LOST),
    Rule(0x090, "CKR_OPERATION_ACTIVE", W, "an operation was left open: its end could be taken for another one's"),
    Rule(0x091, "CKR_OPERATION_NOT_INITIALIZED", W, _LOST),
    Rule(0x0A0, "CKR_PIN_INCORRECT", S, _PIN),
    Rule(0x0A1, "CKR_PIN_INVALID", S, _PIN),
    Rule(0x0A2, "CKR_PIN_LEN_RANGE", S, _PIN),
    Rule(0x0A3, "CKR_PIN_EXPIRED", S, "the PIN must be changed by an operator"),
    Rule(0x0A4, "CKR_PIN_LOCKED", S, "the token's security officer must unlock it"),
    Rule(0x0B0, "CKR_SESSION_CLOSED", W, _LOST),
    Rule(0x0B1, "CKR_SESSION_COUNT", R, _SHORT),
    Rule(0x0B3, "CKR_SESSION_HANDLE_INVALID", W, _LOST),
    Rule(0x0B4, "CKR_SESSION_PARALLEL_NOT_SUPPORTED", W, _ODD),
    Rule(0x0B5, "CKR_SESSION_READ_ONLY", S, "the token does not let this session write"),
    Rule(0x0B6, "CKR_SESSION_EXISTS", W, _MODULE),
    Rule(0x0B7, "CKR_SESSION_READ_ONLY_EXISTS", W, _MODULE),
    Rule(0x0B8, "CKR_SESSION_READ_WRITE_SO_EXISTS", W, "the security officer is at work on the token; later again"),
    Rule(0x0C0, "CKR_SIGNATURE_INVALID", W, _ODD),
    Rule(0x0C1, "CKR_SIGNATURE_LEN_RANGE", W, _ODD),
    Rule(0x0D0, "CKR_TEMPLATE_INCOMPLETE", S, _THIS_CALL),
    Rule(0x0D1, "CKR_TEMPLATE_INCONSISTENT", S, _THIS_CALL),
    Rule(0x0E0, "CKR_TOKEN_NOT_PRESENT", W, _DEVICE),
    Rule(0x0E1, "CKR_TOKEN_NOT_RECOGNIZED", W, _DEVICE),
    Rule(0x0E2, "CKR_TOKEN_WRITE_PROTECTED", S, "no key can be made on this token"),
    Rule(0x0F0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", W, _ODD),
    Rule(0x0F1, "CKR_UNWRAPPING_KEY_SIZE_RANGE", W, _ODD),
    Rule(0x0F2, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", W, _ODD),
    Rule(0x100, "CKR_USER_ALREADY_LOGGED_IN", W, _MODULE),
    Rule(0x101, "CKR_USER_NOT_LOGGED_IN", W, "the token was reset and has forgotten the login"),
    Rule(0x102, "CKR_USER_PIN_NOT_INITIALIZED", S, "the token has no PIN yet; its security officer must set one"),
    Rule(0x103, "CKR_USER_TYPE_INVALID", S, _SETTING),
    Rule(0x104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", W, "somebody else is at work on the token; later again"),
    Rule(0x105, "CKR_USER_TOO_MANY_TYPES", W, "somebody else is at work on the token; later again"),
    Rule(0x110, "CKR_WRAPPED_KEY_INVALID", W, _ODD),
    Rule(0x112, "CKR_WRAPPED_KEY_LEN_RANGE", W, _ODD),
    Rule(0x113, "CKR_WRAPPING_KEY_HANDLE_INVALID", W, _ODD),
    Rule(0x114, "CKR_WRAPPING_KEY_SIZE_RANGE", W, _ODD),
    Rule(0x115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", W, _ODD),
    Rule(0x120, "CKR_RANDOM_SEED_NOT_SUPPORTED", W, _ODD),
    Rule(0x121, "CKR_RANDOM_NO_RNG", S, "a token without a random number generator makes no keys"),
    Rule(0x130, "CKR_DOMAIN_PARAMS_INVALID", S, _THIS_CALL),
    Rule(0x140, "CKR_CURVE_NOT_SUPPORTED", S, _THIS_CALL),
    Rule(0x150, "CKR_BUFFER_TOO_SMALL", W, "the length of a signature is not what the module said before"),
    Rule(0x160, "CKR_SAVED_STATE_INVALID", W, _ODD),
    Rule(0x170, "CKR_INFORMATION_SENSITIVE", S, _THIS_CALL),
    Rule(0x180, "CKR_STATE_UNSAVEABLE", W, _ODD),
    Rule(0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", W, _LOST),
    Rule(0x191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", W, _MODULE),
    Rule(0x1A0, "CKR_MUTEX_BAD", W, _MODULE),
    Rule(0x1A1, "CKR_MUTEX_NOT_LOCKED", W, _MODULE),
    Rule(0x1B0, "CKR_NEW_PIN_MODE", S, "the PIN must be changed by an operator"),
    Rule(0x1B1, "CKR_NEXT_OTP", S, "the token wants a one-time password, which only a person has"),
    Rule(0x1B5, "CKR_EXCEEDED_MAX_ITERATIONS", R, "bad luck in the search for a prime; the next search finds one"),
    Rule(0x1B6, "CKR_FIPS_SELF_TEST_FAILED", Q, "the token found itself broken; no signature of its is to be trusted"),
    Rule(0x1B7, "CKR_LIBRARY_LOAD_FAILED", S, _SETTING),
    Rule(0x1B8, "CKR_PIN_TOO_WEAK", S, "the PIN must be changed by an operator"),
    Rule(0x1B9, "CKR_PUBLIC_KEY_INVALID", S, _THIS_CALL),
    Rule(0x200, "CKR_FUNCTION_REJECTED", S, "a person at the token said no"),
    Rule(0x201, "CKR_TOKEN_RESOURCE_EXCEEDED", R, _SHORT),
    Rule(0x202, "CKR_OPERATION_CANCEL_FAILED", W, "an operation was left open: its end could be taken for another's"),
    Rule(0x203, "CKR_KEY_EXHAUSTED", S, "the key has made all the signatures that it may make"),
)
"""Every code but CKR_OK."""

UNKNOWN: Final = "UnknownCode"
"""The word for a vendor's own code, and for one that no version of the standard has."""

WORKER_WORDS: Final[dict[str, tuple[Reaction, str]]] = {
    "AlreadyOpen": (W, "a worker logs in once"),
    "AmbiguousKey": (S, "two keys share an id; one of them may be planted"),
    "AmbiguousToken": (S, "more than one token matches the URI: add serial= to it"),
    "BadLabel": (S, "the label of a key is no printable text"),
    "BadPublicKey": (S, "the public key of a new pair is none"),
    "BadSignature": (Q, "a signature does not verify under the key's enrolled public key"),
    "DuplicateKey": (S, "a key with this id is there already"),
    "InputLength": (S, "only SHA-256 digests are signed"),
    "Locked": (S, "nobody has entered the PIN since the start: hsm-endorser device unlock"),
    "NoModule": (W, "the PKCS#11 module cannot be read"),
    "NoSuchKey": (S, "the key is not in this session"),
    "NoSuchToken": (W, "no token matches the URI at the moment; no login is tried"),
    "NotOpen": (W, "the worker has no session"),
    "OddAnswer": (Q, "the worker answered something else than what it was asked"),
    "PinFile": (W, "the PIN file is missing or readable by others; no login is tried"),
    "TemplateIgnored": (S, "the new key has other attributes than were asked for; it is not used"),
    "TokenSwapped": (Q, "another token of the same name is in the reader"),
    "UnknownScheme": (S, "the key is neither ECDSA P-256 nor RSA nor Ed25519"),
    "WorkerError": (W, "the binding failed in a way that has no code"),
}
"""What the worker itself says, besides the standard's codes."""

BY_NUMBER: Final = {rule.number: rule for rule in RULES}
BY_WORD: Final = {rule.word: rule for rule in RULES}
PIN_WORDS: Final = frozenset(rule.word for rule in RULES if "_PIN_" in rule.name or rule.name == "CKR_NEXT_OTP")
"""Refusals of a login. No login follows one, whatever call it met, until an operator acts."""


def reaction(word: str, phase: Phase) -> Reaction:
    """What is done about a failure that the worker named so.

    A code that the standard does not know may be a vendor's "wrong PIN": while the token is being opened it stops.
    """
    if rule := BY_WORD.get(word):
        return rule.reaction
    if word in WORKER_WORDS:
        return WORKER_WORDS[word][0]
    return Reaction.STOP if phase == "opening" else Reaction.NEW_WORKER


def why(word: str) -> str:
    """The reason beside the reaction, for logs."""
    if rule := BY_WORD.get(word):
        return rule.why
    return WORKER_WORDS[word][1] if word in WORKER_WORDS else "a code that the standard does not have"
