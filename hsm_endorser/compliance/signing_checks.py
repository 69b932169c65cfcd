"""Which algorithms work on a module, and how fast they sign."""

import secrets
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_endorser.compliance.bench import Bench
from hsm_endorser.compliance.made import ALGORITHMS, Algorithm, Key, fresh_id
from hsm_endorser.compliance.result import LIST
from hsm_endorser.custody.challenge import to_sign, verifies
from hsm_endorser.custody.cryptoki import MechanismFlag, code
from hsm_endorser.custody.inventory import BadPublicKeyError, items, public_key
from hsm_endorser.custody.probe import expect
from hsm_endorser.custody.probe_messages import ListMechanisms, Mechanisms, Several, SignEach
from hsm_endorser.token_config import DEFAULT_SECONDS
from hsm_endorser.worker_messages import Failed

TOO_SLOW_TO_LIST: Final = 4.0
"""Lists that would take longer than this are not tried."""
NAMES: Final = {
    "ecdsa-p256": ("EC_KEY_PAIR_GEN", "ECDSA"),
    "rsa-2048": ("RSA_PKCS_KEY_PAIR_GEN", "RSA_PKCS"),
    "ed25519": ("EC_EDWARDS_KEY_PAIR_GEN", "EDDSA"),
}


async def mechanisms(bench: Bench) -> None:
    """What the module says that it can do."""
    bench.rows.begin("mechanisms.offered")
    reply = expect(await bench.probe.call(ListMechanisms()), Mechanisms)
    if isinstance(reply, Failed):
        bench.rows.add("mechanisms.offered", "fail", code(reply), "the module does not say what it can do")
        return
    bench.offered = {each.number: each for each in reply.mechanisms}
    for algorithm in ALGORITHMS:
        wanted = zip((algorithm.generated_by, algorithm.signs_by), NAMES[algorithm.name], strict=True)
        lacking = [f"CKM_{name}" for mechanism, name in wanted if mechanism.number not in bench.offered]
        signs = bench.offered.get(algorithm.signs_by.number)
        names = " and ".join(f"CKM_{name}" for name in NAMES[algorithm.name])
        trouble = f"lacks {', '.join(lacking)}" if lacking else ""
        if signs and not lacking and signs.trouble:
            trouble = f"{names}; what the second can do is not told: {signs.trouble}"
        elif signs and not lacking and not signs.flags & MechanismFlag.SIGN:
            trouble = f"{names}; the second without CKF_SIGN"
        bench.rows.add(
            "mechanisms.offered",
            "info" if trouble else "pass",
            trouble or names,
            "see algorithm.works: it may work all the same" if trouble else "the list has what is needed",
            subject=algorithm.name,
        )  # fmt: skip


async def algorithms(bench: Bench) -> None:
    """Make a pair of each algorithm and prove it by a signature."""
    for algorithm in ALGORITHMS:
        bench.rows.begin("algorithm.works", algorithm.name)
        await _algorithm(bench, algorithm)
    bench.rows.begin("algorithm.any")
    names = ", ".join(bench.keys)
    if names:
        bench.rows.add("algorithm.any", "pass", names, "devices can have keys of these algorithms on this module")
    else:
        bench.rows.add("algorithm.any", "fail", "none", "no device can run on this module: it signs by nothing needed")


async def _algorithm(bench: Bench, algorithm: Algorithm) -> None:
    rows, name = bench.rows, algorithm.name
    offered = algorithm.generated_by.number in bench.offered and algorithm.signs_by.number in bench.offered
    try:
        key = await bench.make(algorithm)
    except BadPublicKeyError as error:
        rows.add("algorithm.works", "fail", str(error), "the public key cannot be read: nothing could be verified",
                 subject=name)  # fmt: skip
        return
    if isinstance(key, Failed):
        if offered:
            means = "it is in the list of mechanisms, and no key can be made; see whether the session may write keys"
            rows.add("algorithm.works", "fail", f"generation: {code(key)}", means, subject=name)
        else:
            means = "not offered, and not made: take another algorithm for devices on this module"
            rows.add("algorithm.works", "info", f"generation: {code(key)}", means, subject=name)
        return
    message = secrets.token_bytes(32)
    signed = await bench.sign(key, [message], number=await bench.private(key))
    if isinstance(signed, Failed):
        means = "keys are made, and a device cannot sign with them: take another algorithm on this module"
        rows.add("algorithm.works", "fail", f"signing: {code(signed)}", means, subject=name)
        return
    if not verifies(key.public, signed[0], message):
        means = "its signatures do not verify: every endorsement by such a key would be refused"
        rows.add("algorithm.works", "fail", "the signature does not verify", means, subject=name)
        return
    bench.keys[name] = key
    left_out = bench.maker.recipes[name].left_out
    measured = "generated, signed, verified"
    if left_out:
        measured += f"; without {', '.join(left_out)}"
    means = (
        "the module does not take these attributes: see what the custody audit says of them" if left_out else "usable"
    )
    rows.add("algorithm.works", "pass", measured, means, subject=name)
    await _variants(bench, algorithm)


