"""Hardware or software? By what a token says of itself, and what nobody knows is software (requirement K-5).

A token could say anything: only an attestation by its vendor is proof. The list makes no key better than its tier, it
keeps software from being taken for hardware.
"""

from typing import Final

import msgspec

from hsm_endorser.custody.probe_messages import TokenInfo

SOFTWARE: Final = (
    ("softhsm", "SoftHSM keeps its keys in files"),
    ("mozilla foundation", "NSS softokn keeps its keys in a database"),
    ("nss ", "NSS softokn keeps its keys in a database"),
    ("softtok", "the soft token of opencryptoki keeps its keys in files"),
    ("opencryptoki", "a token of opencryptoki that is not known as hardware"),
    ("kryoptic", "Kryoptic keeps its keys in a database"),
    ("sw   tpm", "a TPM in software (swtpm)"),
    ("sw tpm", "a TPM in software (swtpm)"),
    ("swtpm", "a TPM in software (swtpm)"),
    ("simulator", "a simulator"),
    ("gnome keyring", "GNOME Keyring keeps its keys in files"),
)
"""What the words of a token contain, in small letters, when it is software."""
HARDWARE: Final = (
    ("yubico", "a YubiKey or YubiHSM"),
    ("safenet", "a Thales Luna or SafeNet device"),
    ("thales", "a Thales device"),
    ("gemalto", "a Thales device"),
    ("ncipher", "an Entrust nShield"),
    ("entrust", "an Entrust nShield"),
    ("utimaco", "a Utimaco device"),
    ("marvell", "a Marvell LiquidSecurity device"),
    ("cavium", "a Marvell LiquidSecurity device"),
    ("nitrokey", "a Nitrokey"),
    ("cardcontact", "a SmartCard-HSM"),
    ("infineon", "an Infineon TPM or card"),
    ("stmicro", "an STMicroelectronics TPM"),
    ("nuvoton", "a Nuvoton TPM"),
    ("sansec", "a Sansec device"),
)
"""What the manufacturer's name contains when the token is hardware; the slot must call itself a hardware slot, too."""
TPM_MAKERS: Final = ("infineon", "stmicro", "nuvoton")
HW_SLOT: Final = 0x4


class Nature(msgspec.Struct, frozen=True):
    """What a token is taken for, and why."""

    software: bool
    why: str


def nature(info: TokenInfo) -> Nature:
    """Software unless it is known as hardware."""
    said = f"{info.manufacturer} / {info.model} / {info.slot_description} / {info.slot_manufacturer}".lower()
    library = f"{info.library_manufacturer} / {info.library}".lower()
    if (info.manufacturer.lower(), info.model.lower()) == ("ibm", "soft"):
        return Nature(software=True, why="the soft token of opencryptoki keeps its keys in files")
    for word, why in SOFTWARE:
        if word in said or (word in library and word in {"softhsm", "nss "}):
            return Nature(software=True, why=why)
    maker = info.manufacturer.lower()
    for word, why in HARDWARE:
        if word in maker:
            if info.slot_flags & HW_SLOT or word in TPM_MAKERS:
                return Nature(software=False, why=f"{why}, by what it says of itself")
            return Nature(software=True, why=f"{why} by its name, in a slot that does not call itself hardware")
    return Nature(software=True, why="a token that is not known as hardware counts as software")
