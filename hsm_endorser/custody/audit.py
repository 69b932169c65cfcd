"""The custody audit from beginning to end: what the token says, what its keys are, and what attacks on them came to.

Node keys themselves sign nothing but random challenges, of which `record` is told before. What could change or copy a
key is done to a probe key of the same template; reading its value and wrapping it are tried on the key itself, too,
since that is the question, and neither changes it: what might come out is forgotten in the worker.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Final

from hsm_endorser.custody import key_checks, token_checks
from hsm_endorser.custody.audited import Audited
from hsm_endorser.custody.campaign import Campaign, applicable
from hsm_endorser.custody.challenge import Record, prove
from hsm_endorser.custody.cryptoki import ObjectClass
from hsm_endorser.custody.inventory import Item, find, items, of_class
from hsm_endorser.custody.probe import Probe, expect
from hsm_endorser.custody.probe_key import destroy, leftovers
from hsm_endorser.custody.probe_messages import ListMechanisms, MechanismInfo, Mechanisms, TokenInfo
from hsm_endorser.custody.profile import Profile
from hsm_endorser.custody.software import Nature, nature
from hsm_endorser.custody.tier import tier
from hsm_endorser.custody.token_checks import TOKEN
from hsm_endorser.custody.verdicts import Rows, listed
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.worker_messages import Failed, Pin
from protocol.custody import AuditedKey, AuditedToken, Predicate

TOOL: Final = f"hsm-endorser {metadata.version('hsm-endorser')}"
CLEANING_SECONDS: Final = 30.0
SHORT: Final = 256


async def audit(
    config: TokenConfig,
    *,
    profile: Profile,
    device: str = "",
    network: str = "",
    read_only: bool = False,
    record: Record | None = None,
    pin: Pin | None = None,
    known: Mapping[str, str] | None = None,
    on_token: bool = False,
) -> Predicate:
    """Audit a token and every private key on it (requirements K-2 to K-5).

    `record` is told of every challenge before a key signs it; `pin` is for tokens whose URI names no PIN file;
    `known` are keys of other tokens, key id → where; `on_token` makes probe keys as token objects even where session
    objects would do. A token that is read only is not written to, and its attacks are not tested.

    Raises `PinFileError`, `ProbeRefusedError` when the token cannot be opened, and `ProbeLostError` when its module
    hangs or crashes where every audit must pass. Whatever happens, what the audit made is removed: at once, or when
    even this process was killed, by the next audit.
    """
    run = _Run(config, profile, read_only=read_only, record=record, known=known or {}, on_token=on_token)
    try:
        async with Probe.open(config, pin=pin) as probe:
            await run.all(probe)
    except BaseException:
        if run.wrote:
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.wait_for(clean(config, pin), CLEANING_SECONDS))
        raise
    return run.predicate(device, network)


async def clean(config: TokenConfig, pin: Pin | None = None) -> list[str]:
    """Remove what an audit left on a token; what could not be removed."""
    async with Probe.open(config, pin=pin) as probe:
        await probe.start()
        await probe.login()
        return await destroy(probe, await leftovers(probe))


class _Run:
    """One audit under way."""

    def __init__(
        self,
        config: TokenConfig,
        profile: Profile,
        *,
        read_only: bool,
        record: Record | None,
        known: Mapping[str, str],
        on_token: bool,
    ) -> None:
        self.config = config
        self.profile = profile
        self.read_only = read_only
        self.record = record
        self.known = known
        self.on_token = on_token
        self.rows = Rows()
        self.keys: list[Audited] = []
        self.wrote = False
        """Whether a token object of ours may be on the token."""
        self.info: TokenInfo
        self.nature: Nature
        self.time = time.time_ns() // 1_000_000

    async def all(self, probe: Probe) -> None:
        self.info = await probe.start()
        self.nature = nature(self.info)
        rows = self.rows
        token_checks.identity(rows, self.info)
        token_checks.firmware(rows, self.info)
        token_checks.hardware(rows, self.info, self.nature)
        token_checks.flags(rows, self.info, self.profile.token_flags)
        token_checks.visible_before_login(rows, self.info, await items(probe, await find(probe)))
        token_checks.security_officer(rows, self.info)
        offered = expect(await probe.call(ListMechanisms()), Mechanisms)
        mechanisms = [] if isinstance(offered, Failed) else offered.mechanisms
        token_checks.mechanisms(rows, offered if isinstance(offered, Failed) else mechanisms)
        await probe.login()
        await self._leftovers(probe)
        objects = await items(probe, await find(probe))
        token_checks.other_keys(rows, objects)
        token_checks.strange_objects(rows, objects)
        await self._read_back(probe, objects)
        if self.read_only:
            await self._look_only(probe)
        else:
            await self._attack(probe, mechanisms)
        await self._count(probe, len(objects))

    async def _leftovers(self, probe: Probe) -> None:
        found = await leftovers(probe)
        tried = "look for objects that an interrupted audit left"
        if not found:
            self.rows.passed("token.leftovers", TOKEN, tried, "none")
        elif self.read_only:
            reason = "an interrupted audit left them; an audit that may write removes them"
            self.rows.failed("token.leftovers", TOKEN, tried, listed(item.name for item in found), reason)
        elif stuck := await destroy(probe, found):
            reason = "an interrupted audit left them, and the token does not let them go"
            self.rows.failed("token.leftovers", TOKEN, tried, listed(stuck), reason)
        else:
            self.rows.passed("token.leftovers", TOKEN, tried, f"{len(found)} found, and removed")

    async def _read_back(self, probe: Probe, objects: Sequence[Item]) -> None:
        publics = of_class(objects, ObjectClass.PUBLIC_KEY)
        for item in of_class(objects, ObjectClass.PRIVATE_KEY):
            if not token_checks.is_ghost(item):
                key = Audited(item, [each for each in publics if each.id == item.id], number=item.number)
                await prove(self.rows, probe, key, self.record)
                self.keys.append(key)
        moduli = key_checks.moduli_of(self.keys)
        for key in self.keys:
            key_checks.attributes(self.rows, key, self.profile.key_attributes)
            key_checks.pair(self.rows, key, objects)
            key_checks.public_object(self.rows, key)
            key_checks.numbers(self.rows, key, moduli)
            key_checks.unique(self.rows, key, self.keys, self.known)
            key_checks.attestation(self.rows, key)

    async def _look_only(self, probe: Probe) -> None:
        reason = "the audit was told to write nothing: --read-only"
        campaign = Campaign(self.rows, probe, [], on_token=False)
        for key in self.keys:
            await campaign.attacker.read_key(key.target, key.number, key.kind)
            for check in applicable(key.kind):
                if not self.rows.tried(check, key.target):
                    self.rows.untested(check, key.target, "nothing", reason)

    async def _attack(self, probe: Probe, offered: Sequence[MechanismInfo]) -> None:
        campaign = Campaign(self.rows, probe, offered, on_token=self.on_token)
        self.wrote = True
        await campaign.run(self.keys)

    async def _count(self, probe: Probe, before: int) -> None:
        """Look again with a fresh worker, for which the session objects of the audit are gone."""
        await probe.start()
        await probe.login()
        stuck: list[str] = []
        if not self.read_only:
            stuck = await destroy(probe, await leftovers(probe))
        self.wrote = False
        after = len(await find(probe))
        answer = f"{before} before, {after} after"
        tried = "count the objects before the attacks and after them"
        if stuck:
            self.rows.failed("token.objects", TOKEN, tried, answer, f"could not be removed: {listed(stuck)}")
        elif after != before:
            reason = (
                "objects came or went during the audit: by somebody else's hand, or the module keeps what it refused"
            )
            self.rows.failed("token.objects", TOKEN, tried, answer, reason)
        else:
            self.rows.passed("token.objects", TOKEN, tried, answer)

    def predicate(self, device: str, network: str) -> Predicate:
        """What was found."""
        info = self.info
        return Predicate(
            device=device,
            network=network,
            time=self.time,
            tool=TOOL,
            profile=self.profile.reference,
            token=AuditedToken(
                label=info.label,
                manufacturer=info.manufacturer,
                model=info.model,
                serial=info.serial,
                firmware=f"{info.firmware[0]}.{info.firmware[1]}",
                software=self.nature.software,
            ),
            keys=tuple(self._audited(key) for key in self.keys),
            rows=tuple(self.rows.all),
            verdict=self.profile.judge(self.rows.all),
            read_only=self.read_only,
        )

    def _audited(self, key: Audited) -> AuditedKey:
        rows = self.rows.of(key.target, *([key.probe] if key.probe else []))
        return AuditedKey(
            key=key.key,
            label=key.item.label[:SHORT],
            id=key.item.id.hex()[:SHORT],
            tier=tier(self.profile, rows),
            verdict=self.profile.judge(rows),
        )
