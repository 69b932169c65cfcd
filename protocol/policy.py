"""Endorsement policies in Fabric's syntax (requirement E-5).

    AND('A', 'B')   OR('A', AND('B', 'C'))   OutOf(3, 'A', 'B', 'C', 'D')
    ALL   ANY   MAJORITY   MAJORITY(1/2)   MAJORITY('A', 'B', 'C')   MAJORITY(1/2, 'A', 'B', 'C')

`ALL`, `ANY` and `MAJORITY` without a list speak of all nodes of the channel. A majority is *more than* a share of
them: two thirds unless another share is named (requirement E-15). An outcome is data: who approved, who refused,
who is missing.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Final

import msgspec

from protocol.errors import PolicySyntaxError

MAX_LENGTH: Final = 4096
MAX_DEPTH: Final = 16
DEFAULT_SHARE: Final = Fraction(2, 3)


class PolicyResult(msgspec.Struct, frozen=True):
    """How a policy judges votes. `possible` tells whether the missing nodes could still satisfy it."""

    satisfied: bool
    possible: bool
    approved: tuple[str, ...]
    refused: tuple[str, ...]
    missing: tuple[str, ...]


class Demand(msgspec.Struct, frozen=True):
    """At least `needed` of `nodes` must approve."""

    needed: int
    nodes: frozenset[str]


class _Node(msgspec.Struct, frozen=True):
    name: str


class _OutOf(msgspec.Struct, frozen=True):
    needed: int
    rules: "tuple[_Rule, ...]"


class _Share(msgspec.Struct, frozen=True):
    """More than `share` of the channel's nodes; None stands for all of them, zero for any one."""

    share: Fraction | None


_Rule = _Node | _OutOf | _Share


class Policy(msgspec.Struct, frozen=True):
    """A parsed policy."""

    text: str
    rule: _Rule

    def nodes(self, members: Iterable[str]) -> frozenset[str]:
        """The target nodes: all that the policy may count, in a channel of `members`."""
        everyone = frozenset(members)
        return frozenset(_named(self.rule)) | (everyone if _speaks_of_channel(self.rule) else frozenset())

    def evaluate(self, members: Iterable[str], approved: Iterable[str], refused: Iterable[str]) -> PolicyResult:
        """Judge votes by distinct nodes; who approved and refused counts as refusing (requirement E-22)."""
        everyone = frozenset(members)
        against = frozenset(refused)
        in_favour = frozenset(approved) - against
        targets = self.nodes(everyone)
        missing = targets - in_favour - against
        return PolicyResult(
            satisfied=_holds(self.rule, in_favour, everyone),
            possible=_holds(self.rule, in_favour | missing, everyone),
            approved=tuple(sorted(in_favour & targets)),
            refused=tuple(sorted(against & targets)),
            missing=tuple(sorted(missing)),
        )

    def ways(self, members: Iterable[str]) -> Iterator[tuple[Demand, ...]]:
        """All ways to satisfy the policy: it holds when, and only when, every demand of one of them is met.

        There can be very many, and they are made one by one: who does not know the policy stops after some.
        """
        everyone = frozenset(members)
        open_ends: list[Iterator[_Unfinished]] = [iter([_Unfinished((self.rule, None), None)])]
        while open_ends:
            way = next(open_ends[-1], None)
            if way is None:
                open_ends.pop()
            elif way.rules is None:
                yield _demands(way)
            else:
                open_ends.append(_expand(*way.rules, way.demands, everyone))

    @property
    def meaning(self) -> str:
        """What the policy asks for, in words."""
        return _words(self.rule)

    def minimal(self, members: Iterable[str], available: Iterable[str]) -> tuple[str, ...] | None:
        """A minimal set of `available` nodes whose approval satisfies the policy, or None.

        Nodes that come earlier in `available` are preferred, so that a caller can spread the load.
        """
        everyone = frozenset(members)
        preference = {name: rank for rank, name in enumerate(available)}
        if not _holds(self.rule, frozenset(preference), everyone):
            return None
        chosen = list(preference)
        for name in reversed(list(preference)):
            without = frozenset(chosen) - {name}
            if _holds(self.rule, without, everyone):
                chosen.remove(name)
        return tuple(chosen)


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Policy:
    """The policy that `text` states; raises `PolicySyntaxError` that points at the place."""
    if len(text) > MAX_LENGTH:
        raise PolicySyntaxError(f"the policy has {len(text)} characters where at most {MAX_LENGTH} are allowed")
    parser = _Parser(text)
    rule = parser.rule(MAX_DEPTH)
    parser.end()
    return Policy(text, rule)


def _holds(rule: _Rule, approved: frozenset[str], members: frozenset[str]) -> bool:
    match rule:
        case _Node(name):
            return name in approved
        case _OutOf(needed, rules):
            return sum(_holds(part, approved, members) for part in rules) >= needed
        case _Share(share):
            if share is None:
                return bool(members) and members <= approved
            return len(members & approved) > share * len(members)


class _Unfinished(msgspec.Struct, frozen=True, gc=False):
    """A way on which `rules` are still to be turned into demands; both are linked lists, which ways share."""

    rules: "tuple[_Rule, Any] | None"
    demands: "tuple[Demand, Any] | None"


