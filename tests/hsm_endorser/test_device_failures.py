"""What a device does about each failure of its token: the table, and one proof of each class with a bad module."""

import asyncio
import hashlib
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pkcs11.exceptions
import pytest
from prometheus_client import generate_latest

from hsm_endorser.errors import (
    PinRefusedError,
    TokenError,
    TokenQuarantinedError,
    TokenRefusedError,
    TokenStoppedError,
    TokenUnavailableError,
)
from hsm_endorser.failures import BY_WORD, PIN_WORDS, RULES, UNKNOWN, WORKER_WORDS, Reaction, reaction
from hsm_endorser.metrics import Metrics
from hsm_endorser.token import RETRIES, Pinned, Token
from hsm_endorser.token_key import TokenKey
from hsm_endorser.worker_messages import Failed, Sign
from scripts import token_failures
from tests.hsm_endorser.device_world import SoftToken, eventually, new_token
from tests.hsm_endorser.shimmed_token import Shimmed, shimmed, with_keys

DIGEST = hashlib.sha256(b"message").digest()
CKR = {rule.name.removeprefix("CKR_"): rule.number for rule in RULES}
VENDORS = 0x8000_0001


class Open(msgspec.Struct, frozen=True):
    """An open token behind the bad module."""

    shimmed: Shimmed
    token: Token
    pinned: Pinned
    node: TokenKey
    metrics: Metrics

    async def sign(self) -> bytes:
        """One signature by the node's key."""
        (signature,) = await self.token.sign(self.node.public_key.id, [DIGEST])
        return signature

    def logins(self) -> int:
        """C_Login calls so far."""
        return self.shimmed.control.calls("login")


@pytest.fixture
async def bad(tmp_path: Path) -> AsyncIterator[Open]:
    """A token that is open, pinned, and about to misbehave."""
    made = shimmed(tmp_path / "token")
    pinned, _, node = await with_keys(made)
    metrics = Metrics()
    token = await Token.start(made.config, pinned=pinned, metrics=metrics)
    yield Open(made, token, pinned, node, metrics)
    await token.close()


# --- the table -----------------------------------------------------------------------------------------------


def test_every_code_of_the_standard_has_one_place() -> None:
    """PKCS#11 v3.1, section 5.1: 98 codes besides CKR_OK and the vendors', each once, by number and by word."""
    assert len(RULES) == 98
    for field in ("number", "name", "word"):
        assert max(Counter(getattr(rule, field) for rule in RULES).values()) == 1
    assert {rule.reaction for rule in RULES} == set(Reaction)


def test_the_table_speaks_the_bindings_words() -> None:
    """Every error of the binding that stands for a return code is in the table under its name."""
    ours = {"PKCS11Error", "MultipleObjectsReturned", "MultipleTokensReturned", "NoSuchKey", "NoSuchToken"}
    words = {name for name, _ in inspect.getmembers(pkcs11.exceptions, inspect.isclass)} - ours
    assert words <= BY_WORD.keys()
    assert {"NoSuchKey", "NoSuchToken"} <= WORKER_WORDS.keys()


def test_a_code_that_nobody_knows_may_be_a_wrong_pin() -> None:
    """A vendor's own code stops while the token is being opened, and costs a worker later."""
    assert reaction(UNKNOWN, "opening") is Reaction.STOP
    assert reaction(UNKNOWN, "in use") is Reaction.NEW_WORKER
    assert {"PinIncorrect", "PinLocked"} <= PIN_WORDS
    assert {reaction(word, phase) for word in PIN_WORDS for phase in ("opening", "in use")} == {Reaction.STOP}


def test_the_page_is_current() -> None:
    """docs/token-failures.md is what the table says."""
    assert token_failures.PAGE.read_text(encoding="utf-8") == token_failures.page()


