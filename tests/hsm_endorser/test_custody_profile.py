"""Profiles are data files: what is wrong in one is refused with its file, line and field (K-2)."""

import tomllib
from pathlib import Path

import pytest

from hsm_endorser.custody import profile
from hsm_endorser.custody.advice import ADVICE
from hsm_endorser.custody.catalogue import CATALOGUE
from hsm_endorser.custody.profile import Profile, ProfileError
from protocol.custody import Row, Verdict

SMALL = """\
name = "mine"
title = "What we ask"

[sources.policy]
title = "Key policy"
where = "https://intranet.example/keys"

[controls."KP-7"]
source = "policy"
section = "7.2"
asks = "Keys stay on the token."

[checks."a.one"]
level = "required"
severity = "high"
controls = ["KP-7"]
untested = "finding"

[checks."a.two"]
level = "informative"
severity = "low"
"""
KNOWN = ("a.one", "a.two")


def parse(text: str = SMALL) -> Profile:
    """The profile in a text, as if it stood in mine.toml."""
    return profile.parse(text.encode(), "mine.toml", KNOWN)


def refusal(old: str, new: str) -> str:
    """Why the profile with one text replaced by another is refused."""
    assert SMALL.count(old) == 1
    with pytest.raises(ProfileError) as refused:
        parse(SMALL.replace(old, new))
    return str(refused.value)


def row(check: str, verdict: Verdict) -> Row:
    """A row with nothing but a verdict."""
    return Row(check, "token", "tried", "answer", verdict)


@pytest.mark.requirement("K-2")
@pytest.mark.parametrize("name", profile.names())
def test_each_profile_of_ours_says_how_every_check_counts(name: str) -> None:
    """All checks of the catalogue, every control with a source that has a title and a place."""
    found = profile.load(name)
    assert (found.name, set(found.checks)) == (name, set(CATALOGUE))
    assert all(found.sources[control.source].where for control in found.controls.values())
    used = {control for check in found.checks.values() for control in check.controls}
    assert used == set(found.controls)


def test_there_is_advice_for_every_check() -> None:
    """No finding is shown without what to do about it."""
    assert set(ADVICE) == set(CATALOGUE)


def test_a_survey_finds_nothing_and_code_signing_wants_hardware() -> None:
    """`module-survey` requires no check, `code-signing` requires that the token is known as hardware."""
    assert not any(check.required for check in profile.load("module-survey").checks.values())
    assert profile.load("code-signing").check("token.hardware").required
    assert not profile.load("strict").check("token.hardware").required


def test_the_rsa_check_speaks_to_no_control_that_asks_for_more() -> None:
    """The audit asks for 2048 bits, the code-signing requirements for 3072: a pass must not speak to theirs."""
    controls = profile.load("code-signing").check("key.rsa-size").controls
    assert not [control for control in controls if control.startswith("CSBR")]


def test_a_profile_of_the_users_is_read_from_its_path(tmp_path: Path) -> None:
    """A copy of `strict` under another name counts by the digest of its own bytes."""
    mine = tmp_path / "mine.toml"
    mine.write_text(profile.load("strict").text.replace('name = "strict"', 'name = "mine"'))
    found = profile.load(str(mine))
    assert (found.name, found.digest == profile.load("strict").digest) == ("mine", False)
    assert profile.by_digest(found.digest) is None
    assert profile.by_digest(profile.load("strict").digest) == profile.load("strict")


@pytest.mark.requirement("K-2")
def test_nobody_elses_profile_goes_by_the_name_of_ours(tmp_path: Path) -> None:
    """A lax file that calls itself strict is refused; our own file, wherever it lies, is what it is."""
    lax = tmp_path / "strict.toml"
    lax.write_text(SMALL.replace('"mine"', '"strict"'))
    with pytest.raises(ProfileError, match="is a profile of hsm-endorser, and this is another"):
        profile.load(str(lax), known=KNOWN)
    copy = tmp_path / "copy.toml"
    copy.write_text(profile.load().text)
    assert profile.load(str(copy)).digest == profile.load().digest


