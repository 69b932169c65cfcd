"""The attacks of one audit: which probe keys are made, what is tried on them, and what when the module dies of it."""

from collections.abc import Mapping, Sequence
from typing import Final

from hsm_endorser.custody.attacks import Attacker
from hsm_endorser.custody.audited import Audited
from hsm_endorser.custody.cryptoki import Attribute, KeyType
from hsm_endorser.custody.errors import ProbeLostError
from hsm_endorser.custody.inventory import PRIVATE_KEYS, find, items
from hsm_endorser.custody.probe import Probe
from hsm_endorser.custody.probe_key import Kind, ProbeKey, kind_of, make
from hsm_endorser.custody.probe_messages import Logout, MechanismInfo
from hsm_endorser.custody.verdicts import Rows

MOST_PROBES: Final = 32
"""Templates of which a probe key is made; whoever has more has a mess."""
EVERY: Final = ("attack.read", "attack.wrap", "attack.copy", "attack.mechanism", "attack.import", "attack.look-alike")
LAST: Final = ("attack.flip", "attack.destroy", "attack.sign-after-logout")
OF_KIND: Final[Mapping[int, tuple[str, ...]]] = {
    KeyType.EC: ("attack.derive", "attack.sign-length", "attack.nonces"),
    KeyType.RSA: ("attack.decrypt", "attack.unwrap", "attack.sign-length"),
}


def applicable(key_type: int | None) -> tuple[str, ...]:
    """The attacks that mean something for a kind of key."""
    return ("attack.probe", *EVERY, *OF_KIND.get(key_type or 0, ()), *LAST)


class Campaign:
    """Attacks on every key of a token."""

    def __init__(self, rows: Rows, probe: Probe, offered: Sequence[MechanismInfo], *, on_token: bool) -> None:
        self.rows = rows
        self.attacker = Attacker(rows, probe, offered)
        self._probe = probe
        self._offered = offered
        self._on_token = on_token
        self._kinds: dict[Kind, str] = {}
        self._alive: dict[str, ProbeKey] = {}
        self._keys: Sequence[Audited] = ()

    async def run(self, keys: Sequence[Audited]) -> None:
        """Attack the keys as far as that cannot change them, then a probe key for each template."""
        self._keys = keys
        for key in keys:
            try:
                await self._probe_for(key)
            except ProbeLostError as error:
                self._died("attack.probe", key.target, error)
                await self._revive()
        await self._keys_themselves()
        for kind, target in self._kinds.items():
            await self._probe_key(kind, target)
        await self._after_logout()
        for key in keys:  # what was left out somehow is not passed
            for check in applicable(key.kind):
                if not any(self.rows.tried(check, target) for target in (key.target, key.probe) if target):
                    self.rows.untested(check, key.target, "nothing", "no probe key stands for this key")

    async def _probe_for(self, key: Audited) -> None:
        kind = kind_of(key)
        tried = "make a probe key of the same template"
        if kind is None:
            reason = "it is neither an EC nor an RSA nor an Ed25519 key with a public half"
            self.rows.untested("attack.probe", key.target, tried, reason)
            return
        if kind not in self._kinds:
            if len(self._kinds) >= MOST_PROBES:
                reason = f"there are keys of more than {MOST_PROBES} templates on this token"
                self.rows.untested("attack.probe", key.target, tried, reason)
                return
            target = f"probe-{len(self._kinds) + 1}"
            made = await self._make(target, kind)
            if isinstance(made, str):
                self.rows.untested("attack.probe", key.target, tried, f"the module makes none: {made}", made)
                return
            self._kinds[kind] = target
        target = self._kinds[kind]
        probe_key = self._alive.get(target)
        if probe_key is None:
            self.rows.untested("attack.probe", key.target, tried, "the module did not survive the making of it")
            return
        key.probe = target
        kept = "a token object with DESTROYABLE true" if probe_key.on_token else "a session object"
        if probe_key.differs:
            reason = f"the token gave it other attributes, so that it proves little: {probe_key.differs}"
            self.rows.untested("attack.probe", key.target, tried, reason, f"{target}, {kept}")
        else:
            self.rows.passed("attack.probe", key.target, tried, f"{target}, {kept}")

    async def _keys_themselves(self) -> None:
        for key in self._keys:
            if not key.number:
                reason = "after the module died the key could not be told from another one"
                self.rows.untested("attack.wrap", key.target, "wrap the key itself", reason)
                continue
            try:
                await self.attacker.read_key(key.target, key.number, key.kind)
                like = self._alive.get(key.probe)
                await self.attacker.wrapping.attack_key(key.target, key.number, like)
            except ProbeLostError as error:
                self._died("attack.wrap", key.target, error)
                await self._revive()

    async def _probe_key(self, kind: Kind, target: str) -> None:
        for check, attack in self.attacker.plan(kind.key_type).items():
            try:
                key = await self._living(target, kind)
                if isinstance(key, str):
                    self.rows.untested(check, target, "nothing", f"no probe key can be made any more: {key}", key)
                    continue
                # A new attacker took over when the module died; its plan has the same names.
                await self.attacker.plan(kind.key_type)[check](key)
            except ProbeLostError as error:
                self._died(check, target, error)
                await self._revive()
            if check == "attack.destroy":
                self._alive.pop(target, None)
            del attack

    async def _after_logout(self) -> None:
        check = "attack.sign-after-logout"
        try:
            keys = []
            for kind, target in self._kinds.items():
                key = await self._living(target, kind)
                if isinstance(key, str):
                    self.rows.untested(check, target, "nothing", f"no probe key can be made any more: {key}", key)
                else:
                    keys.append(key)
            begun = await self.attacker.begin_signatures(keys)
            await self._probe.call(Logout())
            for key in keys:
                await self.attacker.sign_after_logout(key, begun.get(key.target))
        except ProbeLostError as error:
            for target in self._kinds.values():
                if not self.rows.tried(check, target):
                    self._died(check, target, error)

    async def _living(self, target: str, kind: Kind) -> ProbeKey | str:
        if target not in self._alive:
            made = await self._make(target, kind)
            if isinstance(made, str):
                return made
        return self._alive[target]

    async def _make(self, target: str, kind: Kind) -> ProbeKey | str:
        made = await make(self._probe, target, kind, on_token=self._on_token)
        if isinstance(made, ProbeKey):
            self._alive[target] = made
        return made

    def _died(self, check: str, target: str, error: ProbeLostError) -> None:
        reason = f"the module did not survive the attempt: {error}"
        self.rows.untested(check, target, "attack", reason)

    async def _revive(self) -> None:
        """A new worker, in which nothing of the old one's exists."""
        await self._probe.start()
        await self._probe.login()
        self._alive.clear()
        self.attacker = Attacker(self.rows, self._probe, self._offered)
        # Objects have other numbers now.
        seen = await items(self._probe, await find(self._probe, PRIVATE_KEYS), (Attribute.ID, Attribute.LABEL))
        for key in self._keys:
            same = [item.number for item in seen if (item.id, item.label) == (key.item.id, key.item.label)]
            key.number = same[0] if len(same) == 1 else 0
