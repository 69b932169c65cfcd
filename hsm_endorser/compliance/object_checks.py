"""Many keys, odd labels, and two of a name."""

import time
from typing import Final

from hsm_endorser.compliance.bench import Bench
from hsm_endorser.compliance.made import LABEL_PREFIX, Key, destroy, fresh_id, fresh_label, half, leftovers
from hsm_endorser.custody.cryptoki import Attribute, ObjectClass, code
from hsm_endorser.custody.errors import ProbeRefusedError
from hsm_endorser.custody.inventory import find
from hsm_endorser.custody.probe_messages import Bytes, Read
from hsm_endorser.token_config import DEFAULT_SECONDS
from hsm_endorser.worker_messages import Failed

A = Attribute
LOOKS: Final = 20
LONG: Final = 255
NOTHING: Final = 1 << 40
"""A number that no object has."""
ODD_LABELS: Final[dict[str, bytes]] = {
    "unicode": (LABEL_PREFIX + "Ключ 密钥 🔑 é").encode(),
    "255 characters": LABEL_PREFIX.encode().ljust(LONG, b"x"),
    "empty": b"",
    "quotes": (LABEL_PREFIX + "\"'`\\;%$&<>").encode(),
    "newline": (LABEL_PREFIX + "two\nlines\tand a tab").encode(),
}


async def lookups(bench: Bench) -> None:
    """Find one key by its id among 1, 10 and 100 of the run's; whatever else the run made is removed before."""
    rows, best = bench.rows, bench.best
    rows.begin("lookup.cost")
    if best is None:
        rows.add("lookup.cost", "not-tested", "nothing", "there is no key that signs")
        return
    await destroy(bench.probe, await leftovers(bench.probe))
    bench.keys.clear()
    effort = bench.effort
    deadline = time.monotonic() + effort.making_seconds
    made = 0
    for count in effort.keys:
        subject = f"{count} key{'s' if count > 1 else ''}"
        rows.begin("lookup.cost", subject)
        while made < count and time.monotonic() < deadline:
            pair = await bench.make(best.algorithm)
            if isinstance(pair, Failed):
                means = f"the token takes no more than {made} such keys beside what it had"
                rows.add("lookup.cost", "info", f"key {made + 1}: {code(pair)}", means, subject=subject)
                return
            bench.keys.setdefault(best.algorithm.name, pair)
            made += 1
        if made < count:
            means = f"only {made} keys were made within {effort.making_seconds:.0f} s"
            rows.add("lookup.cost", "not-tested", "nothing", means, subject=subject)
            return
        objects = len(await find(bench.probe))
        seconds = await _look(bench, bench.keys[best.algorithm.name])
        figures = {"seconds": seconds, "keys": float(count), "objects": float(objects)}
        measured = f"{seconds * 1000:.2f} ms, with {objects} objects on the token"
        if seconds > DEFAULT_SECONDS:
            means = "a device looks for each of its keys when it starts: it will take long, keep few keys on the token"
            rows.add("lookup.cost", "fail", measured, means, subject=subject, figures=figures)
        else:
            means = "a device looks once for each key, when it starts, and keeps the handle"
            rows.add("lookup.cost", "pass", measured, means, subject=subject, figures=figures)


async def _look(bench: Bench, key: Key) -> float:
    """Seconds of one look, without the way to the worker and back."""
    template = half(ObjectClass.PRIVATE_KEY, key.id)
    looks, ways = [], []
    for _ in range(LOOKS):
        start = time.monotonic()
        found = await find(bench.probe, template)
        middle = time.monotonic()
        await bench.probe.call(Read(NOTHING, A.CLASS))  # goes to the worker, and not to the module
        looks.append(middle - start)
        ways.append(time.monotonic() - middle)
        if not found:
            raise ProbeRefusedError("NoSuchKey", "a key that was there is not found by its id any more")
    return max(0.0, min(looks) - min(ways))


async def labels(bench: Bench) -> None:
    """Is a label kept as it was given, and found again?"""
    rows, best = bench.rows, bench.best
    for subject, label in ODD_LABELS.items():
        rows.begin("labels.kept", subject)
        if best is None:
            rows.add("labels.kept", "not-tested", "nothing", "there is no key that signs", subject=subject)
            continue
        made = await bench.maker.pair(bench.probe, best.algorithm, label=label)
        if isinstance(made, Failed):
            means = "refused, and said so: a device's own labels are plain ones such as node/Org1"
            rows.add("labels.kept", "info", code(made), means, subject=subject)
            continue
        private = made.numbers[1]
        read = await bench.probe.value(private, A.LABEL)
        kept = read.value if isinstance(read, Bytes) else b""
        found = await find(
            bench.probe, {int(A.CLASS): half(ObjectClass.PRIVATE_KEY, b"")[A.CLASS], int(A.LABEL): label}
        )
        if isinstance(read, Failed) and label:
            means = "the key has no label now: whoever looks for it by name does not find it"
            rows.add("labels.kept", "fail", f"reading it: {code(read)}", means, subject=subject)
        elif kept != label:
            shown = kept.decode(errors="replace")
            means = "another label than was given, without a word: two names can become one"
            rows.add("labels.kept", "fail", f"reads back as {shown[:60]!r} ({len(kept)} bytes)", means, subject=subject)
        elif private not in found and label:
            means = "read back as given, and not found by it"
            rows.add("labels.kept", "fail", "not found by its label", means, subject=subject)
        else:
            rows.add(
                "labels.kept",
                "pass",
                "kept, and found by it" if label else "kept empty",
                "a name says what it said",
                subject=subject,
            )


async def duplicates(bench: Bench) -> None:
    """Two pairs with one label, and two with one id."""
    rows, best = bench.rows, bench.best
    if best is None:
        for check in ("duplicates.label", "duplicates.id"):
            rows.add(check, "not-tested", "nothing", "there is no key that signs")
        return
    label, id_ = fresh_label(), fresh_id()
    tries: tuple[tuple[str, bytes | None, bytes | None], ...] = (
        ("duplicates.label", label, None),
        ("duplicates.id", None, id_),
    )
    for check, named, numbered in tries:
        rows.begin(check)
        template = {int(A.LABEL): label} if named else {int(A.ID): id_}
        first = await bench.maker.pair(bench.probe, best.algorithm, label=named, id_=numbered)
        second = await bench.maker.pair(bench.probe, best.algorithm, label=named, id_=numbered)
        if isinstance(first, Failed):
            rows.add(check, "not-tested", code(first), "the first of the two could not be made")
        elif isinstance(second, Failed):
            means = "the module keeps names apart"
            rows.add(check, "pass", f"refused: {code(second)}", means)
        else:
            private = half(ObjectClass.PRIVATE_KEY, b"")[A.CLASS]
            found = await find(bench.probe, {int(A.CLASS): private, **template})
            if len(found) < 2:  # noqa: PLR2004  both
                means = "who makes a key by a name that is taken destroys the key that had it: never use one twice"
                rows.add(check, "fail", "accepted, and the first of the two is gone", means)
                continue
            means = (
                "anybody with the PIN can plant a look-alike: a device proves its keys by a challenge, and refuses to "
                "choose between two with one id"
            )
            rows.add(check, "info", f"accepted: {len(found)} private keys are found by it", means)
