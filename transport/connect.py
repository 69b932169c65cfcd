"""Every connection that a service makes to another starts here."""

import ssl
from typing import Final

import httpx2

from transport.address import Address

CONNECT_SECONDS: Final = 5.0
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing speaks TLS yet. A context that trusts nobody costs nothing; the default one loads all CAs (some 80 ms)."""


def connect(address: Address, *, timeout: float, connections: int = 16) -> httpx2.AsyncClient:
    """A client for the service at `address`; every wait ends after `timeout` seconds."""
    address.require_local()
    transport = httpx2.AsyncHTTPTransport(
        uds=address.socket_path() if address.path else None,
        trust_env=False,
        verify=_NO_TLS,
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
    )
    return httpx2.AsyncClient(
        base_url=address.base_url, transport=transport, timeout=_timeout(timeout), trust_env=False
    )


def connect_blocking(address: Address, *, timeout: float) -> httpx2.Client:
    """Like `connect`, for programs without an event loop."""
    address.require_local()
    path = address.socket_path() if address.path else None
    transport = httpx2.HTTPTransport(uds=path, trust_env=False, verify=_NO_TLS)
    return httpx2.Client(base_url=address.base_url, transport=transport, timeout=_timeout(timeout), trust_env=False)


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
