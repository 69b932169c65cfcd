"""An auditor who has read docs/evidence.md and nothing else: a second verifier, without a line of the product's code.

It knows ECDSA P-256 and policies of the form OutOf(k, 'A', …), which is what the tests use. Anything wrong raises.
"""

import base64
import hashlib
import json
import re
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FOR_EVER = (1 << 53) - 1
TIERS = ("claimed", "read-back", "probed", "attested")
FIELDS = (
    "endorsements form handovers header index outcome outcome_path path previous registry registry_count start "
    "transaction transactions trees_root version"
)
TYPE = "application/vnd.hsm-endorser."
Entries = dict[str, Any]


class RefusedError(Exception):
    """What is wrong."""


def need(holds: object, otherwise: str) -> None:
    """Refuse unless it holds."""
    if not holds:
        raise RefusedError(otherwise)


def encode(value: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> Any:
    """A value, when these are its canonical bytes."""
    value = json.loads(data)
    need(encode(value) == data, "not canonical")
    return value


def unbase64(text: str) -> bytes:
    """Bytes, when this is their one form."""
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text, "not canonical base64")
    return data


def sha(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def leaf(data: bytes) -> str:
    """A leaf of RFC 9162."""
    return sha(b"\0" + data)


def node(left: str, right: str) -> str:
    """A node of RFC 9162."""
    return sha(b"\1" + bytes.fromhex(left) + bytes.fromhex(right))


def root(leaves: list[str]) -> str:
    """The root over leaves."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node(root(leaves[:split]), root(leaves[split:]))


def root_of(at: str, index: int, size: int, path: list[str]) -> str:
    """RFC 9162, section 2.1.3.2."""
    need(0 <= index < size, "not in the tree")
    first, last = index, size - 1
    for sibling in path:
        need(re.fullmatch("[0-9a-f]{64}", sibling), "no digest")
        need(last, "the path is too long")
        if first & 1 or first == last:
            at = node(sibling, at)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            at = node(at, sibling)
        first, last = first >> 1, last >> 1
    need(last == 0, "the path is too short")
    return at


def pae(envelope: Any, kind: str) -> bytes:
    """What is signed."""
    need(set(envelope) == {"payload", "payloadType", "signatures"} and envelope["payloadType"] == kind, "envelope")
    payload = unbase64(envelope["payload"])
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def verify(spki: str, signature: str, message: bytes, *, low: bool = True) -> None:
    """An ECDSA signature."""
    key = serialization.load_der_public_key(unbase64(spki))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(unbase64(signature), message, ec.ECDSA(hashes.SHA256()))
    need(not low or utils.decode_dss_signature(unbase64(signature))[1] <= ORDER // 2, "high s")


def key_id(spki: str) -> str:
    """The id of a key."""
    return sha(unbase64(spki))


class Registry:
    """The entries that were shown, and what was shown to be missing."""

    def __init__(self, count: int, shown: list[Any], registry_root: str) -> None:
        self.count, self.places, self.entries = count, {}, {}
        for each in shown:
            need(set(each) == {"entry", "index", "key", "path"}, "fields")
            at = leaf(encode({"entry": each["entry"], "key": each["key"]}))
            found = node(leaf(str(count).encode()), root_of(at, each["index"], count, each["path"]))
            need(found == registry_root, f"{each['key']} is not under the root")
            self.places[each["index"]], self.entries[each["key"]] = each["key"], each["entry"]
        need(list(self.places) == sorted(self.places), "order")
        need(list(self.entries) == sorted(self.entries), "order")
        need(shown, "nothing is shown")

    def get(self, key: str) -> Any:
        """An entry, or None where it is shown to be missing."""
        if key not in self.entries:
            before = max((place for place, other in self.places.items() if other < key), default=-1)
            after = min((place for place, other in self.places.items() if other > key), default=self.count)
            need(after == before + 1, f"{key} may be there")
        return self.entries.get(key)

    def kind(self, kind: str) -> Entries:
        """All entries of a kind, by name."""
        inside = [place for place, key in self.places.items() if key.startswith(kind + "/")]
        before = max((place for place, key in self.places.items() if key < kind + "/"), default=-1)
        after = min((place for place, key in self.places.items() if key >= kind + "0"), default=self.count)
        need(after - before - 1 == len(inside), f"{kind} may be incomplete")
        return {self.places[place].partition("/")[2]: self.entries[self.places[place]] for place in inside}

    def tier(self, device: str, key: str) -> str:
        """What the device's statement says of a key, once it is verified."""
        entry = self.get(f"custody/{device}")
        if entry is None:
            return "claimed"
        statement = decode(unbase64(entry["statement"]))
        identity = self.get(f"device/{device}")["identity"]
        (signature,) = statement["signatures"]
        need(signature["keyid"] == key_id(identity), "signed by another key")
        verify(identity, signature["sig"], pae(statement, "application/vnd.in-toto+json"), low=False)
        audit = decode(unbase64(statement["payload"]))["predicate"]
        need((audit["device"], audit["network"]) == (device, self.get("channel")["network"]), "another's statement")
        return next((each["tier"] for each in audit["keys"] if each["key"] == key), "claimed")

    def in_force(self, held: Any, height: int, time: int) -> bool:
        """Whether a key counts: its lifetime, its device's, revocations, the channel's tier."""
        identity = key_id(held["key"])
        device = self.get(f"device/{held['device']}") if held.get("device") else None
        for each in (held, device or {}):
            if not each.get("since", 0) <= height <= each.get("last", FOR_EVER):
                return False
            if not each.get("not_before", 0) <= time < each.get("until", FOR_EVER):
                return False
        if self.get(f"revocation/{identity}") or (device and self.get(f"revocation/{key_id(device['identity'])}")):
            return False
        least = self.get("channel")["least_tier"]
        return not device or least == "claimed" or self.reaches(held["device"], identity, least)

    def reaches(self, device: str, key: str, least: str) -> bool:
        """Whether a key's tier suffices."""
        return least == "claimed" or TIERS.index(self.tier(device, key)) >= TIERS.index(least)


def header_of(envelope: Any, registry: Registry) -> Any:
    """A header, when enough centers of this registry signed it, each once, and nobody else. The signers' entries."""
    header = decode(unbase64(envelope["payload"]))
    height, time = header["height"], header["time"]
    centers = {
        key_id(each["key"]): each for each in registry.kind("center").values() if registry.in_force(each, height, time)
    }
    signed = [signature["keyid"] for signature in envelope["signatures"]]
    need(len(set(signed)) == len(signed) >= registry.get("channel")["centers_needed"], "signatures")
    for signature in envelope["signatures"]:
        need(set(signature) == {"keyid", "sig"} and signature["keyid"] in centers, "no center's signature")
        verify(centers[signature["keyid"]]["key"], signature["sig"], pae(envelope, TYPE + "header.v1+json"))
    need(header["network"] == registry.get("channel")["network"] and header["rules_version"] == 1, "network or rules")
    return header, [centers[each] for each in signed]


def founding(genesis: bytes) -> tuple[Any, Registry]:
    """Step 3: the first header and registry."""
    block = decode(genesis)
    (transaction,) = block["transactions"]
    entries = {
        "channel" if entry["type"] == "channel" else f"{entry['type']}/{entry['name']}": entry
        for entry in decode(unbase64(transaction["payload"]))["arguments"]["entries"]
    }
    keys = sorted(entries)
    leaves = [leaf(encode({"entry": entries[key], "key": key})) for key in keys]
    header = decode(unbase64(block["header"]["payload"]))
    need(node(leaf(str(len(keys)).encode()), root(leaves)) == header["registry_root"], "the first registry")
    registry = Registry.__new__(Registry)
    registry.count, registry.places, registry.entries = len(keys), dict(enumerate(keys)), entries
    header, _ = header_of(block["header"], registry)
    need(header["height"] == 0 and header["transaction_root"] == node(leaf(encode(transaction)), sha(b"")), "block 0")
    by_administrators(transaction, registry, 0, header["time"])
    return header, registry


def by_administrators(transaction: Any, registry: Registry, height: int, time: int) -> list[Any]:
    """As many administrators as are needed signed, and nobody else."""
    known = {key_id(each["key"]): each for each in registry.kind("administrator").values()}
    signed = {signature["keyid"]: signature["sig"] for signature in transaction["signatures"]}
    need(len(signed) >= registry.get("channel")["administrators_needed"], "too few administrators")
    for identity, signature in signed.items():
        need(identity in known and registry.in_force(known[identity], height, time), "no administrator's key")
        message = pae(transaction, TYPE + "transaction.v1+json")
        verify(known[identity]["key"], signature, message, low=False)
    return [known[each] for each in signed]


def audit(data: bytes, genesis: bytes) -> Any:
    """Steps 1 to 12; the outcome."""
    file = decode(data)
    need(set(file) == set(FIELDS.split()) and file["form"] == "evidence" and file["version"] == 2, "fields")
    last, registry = founding(genesis)
    need(file["start"] == {"authentication": sha(encode(last)), "height": 0}, "another start")
    need(not file["transactions"], "this auditor knows no expired centers")
    for each in [*file["handovers"], None]:
        header, signers = header_of(file["header"] if each is None else each["header"], registry)
        need(header["height"] > last["height"] and header["time"] >= last["time"], "not later")
        need(header["height"] > last["height"] + 1 or header["previous"] == sha(encode(last)), "not the next")
        if each is not None:
            need(set(each) == {"header", "registry", "registry_count", "transactions", "trees_root"}, "fields")
            need(each["transactions"] == [] and each["trees_root"] is None, "this auditor knows no expired centers")
            last, registry = header, Registry(each["registry_count"], each["registry"], header["registry_root"])
    height, time = header["height"], header["time"]

    transaction, outcome = file["transaction"], file["outcome"]
    identity = sha(pae(transaction, TYPE + "transaction.v1+json"))
    place = file["index"], header["transaction_count"]
    tree = root_of(leaf(encode(transaction)), *place, file["path"])
    need(node(tree, file["trees_root"]) == header["transaction_root"], "the transaction")
    need(root_of(leaf(encode(outcome)), *place, file["outcome_path"]) == header["outcome_root"], "the outcome")
    need(outcome["transaction"] == identity, "the outcome of another")

    previous = unbase64(file["previous"])
    need(sha(previous) == header["previous"] and decode(previous)["height"] == height - 1, "the header before")
    registry = Registry(file["registry_count"], file["registry"], decode(previous)["registry_root"])
    need(header_of(file["header"], registry)[1] == signers, "other centers")

    payload = decode(unbase64(transaction["payload"]))
    channel = registry.get("channel")
    need(payload["network"] == channel["network"], "another network")
    need(payload["valid_from"] <= height, "not yet")
    need(time < payload["valid_until"] <= time + channel["longest_validity"], "its time")
    if payload["contract"] == "registry":
        need(not file["endorsements"], "votes")
        need(payload["client"] not in registry.kind("registrar"), "this auditor knows no registrars")
        used = by_administrators(transaction, registry, height, time)
    else:
        author = registry.get(f"client/{payload['client']}")
        (signature,) = transaction["signatures"]
        need(author and registry.in_force(author, height, time), "the author")
        need(signature["keyid"] == key_id(author["key"]), "the author's key")
        verify(author["key"], signature["sig"], pae(transaction, TYPE + "transaction.v1+json"), low=False)
        used = [author, *endorsed(file["endorsements"], registry, identity, payload, header)]
    for each in (*used, *signers):
        need(registry.get(f"revocation/{key_id(each['key'])}") is None, "revoked")
        if each.get("device"):
            registry.tier(each["device"], key_id(each["key"]))
            device = registry.get(f"device/{each['device']}")
            need(registry.get(f"revocation/{key_id(device['identity'])}") is None, "revoked")
    return outcome["code"]


def endorsed(endorsements: list[Any], registry: Registry, transaction: str, payload: Any, header: Any) -> list[Any]:
    """Steps 9 and 10: the keys that voted."""
    height, time = header["height"], header["time"]
    policies = (f"policy/{payload['contract']}.{payload['operation']}", f"policy/{payload['contract']}")
    policy = next((entry for entry in map(registry.get, policies) if entry), None)
    need(policy and not policy["distinct_devices"], "the policy")
    names, used, approved = registry.kind("node"), [], set()
    for place, each in enumerate(endorsements):
        need(set(each) == {"head", "index", "path", "vote"} and each not in endorsements[:place], "fields")
        vote, head = each["vote"], decode(unbase64(each["head"]["payload"]))
        wanted = {"network": payload["network"], "node": head["node"], "reason": "", "transaction": transaction}
        need(vote == {**wanted, "verdict": "approve", "version": 1}, "the vote")
        need(head["network"] == payload["network"] and head["height"] < height, "the head")
        (key,) = [
            held
            for held in names[head["node"]]["keys"]
            if (key_id(held["key"]), held["device"]) == (head["key"], head["device"])
        ]
        need(registry.in_force(key, height, time), "a voting key")
        (signature,) = each["head"]["signatures"]
        need(signature["keyid"] == head["key"], "the head's key")
        verify(key["key"], signature["sig"], pae(each["head"], TYPE + "tree-head.v1+json"))
        need(root_of(leaf(encode(vote)), each["index"], head["size"], each["path"]) == head["root"], "the vote's place")
        used.append(key)
        if registry.reaches(head["device"], head["key"], policy["least_tier"]):
            approved.add(head["node"])
    words = re.fullmatch(r"OutOf\((\d+), (.*)\)", policy["expression"])
    need(words, "this auditor knows no other policies")
    assert words
    need(len(approved & set(re.findall("'(.*?)'", words[2]))) >= int(words[1]), "the policy is not met")
    return used
