from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_endorser.errors import PinFileError, UriError
from hsm_endorser.pin import check_pin_file, read_pin
from hsm_endorser.uri import TokenUri

QUERY = "?module-path=/m.so&pin-source=file:/p"


@pytest.mark.requirement("E-18")
def test_reads_every_attribute() -> None:
    """A URI names the token by what RFC 7512 has for it; percent-encoding is undone."""
    text = f"pkcs11:token=my%20token%3b;manufacturer=M;model=v2;serial=0a1b;slot-id=7;object=k;id=%00%ff{QUERY}"
    expected = TokenUri(
        module=Path("/m.so"),
        pin_file=Path("/p"),
        token="my token;",
        manufacturer="M",
        model="v2",
        serial="0a1b",
        slot_id=7,
        object="k",
        id=b"\x00\xff",
    )
    assert expected == TokenUri.parse(text)


@given(
    token=st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=8),
    identity=st.binary(min_size=1, max_size=8),
    path=st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=20),
)
def test_what_is_written_is_read_back(token: str, identity: bytes, path: str) -> None:
    """Formatting and parsing are inverse, whatever stands in the names."""
    uri = TokenUri(module=Path("/lib") / path, pin_file=Path("/pins") / path, token=token, id=identity, serial="1")
    assert uri == TokenUri.parse(uri.format())


@pytest.mark.requirement("S-6")
@pytest.mark.parametrize(
    "text",
    ["pkcs11:token=a?module-path=/m&pin-value=secret-1234", "pkcs11:token=a;pin-value=secret-1234?module-path=/m"],
)
def test_a_pin_in_the_uri_is_refused_without_showing_it(text: str) -> None:
    """`pin-value` is refused, the message says what to write instead, and it does not repeat the PIN."""
    with pytest.raises(UriError, match="pin-source=file:") as caught:
        TokenUri.parse(text)
    assert "secret-1234" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://token", "must start with 'pkcs11:'"),
        (f"pkcs11:{QUERY}", "names no token"),
        ("pkcs11:token=a?pin-source=file:/p", "lacks module-path"),
        ("pkcs11:token=a?module-path=/m&pin-source=|/bin/get-pin", "comes from a file only"),
        ("pkcs11:token=a?module-path=m.so&pin-source=file:/p", "is relative"),
        (f"pkcs11:token=a;token=b{QUERY}", "stands twice"),
        (f"pkcs11:token{QUERY}", "has no value"),
        (f"pkcs11:x-vendor=1;token=a{QUERY}", "is not known"),
        (f"pkcs11:token=a{QUERY}&module-name=softhsm", "is not known"),
        (f"pkcs11:token=%zz{QUERY}", "starts no escape"),
        (f"pkcs11:token=%ff{QUERY}", "is not UTF-8"),
        (f"pkcs11:token={'x' * 33}{QUERY}", "longer than the 32 bytes"),
        (f"pkcs11:slot-id=seven{QUERY}", "no decimal number"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    """What is not accepted is refused with the reason."""
    with pytest.raises(UriError, match=reason):
        TokenUri.parse(text)


def test_relative_names_are_relative_to_the_base() -> None:
    """A configuration file may name its neighbours."""
    uri = TokenUri.parse("pkcs11:token=a?module-path=m.so&pin-source=file:pin", base=Path("/etc/d"))
    assert (Path("/etc/d/m.so"), Path("/etc/d/pin")) == (uri.module, uri.pin_file)


@pytest.mark.requirement("S-6")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o700])
def test_a_pin_file_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The mode must be 0600 or 0400; the message has the line to run, and not the PIN."""
    path = tmp_path / "pin"
    path.write_text("secret-1234\n")
    path.chmod(mode)
    for reader in (check_pin_file, read_pin):
        with pytest.raises(PinFileError, match=f"chmod 600 {path}") as caught:
            reader(path)
        assert "secret-1234" not in str(caught.value)


@pytest.mark.requirement("S-6")
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_pin_file_is_read(tmp_path: Path, mode: int) -> None:
    """The PIN is the file's line without the line feed."""
    path = tmp_path / "pin"
    path.write_text("secret 1234\n")
    path.chmod(mode)
    assert read_pin(path) == "secret 1234"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"one\n", "one line of 4"), (b"1234\n5678\n", "one line"), (b"\xff" * 8, "not UTF-8")]
)
def test_a_pin_file_without_a_pin_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """A PIN file holds one line of text."""
    path = tmp_path / "pin"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(PinFileError, match=reason):
        read_pin(path)


def test_a_missing_pin_file_is_named(tmp_path: Path) -> None:
    """The message names the file that is missing."""
    with pytest.raises(PinFileError, match="nothing-here"):
        check_pin_file(tmp_path / "nothing-here")


def test_a_uri_without_a_pin_source_is_a_locked_token() -> None:
    """The PIN may be left out: it is then entered after each start; the text form gives the same value back."""
    uri = TokenUri.parse("pkcs11:token=a?module-path=/m")
    assert uri.pin_file is None
    assert TokenUri.parse(uri.format()) == uri
