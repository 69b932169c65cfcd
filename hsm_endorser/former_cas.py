"""The CA's keys that another one has followed: to their end they sign nothing but the lists of what they issued."""

from hsm_endorser.certificates import Ca
from ledger.entry_history import versions
from ledger.replica import Replica
from protocol.keys import PublicKey
from protocol.registry import Registrar, decode_entry


def former_cas(replica: Replica) -> list[Ca]:
    """Those that the chain tells of, the latest first, without those that are revoked or past their time. Blocks."""
    found: dict[str, Ca] = {}
    in_force = {key.spki for key in replica.registry.registrars.values()}
    for version in reversed(list(versions(replica.store, "registrar"))):
        entry = None if version.entry is None else decode_entry(version.key, version.entry)
        if not isinstance(entry, Registrar) or entry.key in in_force or replica.time >= entry.until:
            continue
        key = PublicKey.load(entry.key)
        if replica.registry.revocation(key.id) is None:
            found.setdefault(key.id, Ca(entry.name, key, entry.certificate))
    return list(found.values())