async def test_the_worker_names_every_code(bad: Open) -> None:
    """97 of the 98 codes, and a vendor's, returned by C_SignInit, reach the device under the table's words.

    The binding answers CKR_BUFFER_TOO_SMALL by itself: it asks again with more room.
    """
    worker = bad.token._worker
    assert worker is not None
    named = [(rule.number, rule.word) for rule in RULES if rule.name != "CKR_BUFFER_TOO_SMALL"]
    for number, word in [*named, (VENDORS, UNKNOWN)]:
        bad.shimmed.control.set("sign_init", "fail", code=number)
        reply = await worker.call(Sign(bad.node.handle, [DIGEST]), 5)
        assert isinstance(reply, Failed), hex(number)
        assert (type(reply), reply.ckr) == (Failed, word), hex(number)


# --- one proof of each class ---------------------------------------------------------------------------------


async def test_retry_asks_the_same_session_again(bad: Open) -> None:
    """CKR_FUNCTION_FAILED twice: the caller gets its signature, from the same worker, without another login."""
    worker, logins = bad.token.worker_pid, bad.logins()
    bad.shimmed.control.set("sign", "fail", code=CKR["FUNCTION_FAILED"], times=RETRIES)
    bad.node.public_key.verify(await bad.sign(), b"message", low_s=True)
    assert (bad.token.worker_pid, bad.logins()) == (worker, logins)


async def test_retry_has_an_end(bad: Open) -> None:
    """CKR_DEVICE_MEMORY for ever: the caller is told after three calls, and the worker stays."""
    worker, before = bad.token.worker_pid, bad.shimmed.control.calls("sign")
    bad.shimmed.control.set("sign", "fail", code=CKR["DEVICE_MEMORY"])
    with pytest.raises(TokenUnavailableError, match="DeviceMemory"):
        await bad.sign()
    assert bad.shimmed.control.calls("sign") == before + 1 + RETRIES
    bad.shimmed.control.behave()
    await bad.sign()
    assert bad.token.worker_pid == worker


@pytest.mark.requirement("K-9")
@pytest.mark.parametrize("code", ["DEVICE_ERROR", "SESSION_HANDLE_INVALID", "USER_NOT_LOGGED_IN", "GENERAL_ERROR"])
async def test_new_worker_logs_in_once(bad: Open, code: str) -> None:
    """The call fails with the token's reason; one login and one challenge later the token signs again."""
    worker, logins = bad.token.worker_pid, bad.logins()
    bad.shimmed.control.set("sign", "fail", code=CKR[code], times=1)
    with pytest.raises(TokenUnavailableError, match=BY_WORD_OF[code]):
        await bad.sign()
    await eventually(lambda: not bad.token.trouble, seconds=15)
    await bad.sign()
    assert bad.token.worker_pid != worker
    assert bad.logins() == logins + 1


@pytest.mark.requirement("K-9")
@pytest.mark.parametrize("code", ["KEY_CHANGED", "FIPS_SELF_TEST_FAILED"])
async def test_quarantine_signs_nothing_more(bad: Open, code: str) -> None:
    """The token is out of service: no signature and no login, whoever asks, in this process and the next."""
    bad.shimmed.control.set("sign", "fail", code=CKR[code], times=1)
    with pytest.raises(TokenQuarantinedError, match=BY_WORD_OF[code]):
        await bad.sign()
    await stays_out(bad, TokenQuarantinedError)


async def test_stop_refuses_the_call_and_no_more(bad: Open) -> None:
    """CKR_MECHANISM_INVALID in use: that call is refused with its code, and the next one is served."""
    worker = bad.token.worker_pid
    bad.shimmed.control.set("sign_init", "fail", code=CKR["MECHANISM_INVALID"], times=1)
    with pytest.raises(TokenRefusedError, match="MechanismInvalid"):
        await bad.sign()
    await bad.sign()
    assert bad.token.worker_pid == worker


