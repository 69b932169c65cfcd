"""The shell examples of docs/client-protocol.md, taken from the page and run as they stand there."""

import asyncio
import os
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "client-protocol.md"


def example(name: str) -> str:
    """The lines of one example: `build`, `send` or `enrol`."""
    (found,) = re.findall(rf"^```sh {name}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


async def run(name: str, **variables: str) -> str:
    """Run an example in `sh` with nothing in its environment but PATH and its variables; what it printed."""
    environment = {"PATH": os.environ["PATH"], **variables}
    shell = await asyncio.create_subprocess_exec(
        "sh", "-c", example(name), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        printed, complaints = await shell.communicate()
    assert shell.returncode == 0, complaints.decode()
    return printed.decode()
