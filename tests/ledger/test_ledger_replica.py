"""The verifier's checklist, step by step: what is a bad copy, what is refused, what diverges."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from ledger import replica as replica_module
from ledger.errors import (
    AuthorizationError,
    BadCopyError,
    BlockRefusedError,
    DivergedError,
    NotNextError,
)
from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from protocol import block as blocks
from protocol import canonical, endorsement
from protocol.block import Block
from protocol.endorsement import Branch, Tree, Vote, approval
from protocol.registry import Client, EndorsementPolicy
from protocol.transaction import PAYLOAD_TYPE, Transaction
from tests import software_keys
from tests.chain_builder import FOR_EVER, LONGEST_VALIDITY, Network, approvals
from tests.software_keys import SoftwareKey

Commit = Callable[..., list[str]]
NewReplica = Callable[[], Replica]


def refused(replica: Replica, block: Block, code: str) -> BlockRefusedError:
    """The refusal of a block that the center signed; nothing is stored."""
    before = (replica.height, replica.authentication, replica.store.digest())
    with pytest.raises(BlockRefusedError) as caught:
        replica.apply(block.encode())
    assert code == caught.value.code, caught.value
    assert before == (replica.height, replica.authentication, replica.store.digest())
    assert before[0] == replica.store.height()
    return caught.value


def signed_with(network: Network, block: Block, trees: Sequence[Tree]) -> Block:
    """The block with other votes, under a header that commits to them."""
    return network.rebuilt(block, transactions=block.transactions, trees=trees)


def votes_for(network: Network, transactions: Sequence[Transaction], node: str) -> list[Vote]:
    """The approvals of one node."""
    return [approval(network.name, transaction.id, node) for transaction in transactions]


@pytest.mark.requirement("E-14", "E-16")
def test_a_good_block_is_applied(network: Network, replica: Replica) -> None:
    """A good block moves height, time and authentication data, and its outcome is recorded."""
    wish = network.evidence("pump-7")
    block = network.block(replica, [wish])
    checked = replica.apply(block.encode())
    assert [(wish.id, "valid")] == [(outcome.transaction, outcome.code) for outcome in checked.outcomes]
    assert (1, block.header.time, block.authentication) == (replica.height, replica.time, replica.authentication)
    assert block.encode() == replica.store.block(1)
    event = replica.store.event(1)
    assert event is not None
    assert ((wish.id, "valid"),) == event.outcomes


@pytest.mark.requirement("E-17")
def test_verification_needs_the_chain_alone(network: Network, replica: Replica, new_replica: NewReplica) -> None:
    """A second replica that has block 0 and nothing else accepts all blocks, registry changes included."""
    late = SoftwareKey(software_keys.ecdsa("late client").private)
    network.clients["c3"] = late
    follower = new_replica()
    for wishes in (
        [network.put(Client("c3", late.spki, ""))],
        [network.evidence("by the new client", client="c3")],
        [],
    ):
        line = network.block(replica, wishes).encode()
        replica.apply(line)
        follower.apply(line)
    assert replica.authentication == follower.authentication
    assert replica.store.digest() == follower.store.digest()


class TestStep1:
    """It is for the next height."""

    @pytest.mark.parametrize("height", [0, 1, 3, canonical.MAX_INTEGER])
    def test_another_height_is_not_next(self, network: Network, replica: Replica, commit: Commit, height: int) -> None:
        """Blocks of other heights say which one is expected, and are no reason to halt."""
        commit()
        block = network.forge(network.block(replica, []), height=height)
        with pytest.raises(NotNextError) as caught:
            replica.apply(block.encode())
        assert (caught.value.expected, caught.value.code) == (2, "not-next")


class TestSteps2And3:
    """Bad copies: nobody who matters stands behind them, or the body is another one."""

    def test_no_center_signature(self, network: Network, replica: Replica) -> None:
        """A header that no center signed is a bad copy."""
        block = network.sign(network.block(replica, [network.evidence("x")]), by=[])
        with pytest.raises(BadCopyError, match="0 center signatures where 1 are needed"):
            replica.apply(block.encode())

    def test_a_key_that_is_no_center(self, network: Network, replica: Replica) -> None:
        """A header that somebody else signed besides the center is a bad copy."""
        stranger = network.administrators["admin-1"]
        block = network.sign(network.block(replica, []), by=[network.center, stranger])
        with pytest.raises(BadCopyError, match="which is no center's"):
            replica.apply(block.encode())

    def test_a_signature_of_another_header(self, network: Network, replica: Replica) -> None:
        """The center's signature of another header is a bad copy."""
        block, other = network.block(replica, []), network.block(replica, [network.evidence("x")])
        envelope = msgspec.structs.replace(block.envelope, signatures=other.envelope.signatures)
        with pytest.raises(BadCopyError, match="not by key"):
            replica.apply(block.signed(envelope).encode())

    def test_a_high_s(self, network: Network, replica: Replica) -> None:
        """Centers sign with a low s only."""
        block = network.block(replica, [])
        (signature,) = block.envelope.signatures
        other = msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig))
        with pytest.raises(BadCopyError, match="high s"):
            replica.apply(block.signed(msgspec.structs.replace(block.envelope, signatures=(other,))).encode())

    @pytest.mark.parametrize(
        "changed",
        [
            {"network": "other"},
            {"rules_version": 2},
            {"previous": "ab" * 32},
            {"time": 1},
            {"outcome_root": "ab" * 32},
            {"registry_root": "ab" * 32},
        ],
        ids=lambda changed: next(iter(changed)),
    )
    def test_what_no_center_signed_never_halts(
        self, network: Network, replica: Replica, changed: dict[str, object]
    ) -> None:
        """A source without a center's key cannot halt a replica: whatever it makes up is a bad copy."""
        block = network.block(replica, [])
        header = msgspec.structs.replace(block.header, **changed)
        unsigned = blocks.unsigned(header, block.transactions, block.trees)
        with pytest.raises(BadCopyError):
            replica.apply(unsigned.encode())
        stranger = network.sign(unsigned, by=[software_keys.ecdsa("a stranger")])
        with pytest.raises(BadCopyError):
            replica.apply(stranger.encode())

    def test_another_body(self, network: Network, replica: Replica) -> None:
        """A body that the signed header does not commit to is a bad copy: left out, added, in another order."""
        wishes = [network.evidence("x"), network.evidence("y")]
        block = network.block(replica, wishes)
        for transactions, trees in (
            (wishes[:1], block.trees),
            ([*wishes, network.evidence("z")], block.trees),
            (wishes[::-1], block.trees),
            (wishes, block.trees[:1]),
            (wishes, block.trees[::-1]),
        ):
            copy = blocks.unsigned(block.header, transactions, trees).signed(block.envelope)
            with pytest.raises(BadCopyError, match="not what its header commits"):
                replica.apply(copy.encode())
        assert replica.apply(block.encode()).block.header.height == 1

    def test_another_client_signature_over_the_same_payload(self, network: Network, replica: Replica) -> None:
        """The root data covers client signatures: the same transaction under other signature bytes is a bad copy."""
        wish = network.evidence("x")
        block = network.block(replica, [wish])
        (signature,) = wish.envelope.signatures
        other = msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig))
        twin = Transaction.decode(canonical.encode(msgspec.structs.replace(wish.envelope, signatures=(other,))))
        assert wish.id == twin.id
        copy = blocks.unsigned(block.header, [twin], block.trees).signed(block.envelope)
        with pytest.raises(BadCopyError, match="not what its header commits"):
            replica.apply(copy.encode())

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b"null", b"{" * 5000, b'"\\ud800"'])
    def test_no_block_at_all(self, replica: Replica, data: bytes) -> None:
        """Bytes that are no block are a bad copy."""
        with pytest.raises(BadCopyError, match="no block"):
            replica.apply(data)


