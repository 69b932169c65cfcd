"""A device that works through a plan and says at once what left it: to be killed anywhere on its way.

    python -m tests.hsm_endorser.guard_fire_program FOLDER

FOLDER holds `device.json` (the configuration) and `plan.ndjson`, one step a line: a path of the device's HTTP interface
and a body, or a block to apply. On standard output: `signed KEY DIGEST` as soon as the token has signed, before anybody
else has seen it, and `answer NUMBER BODY` for each answer. Then `done`.
"""

import asyncio
import base64
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hsm_endorser import doors
from hsm_endorser.config import Config
from protocol.canonical import KeyId
from tests.chain_builder import GENESIS_TIME
from tests.hsm_endorser.device_world import RunningDevice, running

CLOCK = GENESIS_TIME + 60_000
CHECKPOINT_PAGES = 100
"""The write-ahead log is folded back this often, so that a short run meets that, too."""


class Step(msgspec.Struct, frozen=True):
    """One step of the plan: a request (POST, unless the path says "GET /…"), or without a path a block to apply."""

    path: str
    body: bytes


def say(*words: object) -> None:
    """One line, in one write: whoever is killed has said it or not."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def digest_of(scheme: str, signing_input: bytes) -> str:
    """The digest under which the guard's journal lists what a token was handed."""
    return hashlib.sha256(signing_input).hexdigest() if scheme == "ed25519" else signing_input.hex()


def tell_of_signatures(device: RunningDevice) -> None:
    """Have the token tell of every signature before its caller gets it."""
    token = device.parts.signer.token
    sign = token.sign

    async def telling(key: KeyId, inputs: Sequence[bytes]) -> list[bytes]:
        signatures = await sign(key, inputs)
        scheme = token.keys[key].public_key.scheme
        for each in inputs:
            say("signed", key, digest_of(scheme, each))
        return signatures

    token.sign = telling


async def work(folder: Path) -> None:
    """Follow the plan from its beginning."""
    doors.clock = lambda: CLOCK
    settings = msgspec.json.decode((folder / "device.json").read_bytes())
    config = Config.model_validate(settings, context=folder)
    async with running(config) as device:
        if files := device.parts.guard._files:
            files.connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        tell_of_signatures(device)
        for number, line in enumerate((folder / "plan.ndjson").read_bytes().splitlines()):
            step = msgspec.json.decode(line, type=Step)
            if step.path:
                method, path = step.path.split() if " " in step.path else ("POST", step.path)
                answer = await device.http.request(method, path, content=step.body)
                say("answer", number, answer.status_code, base64.b64encode(answer.content).decode())
            else:
                await device.apply(step.body)
    say("done")


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))