def _expand(rule: _Rule, rest: Any, demands: Any, members: frozenset[str]) -> Iterator[_Unfinished]:
    """The ways on which `rule` is one rule fewer to look at."""
    match rule:
        case _Node(name):
            yield _Unfinished(rest, (Demand(1, frozenset((name,))), demands))
        case _Share(share):
            needed = len(members) if share is None else math.floor(share * len(members)) + 1
            if members:
                yield _Unfinished(rest, (Demand(needed, members), demands))
        case _OutOf(needed, rules):
            plain = frozenset(part.name for part in rules if isinstance(part, _Node))
            others = [part for part in rules if not isinstance(part, _Node)]
            for count in range(min(needed, len(others)), max(0, needed - len(plain)) - 1, -1):
                left = (Demand(needed - count, plain), demands) if count < needed else demands
                for chosen in itertools.combinations(others, count):
                    linked = rest
                    for part in chosen:
                        linked = (part, linked)
                    yield _Unfinished(linked, left)


def _demands(way: _Unfinished) -> tuple[Demand, ...]:
    found = []
    linked = way.demands
    while linked is not None:
        demand, linked = linked
        found.append(demand)
    return tuple(found)


def _words(rule: _Rule) -> str:
    match rule:
        case _Node(name):
            return f"node {name}"
        case _OutOf(needed, rules):
            parts = [f"({_words(part)})" if isinstance(part, _OutOf) else _words(part) for part in rules]
            if len(parts) == 1:
                return parts[0]
            if needed == len(parts):
                return " and ".join(parts)
            return " or ".join(parts) if needed == 1 else f"at least {needed} of {', '.join(parts)}"
        case _Share(share):
            if share is None:
                return "all nodes of the channel"
            return f"more than {share} of the nodes of the channel" if share else "any one node of the channel"


def _named(rule: _Rule) -> Iterator[str]:
    match rule:
        case _Node(name):
            yield name
        case _OutOf(_, rules):
            for part in rules:
                yield from _named(part)
        case _Share():
            return


def _speaks_of_channel(rule: _Rule) -> bool:
    return isinstance(rule, _Share) or (isinstance(rule, _OutOf) and any(map(_speaks_of_channel, rule.rules)))


_TOKEN: Final = re.compile(
    r"\s*(?:(?P<word>[A-Za-z]+)|'(?P<single>[^'\"]*)'|\"(?P<double>[^'\"]*)\"|(?P<number>[0-9]{1,9})|(?P<mark>[(),/]))"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class _Parser:
    """Recursive descent over one policy text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind = ""
        self._token = ""
        self._start = 0
        self._next()

    def rule(self, depth: int) -> _Rule:
        if depth == 0:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels")
        if self._kind == "name":
            name = self._take("name")
            if not _NAME.match(name):
                raise self._error(f"{name!r} is no node name")
            return _Node(name)
        match self._take("word", "a rule such as AND('A', 'B') or a node name in quotes").upper():
            case "AND":
                rules = self._list(depth)
                return _OutOf(len(rules), rules)
            case "OR":
                return _OutOf(1, self._list(depth))
            case "OUTOF":
                return self._out_of(depth)
            case "ALL":
                return _Share(None)
            case "ANY":
                return _Share(Fraction(0))
            case "MAJORITY":
                return self._majority(depth) if self._token == "(" else _Share(DEFAULT_SHARE)
            case word:
                raise self._error(f"unknown rule {word}; known are AND, OR, OutOf, ALL, ANY, MAJORITY")

    def end(self) -> None:
        if self._kind:
            raise self._error(f"unexpected {self._token!r} after the policy")

    def _list(self, depth: int) -> tuple[_Rule, ...]:
        self._mark("(")
        return self._rest(depth)

    def _rest(self, depth: int) -> tuple[_Rule, ...]:
        rules = [self.rule(depth - 1)]
        while self._token == ",":
            self._mark(",")
            rule = self.rule(depth - 1)
            if isinstance(rule, _Node) and rule in rules:
                raise self._error(f"node {rule.name!r} stands twice in one list, and counts once")
            rules.append(rule)
        self._mark(")")
        return tuple(rules)

    def _out_of(self, depth: int) -> _OutOf:
        self._mark("(")
        needed = int(self._take("number", "how many are needed"))
        self._mark(",")
        rules = self._rest(depth)
        if not 1 <= needed <= len(rules):
            raise self._error(f"OutOf({needed}, …) of {len(rules)} rules can never be met or asks for nothing")
        return _OutOf(needed, rules)

    def _majority(self, depth: int) -> _Rule:
        self._mark("(")
        share = DEFAULT_SHARE
        if self._kind == "number":
            share = self._share()
            if self._token == ")":
                self._mark(")")
                return _Share(share)
            self._mark(",")
        rules = self._rest(depth)
        return _OutOf(math.floor(share * len(rules)) + 1, rules)

    def _share(self) -> Fraction:
        numerator = int(self._take("number", "a share such as 1/2"))
        self._mark("/")
        denominator = int(self._take("number", "a share such as 1/2"))
        if not 0 < numerator < denominator:
            raise self._error(f"the share {numerator}/{denominator} does not lie between 0 and 1")
        return Fraction(numerator, denominator)

    def _mark(self, mark: str) -> None:
        if self._token != mark or self._kind != "mark":
            raise self._error(f"expected {mark!r}, got {self._token or 'the end'!r}")
        self._next()

    def _take(self, kind: str, wanted: str = "") -> str:
        if self._kind != kind:
            raise self._error(f"expected {wanted or kind}, got {self._token or 'the end'!r}")
        token = self._token
        self._next()
        return token

    def _next(self) -> None:
        self._start = self._at
        if not self._text[self._at :].strip():
            self._kind = self._token = ""
            return
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise self._error(f"unexpected {self._text[self._at :].strip()[:10]!r}")
        self._at = match.end()
        group = match.lastgroup or ""
        self._kind = "name" if group in {"single", "double"} else group
        self._token = match[group]

    def _error(self, what: str) -> PolicySyntaxError:
        return PolicySyntaxError(f"{what} (at character {self._start + 1} of {self._text!r})")
