"""Audits a token with probe keys as token objects, until it is done or somebody ends it.

python -m tests.hsm_endorser.custody_audit_program URI SOFTHSM2_CONF
"""

import asyncio
import sys

from hsm_endorser.custody import profile
from hsm_endorser.custody.audit import audit
from hsm_endorser.token_config import TokenConfig


async def main() -> None:
    """Audit for ever."""
    uri, store = sys.argv[1:]
    config = TokenConfig.parse(uri, {"SOFTHSM2_CONF": store})
    while True:
        await audit(config, profile=profile.load("strict"), on_token=True)


if __name__ == "__main__":
    asyncio.run(main())
