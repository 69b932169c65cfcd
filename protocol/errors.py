"""The error family of this room: what was expected and what came."""

from typing import ClassVar


class ProtocolError(Exception):
    """Bytes that do not say what they must. `code` is stable; the message is for people."""

    code: ClassVar[str] = "protocol-error"


class MalformedError(ProtocolError):
    """The bytes are no canonical value of the type that was asked for."""

    code = "malformed"


class LimitExceededError(MalformedError):
    """The bytes are larger, deeper or longer than the protocol allows."""

    code = "limit-exceeded"


class UnacceptableKeyError(ProtocolError):
    """A public key that no party may register: weak, not canonical, or of an unknown kind."""

    code = "unacceptable-key"


class BadSignatureError(ProtocolError):
    """A signature that does not verify, or that is not in its canonical form."""

    code = "bad-signature"


class BadProofError(ProtocolError):
    """An inclusion proof that does not lead to the root it claims."""

    code = "bad-proof"


class PolicySyntaxError(ProtocolError):
    """An endorsement policy that cannot be parsed; the message points at the place."""

    code = "policy-syntax"


class BadTranscriptError(ProtocolError):
    """A step of a ceremony's transcript that does not hold; `step` is its number, from 1. No service answers it."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step