@pytest.mark.requirement("S-6")
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (CKR["PIN_INCORRECT"], PinRefusedError),
        (CKR["PIN_LOCKED"], PinRefusedError),
        (CKR["PIN_EXPIRED"], PinRefusedError),
        (VENDORS, TokenStoppedError),
    ],
)
async def test_a_refused_pin_is_given_once(bad: Open, code: int, error: type[TokenError]) -> None:
    """After the refusal no login follows: not by waiting, not by asking, not by a new process."""
    logins = bad.logins()
    bad.shimmed.control.set("login", "fail", code=code)
    with pytest.raises(error, match="not tried again"):
        await bad.token.restart()
    assert bad.logins() == logins + 1
    await stays_out(bad, error, metric=0)
    assert bad.logins() == logins + 1


@pytest.mark.requirement("S-6")
async def test_the_operators_act_is_what_ends_a_refusal(bad: Open) -> None:
    """Another PIN file (or an order) is an act: then, and then alone, one more login is made."""
    bad.shimmed.control.set("login", "fail", code=CKR["PIN_INCORRECT"])
    with pytest.raises(PinRefusedError):
        await bad.token.restart()
    await bad.token.close()
    bad.shimmed.control.behave()
    logins = bad.logins()
    still = await Token.start(bad.shimmed.config, pinned=bad.pinned, patient=True)
    assert "not tried again" in still.trouble
    assert bad.logins() == logins
    await still.close()
    pin = bad.shimmed.soft.folder / "pin"
    pin.write_text(pin.read_text().strip())  # the same PIN, written anew
    after = await Token.start(bad.shimmed.config, pinned=bad.pinned)
    assert bad.logins() == logins + 1
    await after.close()


async def stays_out(bad: Open, error: type[TokenError], *, metric: int = 1) -> None:
    """Assert that nothing brings the token back, and that everybody is told why."""
    signs, logins = bad.shimmed.control.calls("sign"), bad.logins()
    bad.shimmed.control.behave()
    for _ in range(3):
        with pytest.raises(error):
            await bad.sign()
    await asyncio.sleep(0.3)
    assert f"hsm_endorser_device_token_quarantined {metric}.0" in generate_latest(bad.metrics.registry).decode()
    again = await Token.start(bad.shimmed.config, pinned=bad.pinned, patient=True)
    with pytest.raises(error):
        await again.sign(bad.node.public_key.id, [DIGEST])
    assert again.trouble == bad.token.trouble
    assert again.worker_pid is None
    await again.close()
    assert (bad.shimmed.control.calls("sign"), bad.logins()) == (signs, logins)


# --- hangs, crashes, lies ------------------------------------------------------------------------------------


@pytest.mark.requirement("K-9")
async def test_a_hanging_call_ends_at_its_deadline(bad: Open) -> None:
    """C_Sign hangs: a failure that names the reason within the patience, a new worker, and the late word is lost."""
    bad.shimmed.control.set("sign", "delay", milliseconds=60_000, times=1)
    began = time.monotonic()
    with pytest.raises(TokenUnavailableError, match=r"did not answer within 1"):
        await bad.sign()
    assert time.monotonic() - began < 2.0
    await eventually(lambda: not bad.token.trouble, seconds=15)
    bad.node.public_key.verify(await bad.sign(), b"message", low_s=True)


async def test_everybody_who_waits_is_answered(bad: Open) -> None:
    """Ten callers before a hanging token: each has its answer within two seconds, and nobody waits in line for it."""
    bad.shimmed.control.set("sign", "hang")
    began = time.monotonic()
    results = await asyncio.gather(*(bad.sign() for _ in range(10)), return_exceptions=True)
    assert time.monotonic() - began < 2.0
    assert {type(result) for result in results} == {TokenUnavailableError}


