"""Tries everything on the private key labelled `victim`, and prints what each attempt came to, as JSON.

A program of its own: the binding takes the environment of its process, and one thread.
"""

import json
import sys
from pathlib import Path

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11 import _pkcs11 as binding

ATTRIBUTES = (
    *("TOKEN", "PRIVATE", "SENSITIVE", "SIGN", "EXTRACTABLE", "MODIFIABLE", "COPYABLE", "DESTROYABLE", "DECRYPT"),
    *("UNWRAP", "DERIVE", "LOCAL", "ALWAYS_SENSITIVE", "NEVER_EXTRACTABLE"),
)
UNMAPPED = {"0x1b": "ActionProhibited", "0x68": "KeyFunctionNotPermitted"}
"""Return codes that the binding has no exception for."""


def attempt(act) -> str:
    """The name of the error, or "OK"."""
    try:
        act()
    except pkcs11.PKCS11Error as error:
        return UNMAPPED.get(str(error).rpartition(" ")[2], type(error).__name__)
    return "OK"


def main() -> None:
    """Attack through a session that is logged in, which is more than an attacker should have."""
    module, pin_file = sys.argv[1:]
    pin = Path(pin_file).read_text().strip()
    token = next(iter(pkcs11.lib(module).get_tokens()))
    session = token.open(rw=True, user_pin=pin)
    victim = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="victim")
    attributes = {name: bool(victim[Attribute[name]]) for name in ATTRIBUTES}
    wrapper = session.generate_key(KeyType.AES, 256, store=False, template={Attribute.WRAP: True})
    point = bytes(session.get_key(object_class=ObjectClass.PUBLIC_KEY, label="victim")[Attribute.EC_POINT])[2:]

    def derive() -> None:
        # The binding hides the method where DERIVE is false; the token must refuse by itself.
        derive_key = binding.DeriveMixin.derive_key
        parameters = (pkcs11.KDF.NULL, None, point)
        derive_key(victim, KeyType.GENERIC_SECRET, 256, mechanism=Mechanism.ECDH1_DERIVE, mechanism_param=parameters)

    def put(attribute, value):
        def act() -> None:
            victim[attribute] = value

        return act

    attempts = {
        "read": lambda: victim[Attribute.VALUE],
        "copy": lambda: victim.copy({Attribute.EXTRACTABLE: True}),
        "plain copy": lambda: victim.copy({Attribute.TOKEN: False}),
        "set EXTRACTABLE": put(Attribute.EXTRACTABLE, True),
        "set SENSITIVE": put(Attribute.SENSITIVE, False),
        "set DERIVE": put(Attribute.DERIVE, True),
        "set ID": put(Attribute.ID, b"other"),
        "set LABEL": put(Attribute.LABEL, "other"),
        "derive": derive,
        "wrap": lambda: wrapper.wrap_key(victim, mechanism=Mechanism.AES_KEY_WRAP),
        "destroy": victim.destroy,
    }
    results = {name: attempt(act) for name, act in attempts.items()}
    sys.stdout.write(json.dumps({"attributes": attributes, "attempts": results}))


if __name__ == "__main__":
    main()
