"""Where a service listens: `unix:/path/to.sock`, or `http://127.0.0.1:8080` on this machine alone."""

import ipaddress
import os
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

MAX_SOCKET_PATH: Final = 107
"""Bytes that the kernel has for the path of a Unix socket (`sun_path`, less the closing zero)."""


class AddressError(ValueError):
    """An address that cannot be used; the message says what to write instead."""


class Address(msgspec.Struct, frozen=True):
    """Either the path of a Unix socket, or a host and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @staticmethod
    def parse(text: str) -> "Address":
        """The address that `text` states; raises `AddressError`."""
        # Not by urlsplit: a path may hold a # or a ?, and a socket beside the meant one must not come of it.
        if text.startswith("unix:") and text.isprintable():
            path = text.removeprefix("unix:")
            path = path[2:] if path.startswith("///") else path
            if path and not path.startswith("//"):
                return Address(path=Path(path))
        try:
            parts = urllib.parse.urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host and port and text.rstrip("/") == f"http://{parts.netloc}" and "@" not in parts.netloc:
            return Address(host=host, port=port)
        raise AddressError(f"{text!r} is no address; write unix:/path/to.sock or http://127.0.0.1:8080")

    @property
    def base_url(self) -> str:
        """What requests to this address start with."""
        return "http://localhost" if self.path else f"http://{self._url_host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_local(self) -> None:
        """Refuse what other machines could reach: nothing travels in clear between machines (requirement S-1)."""
        if not self.is_local:
            raise AddressError(
                f"{self} is reachable from other machines and would carry everything in clear; "
                "until mutual TLS is there, use unix:/path/to.sock or http://127.0.0.1:PORT"
            )

    def within(self, folder: Path) -> "Address":
        """The same address, a relative path being relative to `folder`; without detours by `..`, as people read it."""
        return Address(path=Path(os.path.normpath(folder / self.path))) if self.path else self

    def socket_path(self) -> str:
        """The path of the Unix socket in the form that fits the kernel's limit; raises `AddressError`."""
        absolute = os.path.abspath(self.path or "")  # noqa: PTH100  a socket is not resolved through links
        shortest = min(absolute, os.path.relpath(absolute), key=len)
        if len(os.fsencode(shortest)) > MAX_SOCKET_PATH:
            raise AddressError(f"the path {absolute} is too long for a Unix socket; use a folder with a shorter name")
        return shortest

    @property
    def _url_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"http://{self._url_host}:{self.port}"
