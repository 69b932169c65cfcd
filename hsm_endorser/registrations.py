"""What the CA's key may sign as registrar: a certified client onto the whitelist, or its new key (E-1, K-12)."""

import hashlib

import msgspec

from hsm_endorser import certificates
from hsm_endorser.certificates import Ca, Certified, Wanted
from hsm_endorser.errors import RefusedError
from ledger.contracts.registry import AddClient
from ledger.contracts.registry_rotation import Announced
from ledger.errors import RegistryError
from ledger.registry_view import RegistryView
from protocol import renewal, rotation
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.keys import PublicKey
from protocol.transaction import TransactionPayload

OPERATIONS = ("add_client", "renew_client")


class Place(msgspec.Struct, frozen=True):
    """Where the chain stands: what is in force for the next block, its height, and the last block's time (ms)."""

    registry: RegistryView
    height: int
    time: int


def check_certified(certified: Certified, proof: Envelope | None, place: Place) -> None:
    """Check that the registry lets this name have this key; raises `RefusedError`.

    A node's key is one that the registry has for it. A client that is on the whitelist gets a certificate for
    another key only on the word of the one that it has.
    """
    key = certified.key
    if place.registry.revocation(key.id) is not None:
        raise RefusedError("revoked", f"key {key.id[:16]}… was revoked; it is certified never again")
    if certified.kind == "node":
        _check_node_key(certified, place)
    elif certified.kind == "client":
        _check_client_key(certified, proof, place)


def check(payload: TransactionPayload, certificate: bytes, ca: Ca, place: Place) -> None:
    """Check that a transaction registers what the certificate says, and nothing else; raises `RefusedError`."""
    if payload.client != ca.name:
        raise RefusedError("wrong-registrar", f"the transaction is by {payload.client!r}, this CA is {ca.name!r}")
    wanted = _added(payload) if payload.operation == "add_client" else _renewed(payload, place)
    certificates.check_issued(certificate, ca.key, ca.certificate, wanted)
    key = PublicKey.load(wanted.key)
    if place.registry.revocation(key.id) is not None:
        raise RefusedError("revoked", f"key {key.id[:16]}… was revoked; it is registered never again")


def _added(payload: TransactionPayload) -> Wanted:
    try:
        asked = msgspec.convert(payload.arguments, AddClient)
    except msgspec.ValidationError as error:
        raise RefusedError("bad-arguments", str(error)) from None
    return Wanted(asked.name, asked.key, asked.certificate, asked.not_before, asked.until)


def _renewed(payload: TransactionPayload, place: Place) -> Wanted:
    try:
        envelope = msgspec.convert(payload.arguments, Announced).announcement
        said = rotation.decode(envelope)
    except (msgspec.ValidationError, ProtocolError) as error:
        raise RefusedError("bad-arguments", str(error)) from None
    kind, _, name = said.holder.partition("/")
    if kind != "client" or said.network != place.registry.channel.network:
        raise RefusedError("bad-arguments", f"the announcement is of {said.holder} in network {said.network}")
    try:
        rotation.verify(envelope, _key_in_force(name, place))
    except ProtocolError as error:
        raise RefusedError("bad-renewal", str(error)) from None
    digest = hashlib.sha256(said.certificate).hexdigest()
    return Wanted(name, said.new, digest, said.not_before, said.until)


def _check_node_key(certified: Certified, place: Place) -> None:
    entry = place.registry.node(certified.name)
    for each in entry.keys if entry else ():
        if each.key == certified.key.spki:
            try:
                place.registry.node_key(
                    certified.name, certified.key.id, device=each.device, height=place.height, time=place.time
                )
            except RegistryError as error:
                raise RefusedError("wrong-key", str(error)) from None
            return
    raise RefusedError("wrong-key", f"the registry has no such key of node {certified.name}")


def _check_client_key(certified: Certified, proof: Envelope | None, place: Place) -> None:
    entry = place.registry.client_entry(certified.name)
    if entry is None or entry.key == certified.key.spki:
        return
    if proof is None:
        raise RefusedError(
            "bad-renewal", f"client {certified.name} has a key: another one is certified on its word alone (renewal)"
        )
    try:
        asked = renewal.verify(proof, _key_in_force(certified.name, place))
    except ProtocolError as error:
        raise RefusedError("bad-renewal", str(error)) from None
    expected = (place.registry.channel.network, certified.name, certified.key.id)
    if (asked.network, asked.client, asked.new) != expected:
        raise RefusedError("bad-renewal", "the client's request is for another network, name or key")


def _key_in_force(name: str, place: Place) -> PublicKey:
    standing = place.registry.client_standing(name)
    if standing is None:
        raise RefusedError("unknown-client", f"client {name} is not on the whitelist")
    lapse = standing.lapse(place.height, place.time)
    if lapse:
        raise RefusedError("revoked" if standing.revoked else "client-expired", lapse)
    return standing.key
