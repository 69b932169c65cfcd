"""What a command is to write is looked at before its work: nobody waits for an audit that has nowhere to go."""

from pathlib import Path

import pytest

from cli import writable
from cli.errors import UsageError
from cli.exit_codes import USAGE
from cli.main import main


def test_a_file_in_a_folder_that_is_there_can_be_written(tmp_path: Path) -> None:
    """A new file, one that is there already, and none at all are taken."""
    there = tmp_path / "there"
    there.touch()
    writable.require(tmp_path / "new", there, None)
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize(("name", "reason"), [("folder", "it is a folder"), ("missing/file", "there is no folder")])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """The refusal says which file and why."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=f"{name}: {reason}") as refused:
        writable.require(tmp_path / name)
    assert refused.value.advice == "choose another file"


def test_one_file_cannot_hold_two_documents(tmp_path: Path) -> None:
    """The second would overwrite the first."""
    with pytest.raises(UsageError, match="named for two files"):
        writable.require(tmp_path / "audit", tmp_path / "." / "audit")


def test_the_audit_does_not_begin_when_its_page_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module, which is not there either, is not even looked for."""
    page = tmp_path / "missing" / "audit.html"
    uri = "pkcs11:token=none?module-path=/nowhere/module.so&pin-source=file:pin"
    assert main(["custody", "audit", "--uri", uri, "--html", str(page)]) == USAGE
    assert "cannot write" in capsys.readouterr().err


def test_what_is_no_id_is_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evidence of `abc` is refused by the command, with the form of an id."""
    arguments = ["evidence", "export", "abc", "--network", str(tmp_path), "--output", str(tmp_path / "evidence.json")]
    assert main(arguments) == USAGE
    assert "64 hexadecimal digits" in capsys.readouterr().err
