"""The one way to a signature: the guard records it durably, then the token makes it (requirement K-10).

The one way to a further key, too: which one is about to be made stands in the guard's journal first.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from hsm_endorser.errors import GuardError, TokenUnavailableError, UnknownKeyError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalEntry, Purpose, VoteRecord
from hsm_endorser.metrics import Metrics
from hsm_endorser.token import KEY_ID_BYTES, Pinned, Token, TokenConfig
from hsm_endorser.token_key import TokenKey
from protocol.canonical import KeyId
from protocol.envelope import Signature
from protocol.keys import PublicKey, Scheme, signing_input

T = TypeVar("T")

BEFORE_USE: Final[frozenset[Purpose]] = frozenset({"challenge", "rotation", "certificate"})
"""What a key signs before anybody relies on it; with "certificate" a CA's new key has certified itself."""
JOURNAL_PAGE: Final = 200


class GuardedToken:
    """A token whose every use stands in the guard first. The guard is touched in one thread of its own."""

    token: Token

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guard")

    @staticmethod
    async def start(
        guard: Guard,
        config: TokenConfig,
        *,
        pinned: Pinned | None = None,
        metrics: Metrics | None = None,
        patient: bool = False,
    ) -> "GuardedToken":
        """Open the token behind an open guard; raises as `Token.start` does, and the guard is closed then."""
        signer = GuardedToken(guard)
        try:
            signer.token = await Token.start(
                config, pinned=pinned, journal=signer.record_challenge, metrics=metrics, patient=patient
            )
        except BaseException:
            signer._close_guard()
            raise
        return signer

    async def close(self) -> None:
        """End the token's worker, then close the guard after what is being recorded."""
        await self.token.close()
        self._close_guard()

    def _close_guard(self) -> None:
        self._thread.submit(self.guard.close).result()
        self._thread.shutdown()

    async def in_guard_thread(self, work: Callable[[], T]) -> T:
        """Run `work` where the guard may be touched; it runs to its end even when the caller goes away."""
        try:
            running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError:
            raise GuardError("the guard is closed: the device is stopping") from None
        return await asyncio.shield(running)

    async def sign(
        self, purpose: Purpose, key_id: KeyId, message: bytes, *, header: tuple[int, str] | None = None
    ) -> Signature:
        """The signature of one key over `message`, recorded by its purpose.

        `header` is the height and authentication data, when a block header is signed. Raises `GuardError`,
        `GuardConflictError` or `TokenError`.
        """
        self._require(key_id)
        entry = _entry(purpose, key_id, message)
        await self.in_guard_thread(lambda: self.guard.record(header=header, journal=[entry]))
        # A crash here leaves a record without a signature: the same request again gets one.
        return await self._sign(key_id, message)

    async def sign_heads(
        self, votes: Sequence[VoteRecord], sequence: int, heads: Sequence[tuple[KeyId, bytes]]
    ) -> list[Signature]:
        """The signatures over the heads of one tree, one for each key, after its votes and sequence are recorded."""
        for key_id, _ in heads:
            self._require(key_id)
        journal = [_entry("head", key_id, message) for key_id, message in heads]
        await self.in_guard_thread(lambda: self.guard.record(votes=votes, sequence=sequence, journal=journal))
        # A crash here loses a sequence number and no word: the votes are given again as they are recorded.
        patience = self.token.config.patience
        try:
            async with asyncio.timeout(patience):  # for all keys together: whoever waits, waits for all of them
                return [await self._sign(key_id, message) for key_id, message in heads]
        except TimeoutError:
            raise TokenUnavailableError(
                f"the token did not make {len(heads)} signatures within {patience:g} s; if that is its usual pace, "
                "raise deadline_ms in the device's configuration"
            ) from None

    async def record_challenge(self, key_id: KeyId, message: bytes) -> None:
        """Record that a key is about to answer a challenge."""
        entry = _entry("challenge", key_id, message)
        await self.in_guard_thread(lambda: self.guard.record(journal=[entry]))

    async def generate(self, label: str, holder: str, scheme: Scheme) -> TokenKey:
        """A new key for a holder (`node/A`), made by the strict template and challenged; raises as `sign` does.

        After a crash or a deadline anywhere in here, `made_for` finds the key if the token has made it.
        """
        handle = secrets.token_bytes(KEY_ID_BYTES)
        entry = _generation(holder, handle)
        await self.in_guard_thread(lambda: self.guard.record(journal=[entry]))
        return await self.token.generate(label, scheme, handle)

    async def made_for(self, holder: str) -> list[TokenKey]:
        """The keys on the token that this device has made for a holder and not used, whatever their labels say."""
        keys = list(self.token.keys.values())
        return await self.in_guard_thread(lambda: [key for key in keys if self._is_unused(key, holder)])

    def _is_unused(self, key: TokenKey, holder: str) -> bool:
        """In the guard's thread."""
        made = _generation(holder, key.handle)
        if all(row.entry != made for row in self.guard.journal(key=made.key)):
            return False
        after = 0
        while rows := self.guard.journal(key=key.public_key.id, after=after, limit=JOURNAL_PAGE):
            if any(row.entry.purpose not in BEFORE_USE for row in rows):
                return False
            after = rows[-1].number
        return True

    async def _sign(self, key_id: KeyId, message: bytes) -> Signature:
        key = self._require(key_id)
        (signature,) = await self.token.sign(key_id, [signing_input(key.scheme, message)])
        return Signature(key_id, signature)

    def _require(self, key_id: KeyId) -> PublicKey:
        key = self.token.keys.get(key_id)
        if key is None:
            raise UnknownKeyError(f"key {key_id[:16]}… is not on this token")
        return key.public_key


def _entry(purpose: Purpose, key_id: KeyId, message: bytes) -> JournalEntry:
    return JournalEntry(purpose, key_id, hashlib.sha256(message).hexdigest())


def _generation(holder: str, handle: bytes) -> JournalEntry:
    """The entry for a key that is about to be made, under the only name that it has by then."""
    digest = hashlib.sha256(b"generation\0" + holder.encode() + b"\0" + handle).hexdigest()
    return JournalEntry("generation", KeyId(handle.hex()), digest)
