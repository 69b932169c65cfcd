"""What the custody audit says of each real module: who leaks, who lies, who holds."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from protocol.custody import Row
from tests.modules.conftest import Examiner
from tests.modules.examination import AFTERWARDS, Examined
from tests.modules.matrix import EACH, KNOWN, only

pytestmark = [pytest.mark.modules, pytest.mark.timeout(240)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """The generator of docs/modules.md."""
    spec = importlib.util.spec_from_file_location("modules_table", ROOT / "scripts" / "modules_table.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(found: Examined, check: str) -> list[Row]:
    """The rows of one check; there must be some."""
    some = [row for row in found.audit.rows if row.check == check]
    assert some, f"no row of {check}"
    return some


@EACH
@pytest.mark.requirement("K-5")
def test_verdict_and_tier(examined: Examiner, name: str) -> None:
    """SoftHSM2 passes with probed keys; through p11-kit not everything can be tried; the others have findings."""
    audit, known = examined(name).audit, KNOWN[name]
    assert audit.verdict == known.verdict
    assert {key.tier for key in audit.keys} == {known.tier}
    assert sorted(key.label for key in audit.keys) == sorted(examined(name).generated)


@EACH
@pytest.mark.requirement("K-5")
def test_a_software_token_is_called_one(examined: Examiner, name: str) -> None:
    """All five are, the emulated TPM too, and none is said to meet a standard for hardware."""
    assert examined(name).audit.token.software
    (row,) = rows(examined(name), "token.hardware")
    assert row.verdict == "fail"
    assert "meets neither FIPS 140" in row.reason


@EACH
@pytest.mark.requirement("K-4")
def test_every_public_key_is_proven(examined: Examiner, name: str) -> None:
    """Each private key answered a fresh challenge."""
    proofs = rows(examined(name), "key.challenge")
    assert {row.verdict for row in proofs} == {"pass"}
    assert len(proofs) == len(examined(name).generated)


@EACH
def test_the_audit_leaves_nothing_behind(examined: Examiner, name: str) -> None:
    """There are as many objects on the token as before."""
    assert [row.verdict for row in rows(examined(name), "token.objects")] == ["pass"]


@EACH
def test_refused_templates_leave_nothing_behind(examined: Examiner, name: str) -> None:
    """However often a key was asked for before the module took the template, every object on the token is whole."""
    assert {row.verdict for row in rows(examined(name), "token.strange-objects")} == {"pass"}


@EACH
def test_the_device_goes_on_when_it_was_audited(examined: Examiner, name: str) -> None:
    """The audit attacked the token while the device served; what came after was endorsed and committed."""
    after = examined(name).endorsed_after
    assert after.committed == AFTERWARDS
    assert after.height > examined(name).endorsed.height


@EACH
@pytest.mark.requirement("K-3")
def test_no_module_gives_a_private_value_when_asked(examined: Examiner, name: str) -> None:
    """Reading the value fails everywhere: by that alone, NSS would look as good as the others."""
    assert {row.verdict for row in rows(examined(name), "attack.read")} == {"pass"}


@EACH
@pytest.mark.requirement("K-3")
def test_only_nss_lets_a_private_key_out(examined: Examiner, name: str) -> None:
    """What came out of a wrap was unwrapped and found to be the private half of the public key."""
    assert bool(examined(name).leaks) is (name == "NSS softokn")


@only("NSS softokn")
@pytest.mark.requirement("K-3")
def test_nss_fails_on_the_wrap(examined: Examiner, name: str) -> None:
    """Keys that are sensitive and not extractable come out by AES_CBC_PAD: P-256 and RSA."""
    found = examined(name)
    assert {row.verdict for row in rows(found, "key.sensitive") + rows(found, "key.extractable")} == {"pass"}
    leaks = [row for row in found.leaks if row.check == "attack.wrap" and "AES_CBC_PAD" in row.tried]
    assert {row.answer for row in leaks} == {"CKR_OK"}
    assert len({row.target for row in leaks}) == len(KNOWN[name].schemes)


@only("NSS softokn")
@pytest.mark.requirement("K-3")
def test_nss_believes_an_imported_key(examined: Examiner, name: str) -> None:
    """An imported key has LOCAL true, as the audit asked for; a generated one has LOCAL false."""
    found = examined(name)
    forged = [row for row in rows(found, "attack.import") if "LOCAL" in row.tried]
    assert {(row.verdict, row.answer) for row in forged} == {("fail", "CKR_OK")}
    assert {row.verdict for row in rows(found, "key.local")} == {"fail"}


@EACH
@pytest.mark.requirement("K-3")
def test_only_the_tpm_lets_attributes_be_rewritten(examined: Examiner, name: str) -> None:
    """Elsewhere every change of a key that is not MODIFIABLE was refused."""
    lies = name == "tpm2-pkcs11 on swtpm"
    assert bool(examined(name).rewritten) is lies
    assert ("pass" in {row.verdict for row in rows(examined(name), "attack.flip")}) is not lies


@only("tpm2-pkcs11 on swtpm")
@pytest.mark.requirement("K-3")
def test_the_tpm_lets_attributes_be_rewritten(examined: Examiner, name: str) -> None:
    """SENSITIVE to false and EXTRACTABLE to true are accepted, though the key says that it is not MODIFIABLE."""
    found = examined(name)
    assert {row.verdict for row in rows(found, "key.modifiable")} == {"pass"}
    flipped = {row.tried: row for row in found.rewritten}
    for tried in ("set SENSITIVE to false", "set EXTRACTABLE to true"):
        assert flipped[tried].answer == "CKR_OK"
        assert "proves nothing" in flipped[tried].reason


@only("tpm2-pkcs11 on swtpm")
@pytest.mark.requirement("K-3")
def test_the_tpm_keeps_its_key_inside(examined: Examiner, name: str) -> None:
    """After its attributes were rewritten the value is still not given; and no key that wraps can be made at all."""
    found = examined(name)
    after = [row for row in rows(found, "attack.read") if "after its attributes were changed" in row.tried]
    assert after
    assert {row.verdict for row in after} == {"pass"}
    wraps = rows(found, "attack.wrap")
    assert {row.verdict for row in wraps} == {"not-tested"}, "an attack that never ran is never a pass"
    assert all("no AES key that wraps can be made" in row.reason for row in wraps)


@only("p11-kit remote client")
@pytest.mark.requirement("K-3")
def test_what_the_remote_client_hides_is_not_called_a_pass(examined: Examiner, name: str) -> None:
    """The same SoftHSM2 offers no mechanism that wraps through p11-kit: not tested, and so no key is probed."""
    found = examined(name)
    wraps = rows(found, "attack.wrap")
    assert {row.verdict for row in wraps} == {"not-tested"}
    assert {row.check for row in found.findings} == {"attack.wrap"}


@only("opencryptoki soft token")
@pytest.mark.requirement("K-3")
def test_opencryptoki_keeps_its_key_inside(examined: Examiner, name: str) -> None:
    """Wraps were tried and refused; what it did not take of the template shows in what the attacks could do."""
    found = examined(name)
    wraps = rows(found, "attack.wrap")
    assert "fail" not in {row.verdict for row in wraps}
    assert "CKR_KEY_UNEXTRACTABLE" in {row.answer for row in wraps if row.verdict == "pass"}
    failed = {row.check for row in found.findings if row.verdict == "fail"}
    assert {"attack.mechanism", "attack.destroy", "attack.copy"} <= failed


@EACH
def test_the_committed_table_says_what_was_found(examined: Examiner, name: str, table: ModuleType) -> None:
    """The module's line of verdicts in docs/modules.md; else run scripts/modules_table.py."""
    assert table.verdict_row(examined(name)) in table.PAGE.read_text(encoding="utf-8").splitlines()
