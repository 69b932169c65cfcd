"""How many wrong PINs does a token take? Tried on a token alone that its owner has named as sacrificial."""

import secrets
from typing import Final

from hsm_endorser import failures
from hsm_endorser.compliance.bench import Bench
from hsm_endorser.custody.cryptoki import TokenFlag
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.probe import Probe
from hsm_endorser.worker_messages import Pin

MOST_WRONG_PINS: Final = 12
NOT_LOCKED: Final = frozenset({"PinIncorrect", "PinInvalid", "PinLenRange"})
CHECK: Final = "pin.lockout"


async def lockout(bench: Bench, *, sacrificial: bool) -> None:
    """Give wrong PINs, each to a worker of its own, until the token is locked or the bound is met."""
    rows = bench.rows
    if not sacrificial:
        why = "wrong PINs are given to a token only that is named by --token with --sacrificial"
        rows.add(CHECK, "not-tested", "nothing", why)
        return
    rows.begin(CHECK)
    await bench.probe.kill()
    said: list[str] = []
    for count in range(1, MOST_WRONG_PINS + 1):
        answer, flags = await _wrong(bench)
        said.append(answer)
        if not answer:
            rows.add(CHECK, "fail", f"wrong PIN {count} was accepted", "anybody can log in: do not use this token")
            return
        if flags & TokenFlag.USER_PIN_LOCKED or answer == "PinLocked":
            measured = f"locked after {count if answer != 'PinLocked' else count - 1} wrong PINs"
            means = (
                "a device gives a refused PIN once and then waits for an operator, so that it cannot lock the token; "
                "people can: have the security officer's PIN at hand"
            )
            rows.add(CHECK, "info", measured, means, figures={"wrong_pins": float(count)})
            return
        if answer not in NOT_LOCKED:
            rows.add(CHECK, "info", f"wrong PIN {count}: {answer}", "a code of its own for a refused PIN or a lock")
            return
    low = await _low(bench)
    measured = f"not locked after {MOST_WRONG_PINS} wrong PINs" + (
        " (it counts them: USER_PIN_COUNT_LOW)" if low else ""
    )
    means = "nothing stops guessing: let the PIN be long and random, and keep others away from the token"
    rows.add(CHECK, "info", measured, means, figures={"wrong_pins": float(MOST_WRONG_PINS)})


async def _wrong(bench: Bench) -> tuple[str, int]:
    """The word for the refusal of a wrong PIN (empty when it was taken), and the token's flags afterwards."""
    async with Probe.open(bench.config, pin=Pin(secrets.token_hex(6))) as probe:
        await probe.start()
        try:
            await probe.login()
        except ProbeRefusedError as error:
            flags = (await probe.start()).flags
            return error.ckr or failures.UNKNOWN, flags
        return "", 0


async def _low(bench: Bench) -> bool:
    async with Probe.open(bench.config, pin=bench.pin) as probe:
        return bool((await probe.start()).flags & TokenFlag.USER_PIN_COUNT_LOW)
