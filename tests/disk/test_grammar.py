import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.disk.grammar import DiskSpec, parse, parse_size, parse_switch
from vhostblk.errors import VhostBlkError


@pytest.mark.parametrize(
    "text",
    ["disk.img", "/dev/vg/lv", "./memory:1", "a,cache=none", "A:b", "/x:y,,z", "-", "1:2", "ü:x"],
)
def test_a_plain_path_is_taken_as_it_is(text: str) -> None:
    """What does not begin with a scheme is a path to its last character, commas and all."""
    assert parse(text) == DiskSpec("file", text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("memory:4G", DiskSpec("memory", "4G")),
        ("file:a,,b.img", DiskSpec("file", "a,b.img")),
        ("file:a,,,cache=none", DiskSpec("file", "a,", {"cache": "none"})),
        ("file:a:b=c", DiskSpec("file", "a:b=c")),
        ("file:a||b", DiskSpec("file", "a|b")),
        ("nbd+exec:x,y=1,,2,z=", DiskSpec("nbd+exec", "x", {"y": "1,2", "z": ""})),
        ("python:m:C,a=b=c,n-o=1", DiskSpec("python", "m:C", {"a": "b=c", "n-o": "1"})),
    ],
)
def test_a_scheme_has_a_body_and_options(text: str, spec: DiskSpec) -> None:
    """A doubled comma is a comma, a single one separates; the first = of an option counts."""
    assert parse(text) == spec


_words = st.text(st.characters(codec="utf-8"), max_size=12)
_keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)


@given(
    st.builds(
        DiskSpec,
        st.from_regex(r"[a-z][a-z0-9+.-]{0,6}", fullmatch=True),
        _words,
        st.dictionaries(_keys, _words, max_size=4),
    )
)
def test_a_spec_reads_back_as_it_was_written(spec: DiskSpec) -> None:
    """`str` and `parse` are inverses for every body and value there is."""
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty name is no disk: write a path, or scheme:body"),
        ("file:a,b", "'b' is not an option: write key=value, and a comma in a name twice"),
        ("file:a,", "'' is not an option"),
        ("file:a,=x", "'=x' is not an option"),
        ("file:a,cache=none,cache=none", "option 'cache' is given twice"),
        ("cow:x|file:y", r"layers \(\|\) are not available; write \|\| for a bar"),
        ("cow|y", r"layers \(\|\) are not available; for a file of that name write file:cow\|\|y"),
    ],
)
def test_what_is_not_of_the_form_says_what_to_write(text: str, message: str) -> None:
    """Each fault is one line that says what to write instead."""
    with pytest.raises(VhostBlkError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        ("1t", 1 << 40),
        ("2P", 2 << 50),
        ("7E", 7 << 60),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    """Bytes without a suffix, powers of 1024 with one, in either case."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "1GB", " 1", "1 ", "0x10", "1\n", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed of a number that is not one."""
    with pytest.raises(VhostBlkError, match=r"memory size .* is not a size: write bytes, or 512M"):
        parse_size(text, "memory size")


@pytest.mark.parametrize("text", ["8E", "9223372036854775807", "9" * 30])
def test_a_size_beyond_file_offsets_is_refused(text: str) -> None:
    """A disk is smaller than 8 EiB: offsets are signed 64-bit numbers."""
    with pytest.raises(VhostBlkError, match="too large"):
        parse_size(text)


def test_a_switch_is_on_or_off() -> None:
    """Nothing else is taken for either."""
    assert parse_switch("on", "discard") is True
    assert parse_switch("off", "discard") is False
    with pytest.raises(VhostBlkError, match="discard=yes: write discard=on or discard=off"):
        parse_switch("yes", "discard")


def test_an_option_from_elsewhere_may_not_contradict() -> None:
    """An option can be added or repeated, but not said in two ways."""
    spec = parse("file:x,cache=none")
    assert spec.with_option("read-only", "on").options == {"cache": "none", "read-only": "on"}
    assert spec.with_option("cache", "none") == spec
    with pytest.raises(VhostBlkError, match="cache=none here, but cache=writeback elsewhere"):
        spec.with_option("cache", "writeback")
