"""The probe worker and its client: the module's own answers, a deadline on each, and the PIN given once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from hsm_endorser.custody.cryptoki import Attribute, Mechanisms, boolean, code, number
from hsm_endorser.custody.errors import ProbeLostError, ProbeRefusedError
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_messages import (
    Attributes,
    BeginSign,
    Bytes,
    Create,
    Destroy,
    Done,
    Find,
    FinishSign,
    ListMechanisms,
    Login,
    Logout,
    Mechanism,
    Number,
    Numbers,
    OpenSession,
    Read,
    ReadMany,
    Several,
    SignEach,
)
from hsm_endorser.custody.probe_messages import Mechanisms as Offered
from hsm_endorser.errors import PinFileError
from hsm_endorser.worker_messages import Failed, Pin
from tests.hsm_endorser.custody_planting import Planter
from tests.hsm_endorser.device_world import SoftToken

A = Attribute
ECDSA = Mechanism(Mechanisms.ECDSA)
WRONG = Pin("not this one")


@pytest.fixture
async def probe(token: SoftToken) -> AsyncIterator[Probe]:
    """A probe that is logged in to an empty token."""
    async with Probe.open(token.config) as probe:
        await probe.start()
        await probe.login()
        yield probe


async def value(probe: Probe, number_: int, attribute: Attribute) -> Bytes | Failed:
    """One attribute."""
    return expect(await probe.call(Read(number_, attribute)), Bytes)


async def test_unsupported_is_not_false(probe: Probe) -> None:
    """An attribute that is false comes as a byte, one that the object does not have as its return code."""
    public, private = await Planter(probe).ec("key")
    assert await value(probe, private, A.DERIVE) == Bytes(b"\0")
    assert await value(probe, public, A.SENSITIVE) == Failed("AttributeTypeInvalid", "")
    assert await value(probe, private, A.VALUE) == Failed("AttributeSensitive", "")
    many = await probe.call(ReadMany(private, [A.DERIVE, A.VALUE]))
    assert many == Attributes([Bytes(b"\0"), Failed("AttributeSensitive", "")])


async def test_return_codes_carry_the_names_of_the_standard(probe: Probe) -> None:
    """Those for which the binding has no exception, too."""
    _, private = await Planter(probe).ec("key")
    refused = await probe.call(Destroy(private))
    assert isinstance(refused, Failed)
    assert code(refused) == "CKR_ACTION_PROHIBITED"


async def test_a_value_that_is_not_kept_stays_in_the_worker(probe: Probe) -> None:
    """Its length comes, and nothing of it."""
    public, _ = await Planter(probe).ec("key")
    assert await probe.call(Read(public, A.EC_POINT, keep=False)) == Number(67)


async def test_an_object_keeps_its_number(probe: Probe) -> None:
    """Found again, it has the number that it had when it was made; a destroyed one's is not given again."""
    public, private = await Planter(probe).ec("key", private={A.DESTROYABLE: True})
    assert await probe.call(Find()) == Numbers(sorted([public, private]))
    assert await probe.call(Destroy(private)) == Done()
    assert await probe.call(Read(private, A.LABEL)) == Failed("NoSuchObject", f"there is no object {private}")
    _, other = await Planter(probe).ec("another")
    assert other not in {public, private}


async def test_any_bytes_make_a_template(probe: Probe) -> None:
    """A value that is no value of its attribute is the module's to refuse: nothing is packed on the way."""
    refused = await probe.call(Create({A.CLASS: b"\xff" * 3, A.LABEL: b"\xed\xa0\x80", A.TOKEN: b""}))
    assert isinstance(refused, Failed)
    assert refused.ckr in {"AttributeValueInvalid", "TemplateIncomplete", "TemplateInconsistent"}
    assert await probe.call(Find()) == Numbers([])


