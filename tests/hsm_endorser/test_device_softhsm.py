import os
import stat
import subprocess
from pathlib import Path

import pytest

from softhsm import installation
from softhsm.installation import SoftHSMError, find
from softhsm.tokens import create_pin_file, create_token
from tests.hsm_endorser.device_world import new_token


def test_a_token_is_made_in_the_given_folder(tmp_path: Path) -> None:
    """The token's objects lie under the folder, and the URI names it by label and serial."""
    token = new_token(tmp_path / "here", "my token")
    stores = list((tmp_path / "here" / "tokens").iterdir())
    assert len(stores) == 1
    assert f"token=my%20token;serial={token.created.serial}?" in token.created.uri
    assert token.created.environment == {"SOFTHSM2_CONF": str(tmp_path / "here" / "softhsm2.conf")}


def test_two_tokens_of_one_name_have_two_serials(tmp_path: Path) -> None:
    """The serial that is returned is that of the token which was just made."""
    one, two = new_token(tmp_path, "same"), new_token(tmp_path, "same")
    assert one.created.serial != two.created.serial


@pytest.mark.requirement("S-6")
def test_pins_are_typed_not_passed(tmp_path: Path) -> None:
    """softhsm2-util gets no PIN in its arguments or environment: a stand-in that looks at both finds none."""
    spy = tmp_path / "spy"
    real = find()
    log = tmp_path / "log"
    spy.write_text(f'#!/bin/sh\nenv >> {log}\necho "$@" >> {log}\nexec {real.util} "$@"\n')
    spy.chmod(0o755)
    for name in ("pin", "so-pin"):
        create_pin_file(tmp_path / name)
    create_token(tmp_path, "t", tmp_path / "pin", tmp_path / "so-pin", installation=find(util=spy))
    seen = log.read_text()
    assert "--init-token" in seen
    for name in ("pin", "so-pin"):
        assert (tmp_path / name).read_text().strip() not in seen


@pytest.mark.requirement("S-6")
def test_a_new_pin_file_is_private(tmp_path: Path) -> None:
    """A PIN file is made with mode 0600 and never over another."""
    create_pin_file(tmp_path / "pin")
    assert stat.S_IMODE((tmp_path / "pin").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_pin_file(tmp_path / "pin")


def test_the_machines_default_store_is_untouched(tmp_path: Path) -> None:
    """Making a token does not look at the environment's own SoftHSM configuration."""
    other = tmp_path / "default"
    (other / "tokens").mkdir(parents=True)
    (other / "softhsm2.conf").write_text(f"directories.tokendir = {other / 'tokens'}\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(other / "softhsm2.conf")
    try:
        new_token(tmp_path / "mine")
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
    assert list((other / "tokens").iterdir()) == []


def test_without_softhsm_the_line_to_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is installed, the error is the exact line to run."""
    monkeypatch.setattr(installation, "ROOTS", ())
    monkeypatch.setattr(installation, "BESIDE_THE_PROJECT", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SoftHSMError, match="run: sudo apt-get install softhsm2"):
        find()
    with pytest.raises(SoftHSMError, match=r"/no/such\.so does not exist"):
        find(Path("/no/such.so"))


def test_an_unpacked_package_beside_the_project_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The unpacked copy is preferred to the machine's own."""
    real = find()
    for path, target in (("usr/lib/softhsm/libsofthsm2.so", real.module), ("usr/bin/softhsm2-util", real.util)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).symlink_to(target)
    monkeypatch.setattr(installation, "BESIDE_THE_PROJECT", tmp_path)
    assert find().module == tmp_path / "usr/lib/softhsm/libsofthsm2.so"
    assert subprocess.run([find().util, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def test_a_pin_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """PINs have at least four characters; the message names the file."""
    (tmp_path / "pin").write_text("123\n")
    create_pin_file(tmp_path / "so-pin")
    with pytest.raises(SoftHSMError, match="4 to 255 bytes"):
        create_token(tmp_path, "t", tmp_path / "pin", tmp_path / "so-pin")
