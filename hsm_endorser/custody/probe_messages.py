"""What the audit and its probe worker say to each other: thin requests, one for each function of PKCS#11.

Attributes, mechanisms and flags are the standard's numbers, values are the standard's bytes: nothing between here and
the module understands them, so nothing can leave one out. Objects have numbers that the worker gives; one object keeps
its number. A refusal is a `Failed` with the return code's name, never an exception.
"""

import msgspec

from hsm_endorser.worker_messages import Failed, Open

Template = dict[int, bytes]
"""Attribute → value, as in CK_ATTRIBUTE."""


class Mechanism(msgspec.Struct, frozen=True):
    """A mechanism and its parameter; `pointed` are byte strings whose addresses the parameter holds.

    Where the parameter has a pointer, `parameter` has zeros, and `pointed` says at which offset which bytes belong.
    """

    number: int
    parameter: bytes | None = None
    pointed: dict[int, bytes] = {}


class TokenInfo(msgspec.Struct, frozen=True, tag=True):
    """C_GetInfo, C_GetSlotInfo and C_GetTokenInfo."""

    manufacturer: str
    model: str
    serial: str
    label: str
    flags: int
    hardware: tuple[int, int]
    firmware: tuple[int, int]
    slot: int
    slot_description: str
    slot_manufacturer: str
    slot_flags: int
    library: str
    library_manufacturer: str
    library_version: tuple[int, int]
    cryptoki: tuple[int, int]


class Login(msgspec.Struct, frozen=True, tag=True):
    """C_Login with the PIN that `Open` named. A refused PIN is never given again by this worker."""


class Logout(msgspec.Struct, frozen=True, tag=True):
    """C_Logout. The sessions stay open."""


class OpenSession(msgspec.Struct, frozen=True, tag=True):
    """C_OpenSession: one more session, read/write."""

    writable: bool = True


class CloseSession(msgspec.Struct, frozen=True, tag=True):
    """C_CloseSession."""

    session: int


class ListMechanisms(msgspec.Struct, frozen=True, tag=True):
    """C_GetMechanismList, and C_GetMechanismInfo of each."""


class Find(msgspec.Struct, frozen=True, tag=True):
    """C_FindObjects: all objects that match."""

    template: Template = {}
    session: int = 0


class Read(msgspec.Struct, frozen=True, tag=True):
    """C_GetAttributeValue of one attribute. Without `keep`, the value is forgotten at once, and its length is told."""

    object: int
    attribute: int
    keep: bool = True


class ReadMany(msgspec.Struct, frozen=True, tag=True):
    """One C_GetAttributeValue for each attribute: an answer each."""

    object: int
    attributes: list[int]


class Write(msgspec.Struct, frozen=True, tag=True):
    """C_SetAttributeValue of one attribute."""

    object: int
    attribute: int
    value: bytes


class Copy(msgspec.Struct, frozen=True, tag=True):
    """C_CopyObject."""

    object: int
    template: Template


class Create(msgspec.Struct, frozen=True, tag=True):
    """C_CreateObject."""

    template: Template


class Destroy(msgspec.Struct, frozen=True, tag=True):
    """C_DestroyObject."""

    object: int


class GenerateKey(msgspec.Struct, frozen=True, tag=True):
    """C_GenerateKey."""

    mechanism: Mechanism
    template: Template


class GeneratePair(msgspec.Struct, frozen=True, tag=True):
    """C_GenerateKeyPair."""

    mechanism: Mechanism
    public: Template
    private: Template


class Wrap(msgspec.Struct, frozen=True, tag=True):
    """C_WrapKey. Without `keep`, what came out is forgotten at once, and only its length is told."""

    mechanism: Mechanism
    wrapping: int
    key: int
    keep: bool = True


class Unwrap(msgspec.Struct, frozen=True, tag=True):
    """C_UnwrapKey."""

    mechanism: Mechanism
    unwrapping: int
    wrapped: bytes
    template: Template


class Derive(msgspec.Struct, frozen=True, tag=True):
    """C_DeriveKey."""

    mechanism: Mechanism
    key: int
    template: Template


class Encrypt(msgspec.Struct, frozen=True, tag=True):
    """C_Encrypt."""

    mechanism: Mechanism
    key: int
    data: bytes


class Decrypt(msgspec.Struct, frozen=True, tag=True):
    """C_Decrypt."""

    mechanism: Mechanism
    key: int
    data: bytes


class SignEach(msgspec.Struct, frozen=True, tag=True):
    """C_SignInit and C_Sign for each input; the first failure is the answer. Lengths are nobody's concern here."""

    mechanism: Mechanism
    key: int
    inputs: list[bytes]
    session: int = 0


class BeginSign(msgspec.Struct, frozen=True, tag=True):
    """C_SignInit alone."""

    mechanism: Mechanism
    key: int
    session: int = 0


class FinishSign(msgspec.Struct, frozen=True, tag=True):
    """C_Sign after `BeginSign`."""

    input: bytes
    session: int = 0


class Random(msgspec.Struct, frozen=True, tag=True):
    """C_GenerateRandom."""

    length: int


ProbeRequest = (
    Open
    | Login
    | Logout
    | OpenSession
    | CloseSession
    | ListMechanisms
    | Find
    | Read
    | ReadMany
    | Write
    | Copy
    | Create
    | Destroy
    | GenerateKey
    | GeneratePair
    | Wrap
    | Unwrap
    | Derive
    | Encrypt
    | Decrypt
    | SignEach
    | BeginSign
    | FinishSign
    | Random
)
"""`Open` loads the module and finds the token; unlike the token worker's it does not log in."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """CKR_OK, and nothing to tell."""


class Number(msgspec.Struct, frozen=True, tag=True):
    """CKR_OK: the number of a session or an object, or a length."""

    number: int


class Numbers(msgspec.Struct, frozen=True, tag=True):
    """CKR_OK: objects; of a pair the public one first."""

    numbers: list[int]


class Bytes(msgspec.Struct, frozen=True, tag=True):
    """CKR_OK: what came out."""

    value: bytes


class Several(msgspec.Struct, frozen=True, tag=True):
    """CKR_OK: the outputs in the order of the inputs."""

    values: list[bytes]


class Attributes(msgspec.Struct, frozen=True, tag=True):
    """An answer for each attribute, in the order in which they were asked for."""

    answers: list[Bytes | Failed]


class MechanismInfo(msgspec.Struct, frozen=True):
    """A mechanism that the token offers. `name` is hexadecimal where the standard has none; `info` may be missing."""

    number: int
    name: str
    least: int
    most: int
    flags: int
    trouble: str = ""


class Mechanisms(msgspec.Struct, frozen=True, tag=True):
    """What C_GetMechanismList gave."""

    mechanisms: list[MechanismInfo]


ProbeReply = TokenInfo | Done | Number | Numbers | Bytes | Several | Attributes | Mechanisms | Failed


class NumberedProbe(msgspec.Struct, frozen=True, array_like=True):
    """A request and its number."""

    number: int
    request: ProbeRequest


class NumberedFinding(msgspec.Struct, frozen=True, array_like=True):
    """A reply and the number of its request."""

    number: int
    reply: ProbeReply