class TestSteps4And5:
    """Network, rules, the block before, time."""

    @pytest.mark.parametrize(
        ("changed", "code"),
        [
            ({"network": "other"}, "wrong-network"),
            ({"rules_version": 2}, "unknown-rules"),
            ({"previous": "ab" * 32}, "wrong-previous"),
            ({"time": 1_799_999_999_999}, "time-goes-back"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_signed_lie_is_refused(
        self, network: Network, replica: Replica, changed: dict[str, object], code: str
    ) -> None:
        """What the center signed and must not have signed is refused."""
        refused(replica, network.forge(network.block(replica, []), **changed), code)

    def test_the_same_time_is_no_step_back(self, replica: Replica, commit: Commit) -> None:
        """Two blocks may have one time."""
        commit(time=replica.time)
        assert replica.height == 1

    def test_draft_never_goes_back(self, network: Network, replica: Replica) -> None:
        """A center whose clock went back cuts at the time of the block before."""
        assert network.time == replica.draft(5, [], []).block.header.time

    def test_rules_follow_the_registry(self, network: Network, replica: Replica, commit: Commit) -> None:
        """Once the registry asks for newer rules, a release that does not know them neither cuts nor follows."""
        channel = msgspec.structs.replace(replica.registry.channel, rules_version=2)
        old = Block.decode(network.block(replica, []).encode())
        assert commit(network.put(channel)) == ["valid"]
        with pytest.raises(BlockRefusedError) as caught:
            replica.draft(replica.time, [], [])
        assert caught.value.code == "unknown-rules"
        block = network.forge(old, height=2, previous=replica.authentication, time=replica.time)
        refused(replica, block, "unknown-rules")

    def test_older_rules_than_in_force(
        self, network: Network, replica: Replica, commit: Commit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A release that knows newer rules refuses a block by the old ones once the new ones are in force."""
        old = network.block(replica, [])
        assert commit(network.put(msgspec.structs.replace(replica.registry.channel, rules_version=2))) == ["valid"]
        monkeypatch.setattr(replica_module, "RULES_VERSION", 2)
        block = network.forge(old, height=2, previous=replica.authentication, time=replica.time)
        refused(replica, block, "wrong-rules")


class TestStep6:
    """Network and author of each transaction."""

    def lie(self, network: Network, replica: Replica, wish: Transaction) -> Block:
        """The center puts an endorsed transaction into a block although its author is wrong."""
        return network.rebuilt(network.block(replica, []), transactions=[wish], trees=network.endorse([wish]))

    @pytest.mark.requirement("E-4")
    def test_another_network(self, network: Network, replica: Replica) -> None:
        """A transaction for another network is refused, and named."""
        wish = network.evidence("x", network="other")
        error = refused(replica, self.lie(network, replica, wish), "wrong-network")
        assert wish.id == error.transaction

    @pytest.mark.requirement("E-2", "E-14")
    def test_unknown_client(self, network: Network, replica: Replica) -> None:
        """A client that is not on the whitelist is refused."""
        wish = network.evidence("x", client="mallory", signers=[software_keys.ecdsa("mallory")])
        refused(replica, self.lie(network, replica, wish), "unknown-client")

    @pytest.mark.requirement("E-3", "E-14")
    @pytest.mark.parametrize("signers", [["c2"], ["c1", "c2"], ["c2", "c1"], ["c1", "c1"]], ids="-".join)
    def test_reference_signature(self, network: Network, replica: Replica, signers: list[str]) -> None:
        """The one signature must be the named client's: not another client's, not two."""
        wish = network.evidence("x", client="c1", signers=[network.clients[name] for name in signers])
        refused(replica, self.lie(network, replica, wish), "bad-signature")

    @pytest.mark.requirement("E-3")
    def test_changed_signature(self, network: Network, replica: Replica) -> None:
        """A signature over another payload is refused."""
        wish, other = network.evidence("x"), network.evidence("y")
        forged = msgspec.structs.replace(wish.envelope, signatures=other.envelope.signatures)
        refused(replica, self.lie(network, replica, Transaction.decode(canonical.encode(forged))), "bad-signature")

    @pytest.mark.requirement("S-2")
    def test_clients_cannot_change_the_registry(self, network: Network, replica: Replica) -> None:
        """A client's signature under a registry transaction is refused in a block."""
        wish = network.transaction("registry", "remove", {"keys": ["client/c2"]}, client="c1")
        refused(replica, self.lie(network, replica, wish), "not-authorized")


class TestStep7:
    """The window of validity, and once only."""

    @pytest.mark.requirement("E-4", "M-7")
    @pytest.mark.parametrize(
        ("window", "code"),
        [
            ({"valid_until": 1_800_000_000_500}, "expired"),
            ({"valid_until": 0}, "expired"),
            ({"valid_from": 2}, "not-yet-valid"),
            ({"valid_until": 1_800_000_000_500 + LONGEST_VALIDITY + 1}, "validity-too-long"),
            ({"valid_until": FOR_EVER}, "validity-too-long"),
        ],
        ids=["expired", "never", "early", "long", "for-ever"],
    )
    def test_outside_the_window(self, network: Network, replica: Replica, window: dict[str, Any], code: str) -> None:
        """Blocks at time 1_800_000_000_500 and height 1 refuse what is not valid right there."""
        wish = network.evidence("x", **window)
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=network.endorse([wish]))
        assert wish.id == refused(replica, block, code).transaction

    @pytest.mark.requirement("M-7")
    @pytest.mark.parametrize(
        "window",
        [{"valid_until": 1_800_000_000_501}, {"valid_from": 1}, {"valid_until": 1_800_000_000_500 + LONGEST_VALIDITY}],
        ids=["last-moment", "first-height", "longest"],
    )
    def test_the_edges_of_the_window(self, network: Network, commit: Commit, window: dict[str, Any]) -> None:
        """The last millisecond, the first height and the longest validity are inside."""
        assert commit(network.evidence("x", **window)) == ["valid"]

    @pytest.mark.requirement("M-7")
    def test_twice_in_a_block(self, network: Network, replica: Replica) -> None:
        """One transaction cannot stand twice in a block."""
        wish = network.evidence("x")
        block = network.rebuilt(network.block(replica, []), transactions=[wish, wish], trees=network.endorse([wish]))
        assert wish.id == refused(replica, block, "duplicate").transaction

    @pytest.mark.requirement("M-7", "E-4")
    def test_replay(self, network: Network, replica: Replica, commit: Commit) -> None:
        """What is in the chain does not enter again, not even what was recorded as invalid, nor re-signed."""
        good, bad = network.evidence("x"), network.evidence("x", digest="cd" * 32)
        assert commit(good, bad) == ["valid", "already-recorded"]
        (signature,) = good.envelope.signatures
        other = msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig))
        twin = Transaction.decode(canonical.encode(msgspec.structs.replace(good.envelope, signatures=(other,))))
        for again in (good, bad, twin):
            block = network.rebuilt(
                network.block(replica, []), transactions=[again], trees=network.endorse([again], height=1)
            )
            assert again.id == refused(replica, block, "already-executed").transaction


class TestStep8:
    """The trees and their roots."""

    def test_an_idle_tree(self, network: Network, replica: Replica) -> None:
        """A tree that approves nothing of this block has no place in it."""
        wish, other = network.evidence("x"), network.evidence("y")
        block = network.block(replica, [wish])
        idle = network.tree("device-c", votes_for(network, [other], "C"))
        refused(replica, signed_with(network, block, [*block.trees, idle]), "idle-tree")

    def test_no_votes_in_an_empty_block(self, network: Network, replica: Replica) -> None:
        """A block without transactions carries no votes."""
        idle = network.tree("device-c", votes_for(network, [network.evidence("y")], "C"))
        refused(replica, signed_with(network, network.block(replica, []), [idle]), "idle-tree")

    @pytest.mark.parametrize("index", [1, 65536])
    def test_an_index_beyond_the_block(self, network: Network, replica: Replica, index: int) -> None:
        """A leaf cannot approve a transaction that is not there."""
        block = network.block(replica, [network.evidence("x")])
        (branch,) = block.trees[0].branches
        wide = Tree((msgspec.structs.replace(branch, leaves=(*branch.leaves, index)),))
        refused(replica, signed_with(network, block, [wide, *block.trees[1:]]), "bad-endorsement")

    def test_leaves_that_were_not_signed(self, network: Network, replica: Replica) -> None:
        """Added, dropped or exchanged leaves do not give the root that the head states."""
        wishes = [network.evidence("x"), network.evidence("y")]
        block = network.block(replica, wishes)
        (branch,) = block.trees[0].branches
        for leaves in ((0,), (1, 0), (0, 0), (0, 1, 1), (0, "ab" * 32)):
            other = Tree((msgspec.structs.replace(branch, leaves=leaves),))
            error = refused(replica, signed_with(network, block, [other, *block.trees[1:]]), "bad-endorsement")
            assert "root" in str(error)

    @pytest.mark.requirement("E-10")
    def test_a_reject_cannot_be_counted(self, network: Network, replica: Replica) -> None:
        """A signed reject does not become an approval by writing the index of its transaction."""
        wish = network.evidence("x")
        no = Vote(network=network.name, transaction=wish.id, node="B", verdict="reject", reason="already-spent")
        tree = network.tree("device-b", [no])
        lie = Tree((msgspec.structs.replace(tree.branches[0], leaves=(0,)),))
        block = network.rebuilt(
            network.block(replica, []), transactions=[wish], trees=[*network.endorse([wish], by=("A",)), lie]
        )
        refused(replica, block, "bad-endorsement")

    @pytest.mark.requirement("E-11")
    def test_votes_that_are_elsewhere(self, network: Network, replica: Replica) -> None:
        """Hashes of votes that are not in the block (rejects, carried over) stand beside indices."""
        wish, other = network.evidence("x"), network.evidence("y")
        besides = [approval(network.name, other.id, "A"), approval(network.name, other.id, "B")]
        trees = network.endorse([wish], besides=besides)
        assert replica.apply(network.block(replica, [wish], trees).encode()).outcomes[0].code == "valid"

    def test_a_node_twice_in_one_tree(self, network: Network, replica: Replica) -> None:
        """A node has one branch in a tree."""
        wish = network.evidence("x")
        votes = votes_for(network, [wish], "A")
        tree = network.tree("device-a", votes * 2)
        (branch,) = tree.branches
        half = msgspec.structs.replace(branch, leaves=(0,))
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=[Tree((half, half))])
        assert "twice" in str(refused(replica, block, "bad-endorsement"))