@pytest.mark.requirement("K-9")
async def test_a_crash_of_the_module_takes_the_worker_alone(bad: Open) -> None:
    """SIGSEGV inside C_Sign: this process lives, the call fails, one login later the token signs."""
    logins = bad.logins()
    bad.shimmed.control.set("sign", "crash", times=1)
    with pytest.raises(TokenUnavailableError, match="died during the call"):
        await bad.sign()
    await eventually(lambda: not bad.token.trouble, seconds=15)
    await bad.sign()
    assert bad.logins() == logins + 1


@pytest.mark.requirement("K-9")
async def test_a_corrupt_signature_does_not_leave(bad: Open) -> None:
    """One bit changed by the module: counted, never returned, the token quarantined."""
    bad.shimmed.control.set("sign", "corrupt", times=1)
    with pytest.raises(TokenQuarantinedError, match="wrong signature"):
        await bad.sign()
    assert "hsm_endorser_device_wrong_signatures_total 1.0" in generate_latest(bad.metrics.registry).decode()
    await stays_out(bad, TokenQuarantinedError)


@pytest.mark.requirement("K-9")
async def test_another_keys_signature_does_not_leave(bad: Open) -> None:
    """The module signs with another key of the same token: a stale handle, and the same end."""
    await bad.token.challenge(bad.pinned.identity)
    bad.shimmed.control.set("sign_init", "other_key", times=1)
    with pytest.raises(TokenQuarantinedError, match="wrong signature"):
        await bad.sign()
    await stays_out(bad, TokenQuarantinedError)


# --- swapped and cloned --------------------------------------------------------------------------------------


@pytest.mark.requirement("K-9")
async def test_another_serial_is_another_token(bad: Open) -> None:
    """The same label, the same keys, another serial number after a reconnect: quarantined, by the URI or by the pin."""
    bad.shimmed.control.show_serial("00000000deadbeef")
    with pytest.raises(TokenQuarantinedError, match="deadbeef"):
        await bad.token.restart()
    await stays_out(bad, TokenQuarantinedError)


@pytest.mark.requirement("K-9")
async def test_a_clone_without_the_identity_key_is_quarantined(bad: Open, tmp_path: Path) -> None:
    """Label, model and serial are copied, the identity key is not: it cannot answer for the enrolled one."""
    clone = await cloned(bad, tmp_path)
    config = msgspec.structs.replace(
        bad.shimmed.config,
        environment={**bad.shimmed.config.environment, **clone.created.environment},
        uri=msgspec.structs.replace(bad.shimmed.config.uri, pin_file=clone.folder / "pin"),
        note=tmp_path / "note",
    )
    bad.shimmed.control.show_serial(bad.pinned.token.serial)
    with pytest.raises(TokenQuarantinedError, match="does not hold the enrolled identity key"):
        await Token.start(config, pinned=bad.pinned)
    assert (tmp_path / "note").exists()


@pytest.mark.requirement("K-9")
async def test_an_operator_ends_a_quarantine_and_nobody_else(bad: Open) -> None:
    """After `release` the token must prove itself as at any start; a restart alone is refused."""
    bad.shimmed.control.set("sign", "corrupt", times=1)
    with pytest.raises(TokenQuarantinedError):
        await bad.sign()
    with pytest.raises(TokenQuarantinedError):
        await bad.token.restart()
    bad.shimmed.control.show_serial("00000000deadbeef")
    with pytest.raises(TokenQuarantinedError, match="deadbeef"):
        await bad.token.release()
    bad.shimmed.control.behave()
    await bad.token.release()
    await bad.sign()


async def cloned(bad: Open, folder: Path) -> SoftToken:
    """Another token of the same label with an identity key of its own."""
    clone = new_token(folder / "clone")
    started = await Token.start(clone.config)
    await started.generate("identity", "ecdsa-p256-sha256")
    await started.close()
    assert clone.created.serial != bad.pinned.token.serial
    return clone


BY_WORD_OF = {rule.name.removeprefix("CKR_"): rule.word for rule in RULES}
