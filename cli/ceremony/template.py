"""The text of a new plan, with a comment for everything that can be said in it."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

HEAD: Final = """\
# The plan of a key ceremony. Everybody who signs the ceremony reads this file first; its digest is the first thing
# that they sign. Relative paths are relative to this file. Then:
#
#     hsm-endorser ceremony check {name}              a dry run against the real tokens; changes nothing
#     hsm-endorser ceremony run {name} --into DIR     the ceremony; run it again after an interruption
#     hsm-endorser ceremony verify DIR/ceremony/transcript --genesis DIR/genesis.json

network = {network}
administrators_needed = {needed}     # so many sign every step, and every later change of the registry; 2 or more
least_tier = "claimed"        # least assurance of node and center keys: claimed, read-back, probed, attested;
                              # above "claimed" every token is audited during the ceremony
longest_validity_s = 3600     # how far ahead a transaction's valid_until may lie
peers = ["peer-1", "peer-2"]
period_ms = 500               # a block every so often

[lifetimes]                   # days from the start of the ceremony
node = 730
center = 730
ca = 3652
administrator = 1095
device = 3652                 # of an identity key, which never changes: a later device is a new one
"""

ADMINISTRATOR: Final = """
[[administrator]]             # a role holder, with a key of one's own
name = {name}
public_key = {public}    # PEM, or the path of a PEM file; make one: hsm-endorser ceremony key --key {name_bare}.key
# held = "/media/{name_bare}/{name_bare}.key"    where the private key is, if that may stand here; else it is asked for
# held = "pkcs11:token={name_bare}?module-path=/usr/lib/softhsm/libsofthsm2.so"      or on a token of one's own
# environment = {{ SOFTHSM2_CONF = "{name_bare}.conf" }}                             what that token's module needs
"""

DEVICE: Final = """
[[device]]
name = {name}
uri = {uri}
# environment = {{ SOFTHSM2_CONF = "softhsm2.conf" }}    what the module needs, given to nobody else
nodes = [{nodes}]                 # whose keys are generated on this token
{first}# scheme = "ecdsa-p256-sha256"  or "rsa-pkcs1-sha256", "ed25519"; for single keys:
# schemes = {{ "node/{node}" = "rsa-pkcs1-sha256" }}
# deadline_ms = 1000            how long one call to the token may take
# profile = "strict"            by which profile the token is audited
"""

FIRST: Final = """center = "center-1"             # the key that signs blocks is generated here, on one device
ca = "ca"                       # and the key of the CA
"""

POLICY: Final = """
[[policy]]                      # which nodes endorse a transaction type, or a whole contract
type = {type}
expression = {expression}
# distinct_devices = true       a token counts for one node only
# routing = {{ strategy = "replicated" }}    or "partitioned", or {{ strategy = "rotation", sequence = [["a"], ["b"]] }}
"""


def template(
    *, file: str, network: str, needed: int, administrators: Mapping[str, str], devices: Mapping[str, str]
) -> str:
    """The text for administrators (name to public key file) and devices (name to URI; node A lives on the first…)."""
    nodes = _nodes(len(devices))
    parts = [HEAD.format(name=file, network=json.dumps(network), needed=needed)]
    parts += [
        ADMINISTRATOR.format(name=json.dumps(name), name_bare=name, public=json.dumps(public))
        for name, public in administrators.items()
    ]
    for number, (name, uri) in enumerate(devices.items()):
        first = FIRST if number == 0 else ""
        node = nodes[number]
        parts.append(
            DEVICE.format(name=json.dumps(name), uri=json.dumps(uri), nodes=json.dumps(node), node=node, first=first)
        )
    quoted = ", ".join(f"'{node}'" for node in nodes)
    some = f"OutOf({len(nodes) * 2 // 3 or 1}, {quoted})"
    for kind, expression in (("assets", some), ("evidence", some), ("assets.issue", f"AND({quoted})")):
        parts.append(POLICY.format(type=json.dumps(kind), expression=json.dumps(expression)))
    return "".join(parts)


def _nodes(count: int) -> Sequence[str]:
    return [chr(ord("A") + number) if number < 26 else f"N{number + 1}" for number in range(count)]  # noqa: PLR2004  letters