async def _variants(bench: Bench, algorithm: Algorithm) -> None:
    """Mechanisms that a device does not use; tried on a key that is not restricted to one."""
    if not algorithm.variants:
        return
    bench.rows.begin("algorithm.variants", algorithm.name)
    id_ = fresh_id()
    made = await bench.maker.pair(bench.probe, algorithm, id_=id_, restricted=False)
    if isinstance(made, Failed):
        means = "only the device's own mechanism can be used, which is enough"
        bench.rows.add(
            "algorithm.variants", "info", f"an unrestricted key: {code(made)}", means, subject=algorithm.name
        )
        return
    public = (await items(bench.probe, made.numbers[:1]))[0]
    private = made.numbers[1]
    key = Key(algorithm, b"", id_, public_key(public))
    message = secrets.token_bytes(32)
    said = []
    for name, mechanism in algorithm.variants.items():
        data = message if name.startswith(("SHA256", "ECDSA_SHA256")) else _digest(key, message)
        reply = expect(await bench.probe.call(SignEach(mechanism, private, [data])), Several)
        if isinstance(reply, Failed):
            said.append(f"{name} {code(reply)}")
        else:
            said.append(f"{name} {'works' if _verifies(key, name, reply.values[0], message) else 'DOES NOT VERIFY'}")
    means = "not needed: a device hashes by itself and signs by one mechanism"
    bench.rows.add("algorithm.variants", "info", ", ".join(said), means, subject=algorithm.name)


def _digest(key: Key, message: bytes) -> bytes:
    return to_sign(key.public, message)[-hashes.SHA256.digest_size :]


def _verifies(key: Key, name: str, signature: bytes, message: bytes) -> bool:
    if not isinstance(key.public, rsa.RSAPublicKey) or "PSS" not in name:
        return verifies(key.public, signature, message)
    try:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
        key.public.verify(signature, message, pss, hashes.SHA256())
    except InvalidSignature:
        return False
    return True


async def rates(bench: Bench) -> None:
    """How fast each algorithm signs: one by one, and in lists."""
    for name, key in bench.keys.items():
        bench.rows.begin("rate.single", name)
        single = await bench.burst(key, seconds=bench.effort.rate_seconds)
        bench.single_seconds[name] = single.median
        figures = {"per_second": single.rate, "median_seconds": single.median, "slowest_seconds": single.slowest}
        times = f"{single.median * 1000:.2f} ms each, the slowest {single.slowest * 1000:.1f} ms"
        measured = f"{single.rate:,.0f} a second; {times}"
        if single.trouble:
            means = "signatures fail while nothing else happens: each costs the caller an endorsement"
            bench.rows.add("rate.single", "fail", f"{single.trouble}, {single.signatures} good ones", means,
                           subject=name, figures=figures)  # fmt: skip
        elif single.median > DEFAULT_SECONDS:
            means = (
                f"a device gives up after {DEFAULT_SECONDS:g} s and starts a new worker: raise deadline_ms in its "
                "configuration above this, or take a faster token"
            )
            bench.rows.add("rate.single", "fail", measured, means, subject=name, figures=figures)
        else:
            bench.rows.add("rate.single", "pass", measured, "worker and binding included, as a device has it",
                           subject=name, figures=figures)  # fmt: skip
        await _list_rate(bench, name, key, single.median)


async def _list_rate(bench: Bench, name: str, key: Key, single: float) -> None:
    bench.rows.begin("rate.list", name)
    if single * LIST > TOO_SLOW_TO_LIST:
        means = f"{LIST} signatures would take about {single * LIST:.0f} s"
        bench.rows.add("rate.list", "not-tested", "nothing", means, subject=name)
        return
    burst = await bench.burst(key, seconds=bench.effort.rate_seconds, size=LIST)
    figures = {"per_second": burst.rate, "median_seconds": burst.median, "slowest_seconds": burst.slowest}
    measured = f"{burst.rate:,.0f} a second in lists of {LIST}; {burst.median * 1000:.1f} ms a list"
    if burst.trouble:
        bench.rows.add("rate.list", "fail", f"{burst.trouble}, {burst.signatures} good ones",
                       "signatures fail under load", subject=name, figures=figures)  # fmt: skip
    elif burst.median > DEFAULT_SECONDS:
        means = f"a list takes longer than a device's deadline of {DEFAULT_SECONDS:g} s: raise deadline_ms above this"
        bench.rows.add("rate.list", "fail", measured, means, subject=name, figures=figures)
    else:
        means = "about what one device endorses a second, with every signature verified elsewhere"
        bench.rows.add("rate.list", "pass", measured, means, subject=name, figures=figures)
