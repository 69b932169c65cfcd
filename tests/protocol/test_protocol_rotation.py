"""The announcement of a new key: both keys sign these bytes, each once, and nobody else (requirement K-12)."""

from typing import Any

import msgspec
import pytest

from protocol import canonical, rotation
from protocol.envelope import Envelope
from protocol.errors import BadSignatureError, MalformedError, ProtocolError, UnacceptableKeyError
from protocol.rotation import Announcement
from tests import software_keys
from tests.software_keys import SoftwareKey

OLD, NEW, OTHER = (software_keys.ecdsa(f"rotation {name}") for name in ("old", "new", "other"))
ANNOUNCEMENT = Announcement("test", "node/A", OLD.id, NEW.spki, "device-a", 7, 5, 1000, 2000)


def announced(*signers: SoftwareKey, **changed: Any) -> Envelope:
    """The announcement with fields replaced, signed by these keys."""
    payload = canonical.encode(msgspec.structs.replace(ANNOUNCEMENT, **changed))
    return software_keys.envelope(rotation.PAYLOAD_TYPE, payload, list(signers))


@pytest.mark.requirement("K-12")
@pytest.mark.parametrize("new", [NEW, software_keys.ed25519_key("new"), software_keys.rsa_key("new")])
@pytest.mark.parametrize("turned", [False, True])
def test_both_keys_sign(new: SoftwareKey, turned: bool) -> None:
    """Signed by the old key and the new one, of whatever kind and in whatever order, it holds."""
    signers = [new, OLD] if turned else [OLD, new]
    assert rotation.verify(announced(*signers, new=new.spki), OLD.public).new == new.spki


@pytest.mark.requirement("K-12")
@pytest.mark.parametrize(
    ("signers", "why"),
    [
        ([], "not signed by the old key and the new one"),
        ([OLD], "not signed by the old key and the new one"),
        ([NEW], "not signed by the old key and the new one"),
        ([OLD, OLD], "not signed by the old key and the new one"),
        ([OLD, OTHER], "not signed by the old key and the new one"),
        ([NEW, OTHER], "not signed by the old key and the new one"),
        ([OLD, NEW, OTHER], "not signed by the old key and the new one"),
        ([OLD, NEW, NEW], "not signed by the old key and the new one"),
    ],
)
def test_others_do_not(signers: list[SoftwareKey], why: str) -> None:
    """One of them alone, a stranger, or one more than these two is refused."""
    with pytest.raises(BadSignatureError, match=why):
        rotation.verify(announced(*signers), OLD.public)


@pytest.mark.requirement("K-12")
def test_it_replaces_this_key() -> None:
    """An announcement by another key than the one in force is refused, be it well signed."""
    with pytest.raises(BadSignatureError, match="in force is"):
        rotation.verify(announced(OLD, NEW), OTHER.public)


@pytest.mark.requirement("K-12")
def test_no_byte_can_be_changed() -> None:
    """Each field is under both signatures."""
    good = announced(OLD, NEW)
    for field, value in (("since", 8), ("overlap", 6), ("holder", "node/B"), ("until", 2001), ("device", "device-b")):
        other = announced(OLD, NEW, **{field: value})
        with pytest.raises(BadSignatureError):
            rotation.verify(msgspec.structs.replace(good, payload=other.payload), OLD.public)
        assert rotation.digest_of(other) != rotation.digest_of(good)


@pytest.mark.requirement("K-12")
def test_one_signature_for_one_key() -> None:
    """Who keeps the key signs once."""
    kept = announced(OLD, new=OLD.spki)
    assert rotation.verify(kept, OLD.public).new == OLD.spki
    with pytest.raises(BadSignatureError):
        rotation.verify(announced(OLD, OLD, new=OLD.spki), OLD.public)


@pytest.mark.parametrize(
    "changed",
    [
        {"holder": "device/device-a"},
        {"holder": "policy/assets"},
        {"holder": "node/"},
        {"holder": "node/A/B"},
        {"overlap": -1},
        {"overlap": rotation.MOST_OVERLAP + 1},
        {"since": -1},
        {"since": 2**53},
        {"version": 2},
        {"old": "ab"},
        {"network": ""},
    ],
)
def test_its_form(changed: dict[str, Any]) -> None:
    """What names no holder, no height or no key is no announcement."""
    with pytest.raises(MalformedError):
        rotation.decode(announced(OLD, NEW, **changed))


def test_not_of_another_type() -> None:
    """The same bytes under another payload type are nothing."""
    with pytest.raises(MalformedError, match="payload type"):
        rotation.decode(msgspec.structs.replace(announced(OLD, NEW), payload_type="application/json"))


@pytest.mark.requirement("E-18")
def test_an_unacceptable_key() -> None:
    """A new key that nobody may register is refused before any signature is looked at."""
    with pytest.raises(UnacceptableKeyError) as caught:
        rotation.verify(announced(OLD, NEW, new=NEW.spki[:-1] + b"\x00"), OLD.public)
    assert isinstance(caught.value, ProtocolError)
