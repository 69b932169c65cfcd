"""A chain with a history for auditors: custody statements, centers that change three times, revocations.

block 1   custody statements of all devices       5   a second center; both must sign from now on
      2   assets ask for probed keys              6   c2 is revoked, and a record by c1
      3   a record by c1                          7   the first center is revoked: one signs again
      4   center-1 gets a new key                 8   a record and an issue
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ledger.evidence import Evidence, make_evidence
from ledger.proof import WatchedEntries
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import block as blocks
from protocol import canonical, custody, registry
from protocol.canonical import TxId
from protocol.custody import AuditedKey, AuditedToken, Predicate, Profile, Row
from protocol.envelope import Envelope
from protocol.registry import Center, Channel, Custody, EndorsementPolicy, Entry, Revocation
from protocol.tier import Tier
from protocol.transaction import Transaction
from tests import software_keys
from tests.chain_builder import GENESIS_TIME, Network
from tests.software_keys import SoftwareKey

SECOND = software_keys.ecdsa("test center-1, second key")
OTHER = software_keys.ecdsa("test center-2")


class History:
    """The network, its chain, and the transactions to ask for."""

    def __init__(self, folder: Path) -> None:
        self.network = Network()
        self.first_center = self.network.center
        self.genesis = self.network.genesis()
        self.store = ChainStore.create(url_of(folder / "history.db"))
        self.replica = Replica.create(self.store, self.genesis)
        self.centers = [self.first_center]
        network = self.network
        devices = tuple(network.devices)
        self.put(*(self.statement(device) for device in devices))
        self.put(EndorsementPolicy("assets", "OutOf(2, 'A', 'B', 'C')", least_tier="probed"))
        self.early = self.commit(network.evidence("early"))
        self.rotation = self.put(Center("center-1", SECOND.spki, devices[0]))
        self.centers = [SECOND]
        channel = self.replica.registry.channel
        self.put(Center("center-2", OTHER.spki, devices[1]), msgspec.structs.replace(channel, centers_needed=2))
        self.centers = [SECOND, OTHER]
        revoked = Revocation(network.clients["c2"].id, "client/c2", "key-compromise", 0)
        self.middle = network.evidence("middle")
        self.commit(network.put(revoked), self.middle)
        self.put(Revocation(SECOND.id, "center/center-1", "superseded", GENESIS_TIME), channel)
        self.centers = [OTHER]
        self.commit(network.evidence("in between"))
        self.late, self.issue = network.evidence("late"), network.issue("GOLD", {"c1": 5})
        self.commit(self.late, self.issue)

    def statement(
        self, device: str, *, about: str = "", by: SoftwareKey | None = None, tier: Tier = "probed"
    ) -> Custody:
        """The entry with a device's custody statement over its node's key and the first center's."""
        network = self.network
        keys = [key for (_, on), key in network.node_keys.items() if on == device]
        keys += [self.first_center] if device == next(iter(network.devices)) else []
        audited = tuple(AuditedKey(key.id, f"key {number}", "01", tier, "pass") for number, key in enumerate(keys))
        audit = Predicate(
            device=about or device,
            network=network.name,
            time=GENESIS_TIME - 1000,
            tool="hsm-endorser test",
            profile=Profile("strict", "ab" * 32),
            token=AuditedToken(device, "software", "for tests", device, "1", software=True),
            keys=audited,
            rows=(Row("token.software", "token", "read the flags", "software", "fail", "a software token"),),
            verdict="fail",
            read_only=False,
        )
        payload = custody.encode(audit)
        signer = by or network.devices[device]
        envelope = Envelope(payload, custody.PAYLOAD_TYPE, (signer.signature(custody.PAYLOAD_TYPE, payload),))
        return Custody(device, canonical.encode(envelope))

    def put(self, *entries: Entry | Channel) -> Transaction:
        """Commit registry entries."""
        return self.commit(self.network.put(*entries))

    def commit(self, *transactions: Transaction, time: int | None = None) -> Transaction:
        """Commit a block of these, signed by the centers in force; the last of them."""
        trees = self.network.endorse(transactions, height=self.replica.height)
        draft = self.replica.draft(self.replica.time + 500 if time is None else time, transactions, trees).block
        checked = self.replica.apply(self.network.sign(draft, by=self.centers).encode())
        assert [outcome.code for outcome in checked.outcomes] == ["valid"] * len(transactions)
        return transactions[-1]

    def evidence(self, transaction: Transaction, start: int = 0) -> Evidence:
        """The evidence of a transaction, as a value to be changed."""
        return msgspec.json.decode(make_evidence(self.store, TxId(transaction.id), start=start), type=Evidence)

    def lie(self, evidence: Evidence, changes: Mapping[str, Entry | None], **changed: Any) -> Evidence:
        """What the centers in force could sign: the same block over a registry in which entries differ, all shown."""
        header = blocks.decode_header(evidence.header)
        entries = self.store.registry(header.height - 1)
        for key, entry in changes.items():
            if entry is None:
                del entries[key]
            else:
                entries[key] = canonical.encode(entry)
        previous = blocks.decode_header(Envelope(evidence.previous, blocks.PAYLOAD_TYPE, ()))
        previous = msgspec.structs.replace(previous, registry_root=registry.registry_root(entries))
        header = msgspec.structs.replace(header, previous=previous.authentication, **changed)
        watched = WatchedEntries(entries)
        for key in entries:
            assert watched[key]
        return msgspec.structs.replace(
            evidence,
            header=software_keys.envelope(blocks.PAYLOAD_TYPE, header.encode(), self.centers),
            previous=previous.encode(),
            registry_count=len(entries),
            registry=watched.proof(),
        )