class TestStep9:
    """The heads, and the keys that signed them."""

    def with_head(self, network: Network, replica: Replica, changed: dict[str, object]) -> Block:
        """One transaction approved by B, and by A under a head of which single fields are changed."""
        wish = network.evidence("x")
        first, second = network.endorse([wish])
        (branch,) = first.branches
        head = msgspec.structs.replace(endorsement.decode_head(branch.head), **changed)
        sealed = network.node_keys["A", "device-a"].envelope(endorsement.PAYLOAD_TYPE, canonical.encode(head))
        tree = Tree((msgspec.structs.replace(branch, head=sealed),))
        return network.rebuilt(network.block(replica, []), transactions=[wish], trees=[tree, second])

    @pytest.mark.requirement("E-14", "E-9")
    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"network": "other"}, "on other"),
            ({"device": "device-b"}, "lives on device-a, not on device-b"),
            ({"device": "nowhere"}, "lives on device-a, not on nowhere"),
            ({"node": "B"}, "a head of node B stands over the votes of node A"),
            ({"root": "ab" * 32}, "root abababababababab"),
            ({"size": 2}, "over 2 leaves"),
            ({"height": 1}, "at height 1 in block 1"),
            ({"key": "ab" * 32}, "is not registered for node A"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_head_that_says_something_else(
        self, network: Network, replica: Replica, changed: dict[str, object], reason: str
    ) -> None:
        """A properly signed head counts only for its own node, device, network, tree and an earlier height."""
        error = refused(replica, self.with_head(network, replica, changed), "bad-endorsement")
        assert reason in str(error)

    def test_the_same_head_unchanged_is_good(self, network: Network, replica: Replica) -> None:
        """The head of these tests is refused for what was changed alone: unchanged it is good."""
        wish = network.evidence("x")
        assert replica.apply(network.block(replica, [wish]).encode()).outcomes[0].code == "valid"

    @pytest.mark.requirement("E-14")
    @pytest.mark.parametrize("case", ["stranger", "none", "two", "high-s", "other-keyid", "other-payload"])
    def test_signatures_under_heads(self, network: Network, replica: Replica, case: str) -> None:
        """A head carries one low-s signature by the key that it names."""
        wish = network.evidence("x")
        first, second = network.endorse([wish])
        (branch,) = first.branches
        (signature,) = branch.head.signatures
        stranger = software_keys.ecdsa("a stranger").signature(endorsement.PAYLOAD_TYPE, branch.head.payload)
        other = second.branches[0].head.signatures[0]
        signatures = {
            "stranger": (msgspec.structs.replace(signature, sig=stranger.sig),),
            "none": (),
            "two": (signature, signature),
            "high-s": (msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig)),),
            "other-keyid": (msgspec.structs.replace(signature, keyid="ab" * 32),),
            "other-payload": (msgspec.structs.replace(signature, sig=other.sig),),
        }[case]
        head = msgspec.structs.replace(branch.head, signatures=signatures)
        tree = Tree((Branch("A", branch.leaves, head),))
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=[tree, second])
        refused(replica, block, "bad-endorsement")

    def test_another_payload_type(self, network: Network, replica: Replica) -> None:
        """A head signed as something else is no head."""
        wish = network.evidence("x")
        first, second = network.endorse([wish])
        (branch,) = first.branches
        sealed = network.node_keys["A", "device-a"].envelope(PAYLOAD_TYPE, branch.head.payload)
        tree = Tree((msgspec.structs.replace(branch, head=sealed),))
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=[tree, second])
        assert "payload type" in str(refused(replica, block, "bad-endorsement"))

    @pytest.mark.requirement("E-9", "E-22")
    def test_a_key_of_another_node(self, network: Network, replica: Replica) -> None:
        """A's key cannot vote for B, on whichever device."""
        wish = network.evidence("x")
        for device in ("device-a", "device-b"):
            forged = network.tree(
                device, votes_for(network, [wish], "B"), key_of={"B": network.node_keys["A", "device-a"]}
            ).for_block(approvals(network.name, [wish], "B"))
            trees = [*network.endorse([wish], by=("A",)), forged]
            block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=trees)
            assert "is not registered for node B" in str(refused(replica, block, "bad-endorsement"))

    @pytest.mark.requirement("K-13")
    def test_an_expired_key(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A key counts until its last millisecond of block time, and not in it."""
        end = network.time + 2000
        assert commit(network.put(network.node_entry("A", until=end)), time=end - 1000) == ["valid"]
        wish = network.evidence("x")
        trees = network.endorse([wish], height=1)
        late = network.rebuilt(network.forge(network.block(replica, [], time=end)), transactions=[wish], trees=trees)
        assert "has expired" in str(refused(replica, late, "bad-endorsement"))
        replica.apply(network.block(replica, [wish], trees, time=end - 1).encode())

    @pytest.mark.requirement("K-12", "K-13")
    def test_a_key_before_its_height(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A key counts from its height on, whatever height its head states."""
        assert commit(network.put(network.node_entry("A", since=3))) == ["valid"]
        wish = network.evidence("x")
        early = network.rebuilt(
            network.block(replica, []), transactions=[wish], trees=network.endorse([wish], height=1)
        )
        assert "counts from height 3 on" in str(refused(replica, early, "bad-endorsement"))
        commit()
        assert commit(wish) == ["valid"]

    @pytest.mark.requirement("K-14")
    def test_a_removed_key(self, network: Network, replica: Replica, commit: Commit) -> None:
        """A key that was taken out counts no more from the next block on, even for votes signed before."""
        wish = network.evidence("x")
        trees = network.endorse([wish])
        node = network.node_entry("A")
        fresh = software_keys.ecdsa("A's next key")
        after = msgspec.structs.replace(node, keys=(msgspec.structs.replace(node.keys[0], key=fresh.spki),))
        assert commit(network.put(after)) == ["valid"]
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=trees)
        assert "is not registered for node A" in str(refused(replica, block, "bad-endorsement"))