@pytest.mark.requirement("K-3")
async def test_a_signature_can_be_begun_and_ended_by_itself(probe: Probe) -> None:
    """So that a logout can come between: SoftHSM ends what was begun before it, and begins nothing after it."""
    _, private = await Planter(probe).ec("key")
    assert await probe.call(BeginSign(ECDSA, private)) == Done()
    assert await probe.call(Logout()) == Done()
    assert isinstance(await probe.call(FinishSign(bytes(32))), Bytes)
    assert isinstance(await probe.call(SignEach(ECDSA, private, [bytes(32)])), Failed)


async def test_sessions_are_separate(probe: Probe) -> None:
    """Two signatures under way in two sessions of one worker."""
    _, private = await Planter(probe).ec("key")
    second = await probe.call(OpenSession())
    assert isinstance(second, Number)
    for session in (0, second.number):
        assert await probe.call(BeginSign(ECDSA, private, session)) == Done()
    for session in (second.number, 0):
        assert isinstance(await probe.call(FinishSign(bytes(32), session)), Bytes)


async def test_lengths_are_nobodys_concern(probe: Probe) -> None:
    """What the token worker refuses, the probe worker passes on."""
    _, private = await Planter(probe).ec("key")
    signed = await probe.call(SignEach(ECDSA, private, [b"", bytes(20), bytes(64)]))
    assert isinstance(signed, Several)
    assert [len(each) for each in signed.values] == [64, 64, 64]


async def test_mechanisms_are_listed_with_their_flags(probe: Probe) -> None:
    """By the standard's names, a vendor's own by their numbers."""
    offered = await probe.call(ListMechanisms())
    assert isinstance(offered, Offered)
    named = {each.name: each for each in offered.mechanisms}
    assert named["ECDSA"].flags & 0x800
    assert not named["AES_GCM"].flags & 0x20000, "SoftHSM adds flags to the memory that it is given"
    assert not [name for name in named if name.startswith("_")]


@pytest.mark.requirement("S-6")
async def test_a_refused_pin_is_never_given_again(token: SoftToken) -> None:
    """Not by the same worker, and not by the next one of the same probe."""
    async with Probe.open(token.config, pin=WRONG) as probe:
        await probe.start()
        with pytest.raises(ProbeRefusedError, match="PinIncorrect"):
            await probe.login()
        assert await probe.call(Login()) == Failed("PinRefused", "the token refused this PIN; it is not given again")
        await probe.start()
        calls = probe.calls
        with pytest.raises(ProbeRefusedError, match="it is not given again"):
            await probe.login()
        assert probe.calls == calls


async def test_a_missing_pin_file_is_no_login(token: SoftToken) -> None:
    """It is said which file, and the token is not asked."""
    (token.folder / "pin").unlink()
    async with Probe.open(token.config) as probe:
        await probe.start()
        with pytest.raises(PinFileError, match="pin cannot be opened"):
            await probe.login()


async def test_a_worker_that_hangs_is_killed(probe: Probe) -> None:
    """The caller has an error after its deadline, the process is gone, and a new one takes over."""
    pid = probe.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProbeLostError, match="did not answer within"):
        await probe.call(Find(), 0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await probe.start()
    await probe.login()
    assert await probe.call(Find()) == Numbers([])


async def test_a_cancelled_call_ends_the_worker(probe: Probe) -> None:
    """Nobody waits for what it was doing."""
    pid = probe.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.create_task(probe.call(Find()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_session_objects_end_with_the_worker(probe: Probe) -> None:
    """What an audit makes is gone with it, even when it could not be destroyed."""
    _, private = await Planter(probe).ec("key", private={A.TOKEN: False}, public={A.TOKEN: False})
    assert isinstance(await probe.call(Destroy(private)), Failed)
    await probe.start()
    await probe.login()
    assert await probe.call(Find()) == Numbers([])


def test_values_have_their_bytes() -> None:
    """CK_BBOOL and CK_ULONG."""
    assert (boolean(True), boolean(False), number(0x1041)) == (b"\1", b"\0", b"\x41\x10" + bytes(6))