def test_a_required_failure_fails_and_an_informative_one_does_not() -> None:
    """What was not tested is no pass where the profile says so, and no rows at all are no pass either."""
    mine = parse()
    assert mine.judge([row("a.one", "pass"), row("a.two", "fail")]) == "pass"
    assert mine.judge([row("a.one", "fail"), row("a.two", "pass")]) == "fail"
    assert mine.judge([row("a.one", "not-tested"), row("a.two", "pass")]) == "not-tested"
    assert mine.judge([row("a.one", "pass"), row("a.two", "not-tested")]) == "pass"
    assert mine.judge([row("a.one", "pass"), row("a.one", "not-tested")]) == "pass"
    assert mine.judge([]) == "not-tested"


@pytest.mark.requirement("K-2")
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('[checks."a.two"]', '[checks."a.tow"]', "mine.toml:19: checks.\"a.tow\": there is no check 'a.tow'"),
        ('level = "required"', 'level = "must"', "mine.toml:14: checks.\"a.one\".level: Invalid enum value 'must'"),
        ('severity = "low"', "severity = 3", 'mine.toml:21: checks."a.two".severity: Expected `str`, got `int`'),
        ('severity = "low"', 'severty = "low"', 'mine.toml:19: checks."a.two": '),
        ('controls = ["KP-7"]', 'controls = ["KP-8"]', "mine.toml:13: checks.\"a.one\": control 'KP-8' is not"),
        ('source = "policy"', 'source = "polcy"', "mine.toml:8: controls.\"KP-7\": source 'polcy' is not defined here"),
        ('title = "Key policy"', "titel = 1", 'mine.toml:4: sources."policy": '),
        ('name = "mine"', "name = 7", "mine.toml:1: name: Expected `str`, got `int`"),
        ('name = "mine"', 'nam = "mine"', "mine.toml: "),
        ('level = "informative"\n', "", 'mine.toml:19: checks."a.two": Object missing required field `level`'),
        ('where = "https', "where = https", "mine.toml: Invalid value (at line 6, column"),
        ('title = "What we ask"', 'title = "What we ask"\nchecks = 3', "mine.toml: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_file_line_and_field(old: str, new: str, expected: str) -> None:
    """Unknown checks, wrong types, misspelt fields, undefined controls and sources, no TOML."""
    assert refusal(old, new).startswith(expected)


@pytest.mark.requirement("K-2")
def test_a_check_that_is_left_out_is_refused() -> None:
    """A profile cannot forget a check: it says so, and how to write it."""
    cut = SMALL[: SMALL.index('[checks."a.two"]')]
    with pytest.raises(ProfileError, match=r"mine\.toml:13: checks: 1 of 2 checks are missing: a\.two; write"):
        parse(cut)


def test_an_unknown_name_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    """Both name what there is to do."""
    with pytest.raises(ProfileError, match="there are code-signing, module-survey, strict"):
        profile.load("strickt")
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        profile.load(str(tmp_path / "none.toml"))
    with pytest.raises(ProfileError, match="at most 256 KiB"):
        profile.parse(b"#" * (300 << 10), "big.toml", KNOWN)
    with pytest.raises(ProfileError, match="byte 0 is not UTF-8"):
        profile.parse(b"\xff", "odd.toml", KNOWN)


def test_the_example_of_the_guide_is_a_profile() -> None:
    """What docs/custody.md shows can be read as it stands, but for the checks that it leaves out."""
    guide = (Path(__file__).parent.parent.parent / "docs" / "custody.md").read_text()
    example = guide.split("```toml\n", 1)[1].split("```", 1)[0]
    assert profile.parse(example.encode(), "guide", tuple(tomllib.loads(example)["checks"])).name == "mine"