class TestStep10:
    """The policy in force."""

    @pytest.mark.requirement("E-14", "E-5")
    @pytest.mark.parametrize("by", [(), ("A",), ("C",)], ids=["nobody", "A", "C"])
    def test_too_few(self, network: Network, replica: Replica, by: tuple[str, ...]) -> None:
        """Fewer nodes than the policy asks for are refused, and the missing ones are named."""
        wish = network.evidence("x")
        trees = network.endorse([wish], by=by)
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=trees)
        error = refused(replica, block, "policy-not-met")
        assert wish.id == error.transaction
        assert "missing are" in str(error)

    @pytest.mark.requirement("E-22")
    def test_a_node_counts_once(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A node that signed on all three devices, with three keys in three trees, counts once."""
        network = Network(replicated=True)
        store = ChainStore.create(url_of(tmp_path_factory.mktemp("once") / "chain.db"))
        replica = Replica.create(store, network.genesis())
        wish = network.evidence("x")
        index_of = approvals(network.name, [wish], "ABC")
        trees = [
            network.tree(device, votes_for(network, [wish], "A")).for_block(index_of) for device in network.devices
        ]
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=trees)
        refused(replica, block, "policy-not-met")
        trees.append(network.tree("device-a", votes_for(network, [wish], "B")).for_block(index_of))
        assert replica.apply(network.block(replica, [wish], trees).encode()).outcomes[0].code == "valid"
        store.close()

    def test_no_policy(self, network: Network, replica: Replica) -> None:
        """What no policy speaks of is refused: nobody can endorse it."""
        wish = network.transaction("loans", "take", {})
        block = network.rebuilt(network.block(replica, []), transactions=[wish], trees=network.endorse([wish]))
        refused(replica, block, "no-policy")

    @pytest.mark.requirement("E-5")
    def test_each_transaction_by_its_own_policy(self, network: Network, replica: Replica, commit: Commit) -> None:
        """In one block, the operation's own policy goes before that of the contract."""
        assert commit(network.put(EndorsementPolicy("assets.issue", "ALL"))) == ["valid"]
        issue, record = network.issue("GOLD", {"c1": 5}), network.evidence("x")
        trees = network.endorse([issue, record], height=1)
        block = network.rebuilt(network.block(replica, []), transactions=[issue, record], trees=trees)
        assert issue.id == refused(replica, block, "policy-not-met").transaction
        trees = network.endorse([issue, record], by=("A", "B", "C"), height=1)
        replica.apply(network.block(replica, [issue, record], trees).encode())

    @pytest.mark.requirement("E-14")
    def test_the_policy_of_the_block_before(self, network: Network, replica: Replica) -> None:
        """A policy that is loosened in a block does not yet hold for the other transactions of that block."""
        loosen, wish = network.put(EndorsementPolicy("evidence", "ANY")), network.evidence("x")
        trees = network.endorse([loosen, wish], by=("A",))
        block = network.rebuilt(network.block(replica, []), transactions=[loosen, wish], trees=trees)
        refused(replica, block, "policy-not-met")
        replica.apply(network.block(replica, [loosen]).encode())
        replica.apply(network.block(replica, [wish], network.endorse([wish], by=("A",), height=1)).encode())


class TestStep11:
    """What execution gives."""

    @pytest.mark.requirement("E-16")
    @pytest.mark.parametrize("field", ["outcome_root", "registry_root"])
    def test_another_result(self, network: Network, replica: Replica, field: str) -> None:
        """A header that states another result makes the replica stop, with nothing stored."""
        block = network.forge(network.block(replica, [network.evidence("x")]), **{field: "ab" * 32})
        with pytest.raises(DivergedError, match="do not agree") as caught:
            replica.apply(block.encode())
        assert (caught.value.code, replica.store.height()) == ("diverged", 0)


class TestUnsigned:
    """What a device does before it signs a header."""

    def test_execution_is_reused_and_centers_are_not(self, network: Network, replica: Replica) -> None:
        """A block checked unsigned is not executed again when it comes signed, and its signature is still checked."""
        block = network.block(replica, [network.evidence("x")])
        bare = network.sign(block, by=[])
        first = replica.check(bare, signed=False)
        again = replica.check(block)
        assert first.outcomes is again.outcomes
        assert block.envelope == again.block.envelope
        with pytest.raises(BadCopyError, match="0 center signatures"):
            replica.check(bare)
        with pytest.raises(BadCopyError, match="which is no center's"):
            replica.check(network.sign(block, by=[software_keys.ecdsa("a stranger")]))
        replica.append(again)
        assert block.encode() == replica.store.block(1)

    def test_what_is_cut_is_not_executed_again(self, network: Network, replica: Replica) -> None:
        """The center that drafted a block reuses the execution when it checks the signed block."""
        wish = network.evidence("x")
        drafted = replica.draft(network.time + 1, [wish], network.endorse([wish]))
        assert drafted.outcomes is replica.check(network.sign(drafted.block)).outcomes

    def test_another_body_is_not_taken_for_the_known_one(self, network: Network, replica: Replica) -> None:
        """The same header with another body is a bad copy, also right after the good one was checked."""
        wishes = [network.evidence("x"), network.evidence("y")]
        block = network.block(replica, wishes)
        replica.check(block)
        copy = blocks.unsigned(block.header, wishes[:1], block.trees).signed(block.envelope)
        with pytest.raises(BadCopyError, match="not what its header commits"):
            replica.check(copy)

    def test_lies_are_refused_unsigned_too(self, network: Network, replica: Replica) -> None:
        """Without looking at centers, all other steps hold."""
        wish = network.evidence("x")
        block = network.rebuilt(
            network.block(replica, []), transactions=[wish], trees=network.endorse([wish], by=("A",))
        )
        with pytest.raises(BlockRefusedError, match="is not met by A"):
            replica.check(network.sign(block, by=[]), signed=False)

    def test_append_after_the_replica_moved(self, network: Network, replica: Replica) -> None:
        """What was checked against an older height is not appended."""
        first, second = replica.check(network.block(replica, [])), replica.check(network.block(replica, []))
        replica.append(first)
        with pytest.raises(NotNextError):
            replica.append(second)


class TestDraft:
    """What the center cuts."""

    def test_names_the_transaction_that_has_no_place(self, network: Network, replica: Replica) -> None:
        """The refusal of a draft names the transaction, so that the rest can be cut."""
        good, late = network.evidence("x"), network.evidence("y", valid_until=network.time)
        with pytest.raises(BlockRefusedError) as caught:
            replica.draft(network.time, [good, late], network.endorse([good, late]))
        assert ("expired", late.id) == (caught.value.code, caught.value.transaction)

    def test_never_larger_than_anybody_can_decode(
        self, network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A block that would be too large to be decoded is not cut; the first transaction beyond is named."""
        wishes = [network.evidence(f"x-{n}") for n in range(3)]
        trees = network.endorse(wishes)
        room = sum(len(canonical.encode(tree)) for tree in trees) + 2 * (len(wishes[0].raw) + 1)
        monkeypatch.setattr(replica_module, "BODY_BYTES", room)
        with pytest.raises(BlockRefusedError) as caught:
            replica.draft(network.time, wishes, trees)
        assert ("too-large", wishes[2].id) == (caught.value.code, caught.value.transaction)
        monkeypatch.setattr(replica_module, "BODY_BYTES", room + len(wishes[0].raw) + 1)
        assert replica.draft(network.time, wishes, trees).block.header.transaction_count == 3

    def test_never_more_than_a_header_can_count(
        self, network: Network, replica: Replica, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A block has no more transactions than its header can state."""
        monkeypatch.setattr(replica_module, "MAX_TRANSACTIONS", 1)
        wishes = [network.evidence("x"), network.evidence("y")]
        with pytest.raises(BlockRefusedError) as caught:
            replica.draft(network.time, wishes, network.endorse(wishes))
        assert ("too-large", wishes[1].id) == (caught.value.code, caught.value.transaction)


class TestSimulate:
    """What would become of transactions."""

    @pytest.mark.requirement("E-4", "E-10", "M-7")
    def test_codes(self, network: Network, replica: Replica, commit: Commit) -> None:
        """Each transaction alone gets its stable code, in the order of asking."""
        coin, recorded = network.issue("GOLD", {"c1": 10, "c2": 5}), network.evidence("known")
        spent = network.issue("GOLD", {"c1": 7})
        assert commit(coin, recorded, spent) == ["valid"] * 3
        assert commit(network.transfer([f"{spent.id}:0"], {"c1": 7})) == ["valid"]
        first = f"{coin.id}:0"
        cases = [
            ("valid", network.evidence("new")),
            ("valid", network.transfer([first], {"c2": 10})),
            ("already-executed", recorded),
            ("expired", network.evidence("a", valid_until=replica.time)),
            ("not-yet-valid", network.evidence("a", valid_from=4)),
            ("validity-too-long", network.evidence("a", valid_until=FOR_EVER)),
            ("unknown-contract", network.transaction("loans", "take", {})),
            ("unknown-operation", network.transaction("evidence", "erase", {})),
            ("bad-arguments", network.transaction("evidence", "record", {"subject": 1})),
            ("already-recorded", network.evidence("known")),
            ("unknown-coin", network.transfer([f"{'ab' * 32}:0"], {"c1": 1})),
            ("already-spent", network.transfer([f"{spent.id}:0"], {"c1": 7})),
            ("not-owner", network.transfer([f"{coin.id}:1"], {"c1": 5})),
            ("unbalanced", network.transfer([first], {"c1": 9})),
            ("valid", network.evidence("new")),
        ]
        before = replica.store.digest()
        assert [code for code, _ in cases] == replica.simulate([wish for _, wish in cases])
        assert before == replica.store.digest()

    def test_nothing_asked(self, replica: Replica) -> None:
        """No transactions, no codes."""
        assert replica.simulate([]) == []


class TestAuthorize:
    """The door that intake and devices use."""

    @pytest.mark.requirement("E-2", "E-3")
    def test_codes(self, network: Network, replica: Replica) -> None:
        """Every refusal has its code."""
        stranger = software_keys.ecdsa("a stranger")
        cases = [
            ("wrong-network", network.evidence("x", network="other")),
            ("unknown-client", network.evidence("x", client="mallory", signers=[stranger])),
            ("bad-signature", network.evidence("x", signers=[stranger])),
            ("not-authorized", network.transaction("registry", "put", {"entries": []})),
        ]
        for code, wish in cases:
            with pytest.raises(AuthorizationError) as caught:
                replica.authorize(wish)
            assert code == caught.value.code
        replica.authorize(network.evidence("x"))
