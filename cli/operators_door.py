"""The control listener of a folder's management service, as commands open it."""

from collections.abc import Iterator
from contextlib import contextmanager

from cli.api import Control
from cli.errors import UnreachableError
from cli.plan import Layout, read_network


@contextmanager
def open_door(layout: Layout, advice: str = "start the network: hsm-endorser network up DIR") -> Iterator[Control]:
    """A connection to it; raises `UsageError` where there is no network, `UnreachableError` where nobody listens."""
    read_network(layout.folder)
    address = layout.socket("control")
    try:
        with Control(address) as control:
            yield control
    except UnreachableError:
        raise UnreachableError(f"no management service listens at {address}", advice=advice) from None
