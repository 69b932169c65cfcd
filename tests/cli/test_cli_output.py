"""What commands print of texts that others wrote."""

import pytest

from cli.errors import CommandError
from cli.output import Output, escape

HOSTILE = "anna\x1b[2K\x1b[1A\x9b32m\x07\r\u202egood\u2066"


@pytest.mark.requirement("K-6")
def test_nothing_that_others_wrote_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """A token's label cannot overwrite lines of a report, colour them or reverse their order."""
    output = Output(as_json=False)
    output.plain(HOSTILE)
    output.table("labels", [""], [[HOSTILE]])
    output.warn(HOSTILE)
    output.error(CommandError(HOSTILE, advice=HOSTILE))
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert "anna\\u001b[2K\\u001b[1A\\u009b32m\\u0007\\u000d\\u202egood\\u2066" in text.replace("│\n│ ", "")
        assert not set("\x9b\x07\r\u202e\u2066") & set(text)
        assert "\x1b[2K" not in text


def test_a_table_in_a_pipe_tears_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Where no terminal sets the width, a row of seven columns stands in one line."""
    row: list[object] = ["administrator/admin-1", "0123456789ab…", "device-a", "read-back", "19 to 39", 730, "in force"]
    Output(as_json=False).table("keys", [""] * len(row), [row])
    assert [line for line in capsys.readouterr().out.splitlines() if all(str(cell) in line for cell in row)]


def test_letters_of_all_languages_stay() -> None:
    """What is only to be read is shown as it is, lines and tabs too."""
    assert escape("Schlüssel\tключ\n鍵 ✓ [node]") == "Schlüssel\tключ\n鍵 ✓ \\[node]"
