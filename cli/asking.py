"""Asks the peers of a network folder, one after another, until one answers."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2

from cli.api import Peer
from cli.errors import UnreachableError, UsageError
from cli.plan import Layout, read_network

T = TypeVar("T")


def ask_peers(network: Path, ask: Callable[[Peer], T], *, only: str = "") -> tuple[str, T]:
    """The first peer that answers, or the one named, and its answer.

    Raises `UsageError` for a name that is no peer's, `UnreachableError` when none answers, `ProblemError` when the
    first that answers refuses.
    """
    names = read_network(network).peers
    if only and only not in names:
        raise UsageError(f"{network} has no peer {only}", advice=f"its peers are {', '.join(names)}")
    for name in [only] if only else names:
        try:
            with Peer(Layout(network).socket(name)) as peer:
                return name, ask(peer)
        except (httpx2.TransportError, UnreachableError):
            continue
    who = f"peer {only}" if only else "no peer"
    raise UnreachableError(
        f"{who} of {network} {'does not answer' if only else 'answers'}",
        advice=f"start the network: hsm-endorser network up {network}",
    )
