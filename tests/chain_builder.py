"""A whole network with software keys: the other side of every verifier, to be honest with or to attack.

    network = Network()                                  # nodes A, B, C on one device each, two clients, …
    replica = Replica.create(store, network.genesis())
    wish = network.evidence("pump-7", "ab" * 32)
    replica.apply(network.block(replica, [wish]).encode())

Every part of a block can be made wrong on purpose: `trees` takes who votes what, `sign` signs any header.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ledger.genesis import draft_genesis, genesis_payload
from ledger.replica import Replica
from protocol import block as blocks
from protocol import canonical, custody, endorsement, merkle, rotation
from protocol.block import Block
from protocol.custody import AuditedKey, AuditedToken, Predicate, Profile
from protocol.endorsement import Branch, Tree, TreeHead, Vote, approval
from protocol.envelope import Envelope
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Client,
    Custody,
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    NodeKey,
    Reason,
    Registrar,
    Revocation,
    Token,
)
from protocol.rotation import Announcement
from protocol.tier import Tier
from protocol.transaction import PAYLOAD_TYPE, Transaction, TransactionPayload
from tests import software_keys
from tests.software_keys import SoftwareKey

GENESIS_TIME = 1_800_000_000_000
LONGEST_VALIDITY = 3_600_000
FOR_EVER = canonical.MAX_INTEGER
YEAR = 365 * 24 * 3_600_000


class Network:
    """Nodes, devices, a center, administrators, a registrar and clients, and what each of them would sign."""

    def __init__(
        self,
        name: str = "test",
        *,
        nodes: Sequence[str] = ("A", "B", "C"),
        clients: Sequence[str] = ("c1", "c2"),
        administrators: Sequence[str] = ("admin-1", "admin-2", "admin-3"),
        administrators_needed: int = 2,
        policies: Mapping[str, str] | None = None,
        replicated: bool = False,
        time: int = GENESIS_TIME,
        until: int = FOR_EVER,
        least_tier: Tier = "claimed",
    ) -> None:
        """With `replicated`, every device holds a key of its own for every node; else device-a holds A's alone.

        All keys count until the block time `until`. With a `least_tier`, block 0 holds a custody statement of each
        device that gives all its keys this tier.
        """
        self.name = name
        self.until = until
        self.least_tier: Tier = least_tier
        self.time = time
        self.administrators_needed = administrators_needed
        self.devices = {f"device-{node.lower()}": software_keys.ecdsa(f"{name} identity {node}") for node in nodes}
        self.node_keys: dict[tuple[str, str], SoftwareKey] = {
            (node, device): software_keys.ecdsa(f"{name} node {node} on {device}")
            for node in nodes
            for device in self.devices
            if replicated or device == f"device-{node.lower()}"
        }
        self.center = software_keys.ecdsa(f"{name} center-1")
        self.registrar = software_keys.ecdsa(f"{name} ca")
        self.administrators = {admin: software_keys.ecdsa(f"{name} {admin}") for admin in administrators}
        self.clients = {client: software_keys.ecdsa(f"{name} client {client}") for client in clients}
        self.policies = dict(policies or {"assets": "OutOf(2, 'A', 'B', 'C')", "evidence": "OutOf(2, 'A', 'B', 'C')"})
        self._sequences = dict.fromkeys(self.devices, 0)
        self._nonces = 0

    # --- the registry -------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The entries of the genesis block."""
        nodes = dict.fromkeys(node for node, _ in self.node_keys)
        return [
            Channel(
                network=self.name,
                rules_version=blocks.RULES_VERSION,
                centers_needed=1,
                administrators_needed=self.administrators_needed,
                longest_validity=LONGEST_VALIDITY,
                ceremony="none",
                least_tier=self.least_tier,
            ),
            *(Administrator(name, key.spki, until=self.until) for name, key in self.administrators.items()),
            Registrar("ca", self.registrar.spki, b"no certificate is looked at here", until=self.until),
            Center("center-1", self.center.spki, next(iter(self.devices)), until=self.until),
            *(
                Device(name, key.spki, Token("software", "for tests", name.removeprefix("device-")), until=self.until)
                for name, key in self.devices.items()
            ),
            *(self.node_entry(node, until=self.until) for node in nodes),
            *(Client(name, key.spki, "", until=self.until) for name, key in self.clients.items()),
            *(self.custody(device, self.least_tier) for device in self.devices if self.least_tier != "claimed"),
            *(EndorsementPolicy(kind, expression) for kind, expression in self.policies.items()),
        ]

    def node_entry(self, node: str, *, since: int = 0, until: int = FOR_EVER) -> Node:
        """The registry entry of a node, with all its keys."""
        keys = tuple(
            NodeKey(key.spki, device, since=since, until=until)
            for (name, device), key in self.node_keys.items()
            if name == node
        )
        return Node(node, keys)

    def genesis_transaction(self, entries: Iterable[Entry] | None = None) -> Transaction:
        """The transaction of block 0, signed by all administrators."""
        drafted = genesis_payload(self.name, self.entries() if entries is None else entries)
        # Without chance: the same network has the same genesis block in every run.
        payload = canonical.encode(
            msgspec.structs.replace(msgspec.json.decode(drafted, type=TransactionPayload), nonce="0" * 32)
        )
        sealed = software_keys.envelope(PAYLOAD_TYPE, payload, list(self.administrators.values()))
        return Transaction.decode(canonical.encode(sealed))

    def genesis(self, entries: Iterable[Entry] | None = None) -> bytes:
        """The canonical bytes of block 0, signed by the center."""
        return self.sign(draft_genesis(self.genesis_transaction(entries).raw, self.time)).encode()

    # --- clients and administrators -----------------------------------------------------------------------

    def payload(
        self, contract: str, operation: str, arguments: dict[str, Any], *, client: str = "c1", **changed: Any
    ) -> TransactionPayload:
        """What a client would sign; `changed` replaces single fields."""
        self._nonces += 1
        fields: dict[str, Any] = {
            "version": 1,
            "network": self.name,
            "client": client,
            "contract": contract,
            "operation": operation,
            "arguments": arguments,
            "nonce": hashlib.sha256(f"{self.name} {self._nonces}".encode()).hexdigest()[:32],
            "valid_from": 0,
            "valid_until": self.time + LONGEST_VALIDITY // 2,
        }
        return TransactionPayload(**{**fields, **changed})

    def transaction(
        self,
        contract: str,
        operation: str,
        arguments: dict[str, Any],
        *,
        client: str = "c1",
        signers: Sequence[SoftwareKey] | None = None,
        **changed: Any,
    ) -> Transaction:
        """A transaction, signed by the client's key unless other `signers` are given."""
        payload = canonical.encode(self.payload(contract, operation, arguments, client=client, **changed))
        keys = [self.clients[client]] if signers is None else list(signers)
        return Transaction.decode(canonical.encode(software_keys.envelope(PAYLOAD_TYPE, payload, keys)))

    def evidence(self, subject: str, digest: str = "ab" * 32, **options: Any) -> Transaction:
        """An `evidence.record` transaction."""
        return self.transaction(
            "evidence", "record", {"subject": subject, "digest": digest, "attributes": {}}, **options
        )

    def issue(self, symbol: str, outputs: Mapping[str, int], **options: Any) -> Transaction:
        """An `assets.issue` transaction; `outputs` are amounts by owner."""
        return self.transaction("assets", "issue", {"symbol": symbol, "outputs": _outputs(outputs)}, **options)

    def transfer(self, inputs: Sequence[str], outputs: Mapping[str, int], **options: Any) -> Transaction:
        """An `assets.transfer` transaction; `inputs` are coins, `<transaction id>:<index>`."""
        arguments = {"inputs": list(inputs), "outputs": _outputs(outputs)}
        return self.transaction("assets", "transfer", arguments, **options)

    def registry(
        self, operation: str, arguments: dict[str, Any], *, administrators: Sequence[str] | None = None, **changed: Any
    ) -> Transaction:
        """A registry transaction, signed by as many administrators as are needed unless others are named."""
        names = list(self.administrators)[: self.administrators_needed] if administrators is None else administrators
        signers = [self.administrators[name] for name in names]
        return self.transaction("registry", operation, arguments, client=names[0], signers=signers, **changed)

    def put(self, *entries: Entry, **options: Any) -> Transaction:
        """A `registry.put` transaction."""
        return self.registry("put", {"entries": [builtins(entry) for entry in entries]}, **options)

    # --- the life of keys ---------------------------------------------------------------------------------

    def statement(
        self,
        device: str,
        tiers: Tier | Mapping[str, Tier],
        *,
        signer: SoftwareKey | None = None,
        time: int | None = None,
        about: str | None = None,
        network: str | None = None,
    ) -> Envelope:
        """A custody statement by a device: one tier for all keys on it, or tiers by key id.

        It is about this device of this network, at the network's first time, unless others are given.
        """
        here: dict[str, str] = {key.id: node for (node, where), key in self.node_keys.items() if where == device}
        if device == next(iter(self.devices)):
            here[self.center.id] = "center-1"
        given = tiers if isinstance(tiers, Mapping) else dict.fromkeys(here, tiers)
        predicate = Predicate(
            device=device if about is None else about,
            network=self.name if network is None else network,
            time=self.time if time is None else time,
            tool="tests",
            profile=Profile("tests", "00" * 32),
            token=AuditedToken(device, "software", "for tests", device.removeprefix("device-"), "1", software=True),
            keys=tuple(AuditedKey(key, here.get(key, "key"), "", tier, "pass") for key, tier in given.items()),
            rows=(),
            verdict="pass",
            read_only=False,
        )
        return (signer or self.devices[device]).envelope(custody.PAYLOAD_TYPE, custody.encode(predicate))

    def custody(self, device: str, tiers: Tier | Mapping[str, Tier], **options: Any) -> Custody:
        """The registry entry with such a statement."""
        return Custody(device, canonical.encode(self.statement(device, tiers, **options)))

    def announcement(
        self, holder: str, old: SoftwareKey, new: SoftwareKey, /, *, signers: Sequence[SoftwareKey] = (), **changed: Any
    ) -> Envelope:
        """The announcement of a new key, signed by both unless other `signers` are given; `changed` replaces fields."""
        kind = holder.partition("/")[0]
        fields: dict[str, Any] = {
            "network": self.name,
            "holder": holder,
            "old": old.id,
            "new": new.spki,
            "device": next(iter(self.devices)) if kind in {"node", "center"} else "",
            "since": 1,
            "overlap": 0,
            "not_before": 0,
            "until": self.time + YEAR,
            "certificate": b"a new certificate" if kind in {"registrar", "client"} else b"",
        }
        payload = canonical.encode(Announcement(**{**fields, **changed}))
        both = list({key.id: key for key in (old, new)}.values())
        return software_keys.envelope(rotation.PAYLOAD_TYPE, payload, list(signers) or both)

    def rotate(
        self,
        holder: str,
        old: SoftwareKey,
        new: SoftwareKey,
        /,
        *,
        administrators: Sequence[str] | None = None,
        **options: Any,
    ) -> Transaction:
        """A `registry.rotate` transaction by administrators, with such an announcement."""
        announced = builtins(self.announcement(holder, old, new, **options))
        return self.registry("rotate", {"announcement": announced}, administrators=administrators)

    def renew_client(self, name: str, old: SoftwareKey, new: SoftwareKey, /, **options: Any) -> Transaction:
        """A `registry.renew_client` transaction by the registrar."""
        announced = builtins(self.announcement(f"client/{name}", old, new, **options))
        return self.transaction(
            "registry", "renew_client", {"announcement": announced}, client="ca", signers=[self.registrar]
        )

    def revocation(self, holder: str, key: SoftwareKey, reason: Reason = "key-compromise") -> Revocation:
        """The registry entry that revokes a key."""
        return Revocation(key.id, holder, reason, self.time)

    # --- devices ------------------------------------------------------------------------------------------

    def tree(
        self, device: str, votes: Sequence[Vote], *, height: int = 0, key_of: Mapping[str, SoftwareKey] | None = None
    ) -> Tree:
        """What a device answers to a batch: its votes as leaf hashes, one head for each node.

        `key_of` replaces the key that signs for a node.
        """
        self._sequences[device] += 1
        by_node: dict[str, list[Vote]] = {}
        for vote in votes:
            by_node.setdefault(vote.node, []).append(vote)
        hashes = [vote.leaf() for group in by_node.values() for vote in group]
        branches = []
        for node, group in by_node.items():
            key = (key_of or {}).get(node) or self.node_keys[node, device]
            head = TreeHead(
                network=self.name,
                device=device,
                node=node,
                key=key.id,
                root=merkle.root(hashes).hex(),
                size=len(hashes),
                height=height,
                sequence=self._sequences[device],
            )
            sealed = key.envelope(endorsement.PAYLOAD_TYPE, canonical.encode(head))
            branches.append(Branch(node, tuple(vote.leaf().hex() for vote in group), sealed))
        return Tree(tuple(branches))

    def endorse(
        self,
        transactions: Sequence[Transaction],
        *,
        by: Sequence[str] = ("A", "B"),
        height: int = 0,
        besides: Sequence[Vote] = (),
    ) -> list[Tree]:
        """Trees in which the nodes `by` approve `transactions`, each on a device that holds its key.

        They are written as a block of just these transactions holds them; those of the registry need no votes.
        `besides` are further votes in the trees of the same nodes.
        """
        endorsed = [each for each in transactions if each.payload.contract != "registry"]
        if not endorsed:
            return []
        index_of = approvals(self.name, transactions, by)
        trees = []
        for node in by:
            device = next(device for name, device in self.node_keys if name == node)
            votes = [approval(self.name, transaction.id, node) for transaction in endorsed]
            votes += [vote for vote in besides if vote.node == node]
            trees.append(self.tree(device, votes, height=height).for_block(index_of))
        return trees

    # --- the center ---------------------------------------------------------------------------------------

    def sign(self, block: Block, *, by: Sequence[SoftwareKey] | None = None) -> Block:
        """The block under a header that the center (or others) signed."""
        signers = [self.center] if by is None else list(by)
        return block.signed(software_keys.envelope(blocks.PAYLOAD_TYPE, block.envelope.payload, signers))

    def block(
        self,
        replica: Replica,
        transactions: Sequence[Transaction],
        trees: Sequence[Tree] | None = None,
        *,
        time: int | None = None,
    ) -> Block:
        """The next block on `replica`, signed; endorsed by A and B unless `trees` are given. Nothing is stored."""
        if trees is None:
            trees = self.endorse(transactions, height=replica.height)
        when = replica.time + 500 if time is None else time
        return self.sign(replica.draft(when, transactions, trees).block)

    def forge(self, block: Block, **changed: Any) -> Block:
        """The block with header fields replaced, signed by the center all the same: a center that lies."""
        header = msgspec.structs.replace(block.header, **changed)
        return self.sign(blocks.unsigned(header, block.transactions, block.trees))

    def rebuilt(self, block: Block, *, transactions: Sequence[Transaction], trees: Sequence[Tree]) -> Block:
        """The block with another body and a header that commits to it, signed: what a lying center would publish."""
        header = msgspec.structs.replace(
            block.header,
            transaction_count=len(transactions),
            transaction_root=blocks.transaction_root(transactions, trees),
        )
        return self.sign(blocks.unsigned(header, transactions, trees))


def approvals(network: str, transactions: Sequence[Transaction], nodes: Iterable[str]) -> dict[str, int]:
    """The leaf hash (hexadecimal) of every approval by `nodes`, and the index of its transaction."""
    return {
        approval(network, transaction.id, node).leaf().hex(): index
        for node in nodes
        for index, transaction in enumerate(transactions)
    }


def builtins(entry: Entry | Envelope) -> Any:
    """A registry entry or an envelope as it stands in a transaction's arguments."""
    return msgspec.json.decode(canonical.encode(entry))


def _outputs(amounts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"owner": owner, "amount": amount} for owner, amount in amounts.items()]
