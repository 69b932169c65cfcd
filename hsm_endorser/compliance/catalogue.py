"""Every check of the compliance run by its stable id, in one line each, and the parts in which they are shown."""

from typing import Final

CATALOGUE: Final[dict[str, str]] = {
    "token.leftovers": "what an interrupted run left on the token is removed",
    "mechanisms.offered": "the mechanisms by which a device makes keys and signs are in the module's list",
    "algorithm.works": "a pair is generated on the token, signs, and its public key verifies",
    "algorithm.any": "at least one of the algorithms that the network accepts works",
    "algorithm.variants": "further signature mechanisms of the same key that work",
    "rate.single": "signatures made one by one",
    "rate.list": "signatures made in lists, as a device makes them under load",
    "sessions.parallel": "signatures are under way in several sessions of one process at the same time",
    "sessions.limit": "how many sessions one process can open, up to a bound",
    "sessions.given-back": "closed sessions can be opened again",
    "processes.parallel": "several processes sign at once with one key",
    "visible.made": "a key made by another process is found without starting anew",
    "visible.destroyed": "a key destroyed by another process signs no more",
    "lookup.cost": "finding one key by its id among others",
    "labels.kept": "labels with odd characters are kept, and found again",
    "duplicates.label": "two keys with one label",
    "duplicates.id": "two keys with one id",
    "loss.noticed": "what a signature answers while the token is away",
    "loss.return": "after its return the key signs again",
    "token.objects": "there are as many objects after the run as before it",
    "pin.lockout": "how many wrong PINs the token takes until it locks itself",
}
"""Check id → what is asked."""

PARTS: Final[dict[str, str]] = {
    "mechanisms": "Algorithms",
    "algorithm": "Algorithms",
    "rate": "Signing rate",
    "sessions": "Sessions",
    "processes": "Several processes",
    "visible": "Several processes",
    "lookup": "Many keys",
    "labels": "Labels and ids",
    "duplicates": "Labels and ids",
    "loss": "Loss and return",
    "pin": "PIN",
    "token": "The token afterwards",
}
"""First word of a check id → the part of the report."""
