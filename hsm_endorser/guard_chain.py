"""What the chain shows of a device, held against the device's guard: that is how a restored copy is noticed (K-10).

Three things on the chain were signed by the device or are about it: tree heads with their sequence, headers by
a center's key on its token, and the administrators' orders to start its guard anew. A guard that does not know one of
them is not the last one.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import msgspec

from hsm_endorser.errors import GuardError
from hsm_endorser.guard import Guard
from ledger.registry_view import RegistryView
from ledger.replica import CheckedBlock, Replica
from protocol.canonical import KeyId
from protocol.envelope import Envelope

HEADERS_AT_START: Final = 4096
"""How many of the last headers are looked through when a device starts."""


def compare_all(guard: Guard, device: str, replica: Replica) -> None:
    """Hold the whole stored chain against a guard that was just opened; the guard's `trouble` says what came of it."""
    with contextlib.suppress(GuardError):
        guard.require_not_behind(replica.store.device_sequences().get(device, 0))
        _compare_order(guard, device, replica.registry)
        keys = center_keys(device, replica.registry)
        first = max(guard.last_header + 1, guard.headers_since)
        for height, header in _headers(replica, first) if keys else ():
            _compare_header(guard, keys, height, header.authentication, header.header)


def compare(guard: Guard, device: str, checked: CheckedBlock) -> None:
    """Hold one more block against the guard."""
    block = checked.block
    with contextlib.suppress(GuardError):  # it stays in trouble, and says so wherever it is asked to sign
        guard.require_not_behind(checked.sequences.get(device, 0))
        _compare_order(guard, device, checked.registry)
        keys = center_keys(device, checked.registry)
        _compare_header(guard, keys, block.header.height, block.authentication, block.envelope)


def center_keys(device: str, registry: RegistryView) -> frozenset[KeyId]:
    """The keys of centers that the registry places on a device."""
    return frozenset(
        key.id for name, key in registry.centers.items() if (entry := registry.center(name)) and entry.device == device
    )


def _compare_order(guard: Guard, device: str, registry: RegistryView) -> None:
    order = registry.guard_order(device)
    if order is not None:
        guard.require_order(order.digest, order.since)


def _compare_header(guard: Guard, keys: frozenset[KeyId], height: int, authentication: str, envelope: Envelope) -> None:
    if any(signature.keyid in keys for signature in envelope.signatures):
        guard.require_header(height, authentication)


class _SignedHeader(msgspec.Struct, frozen=True):
    authentication: str
    header: Envelope


def _headers(replica: Replica, first: int) -> Iterator[tuple[int, _SignedHeader]]:
    for height in range(replica.height, max(first, replica.height - HEADERS_AT_START + 1) - 1, -1):
        body = replica.store.block(height)
        if body is not None:
            yield height, _header_decoder.decode(body)


_header_decoder = msgspec.json.Decoder(_SignedHeader)
"""Passes over the body of a block without building it; the block was verified when it was stored."""
