import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.disk.grammar import (
    DiskSpec,
    LayerSpec,
    parse,
    parse_rate,
    parse_size,
    parse_switch,
    parse_time,
)
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


@pytest.mark.parametrize(
    ("text", "layers", "disk"),
    [
        ("stats|disk.img", (LayerSpec("stats"),), DiskSpec("file", "disk.img")),
        ("stats:|/a,b=c", (LayerSpec("stats"),), DiskSpec("file", "/a,b=c")),
        (
            "delay:read=2ms,write=5ms|cow:scratch=/tmp/x|file:disk.img,cache=none",
            (
                LayerSpec("delay", {"read": "2ms", "write": "5ms"}),
                LayerSpec("cow", {"scratch": "/tmp/x"}),
            ),
            DiskSpec("file", "disk.img", {"cache": "none"}),
        ),
        ("cow:scratch=a||b|||file:||c", (LayerSpec("cow", {"scratch": "a|b|"}),), "file:||c"),
        ("log:file=a,,b|null:1M", (LayerSpec("log", {"file": "a,b"}),), "null:1M"),
        ("a|b|c", (LayerSpec("a"), LayerSpec("b")), "c"),
    ],
)
def test_layers_stand_in_front_of_their_disk(
    text: str, layers: tuple[LayerSpec, ...], disk: DiskSpec | str
) -> None:
    """A single bar ends a layer, a doubled one is that character; the last part is a disk."""
    spec = parse(text)
    assert spec.layers == layers
    assert spec.alone == (parse(disk) if isinstance(disk, str) else disk)


_words = st.text(st.characters(codec="utf-8"), max_size=12)
_names = st.from_regex(r"[a-z][a-z0-9+.-]{0,6}", fullmatch=True)
_keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)


@given(
    st.builds(
        DiskSpec,
        _names,
        _words,
        st.dictionaries(_keys, _words, max_size=4),
        st.lists(
            st.builds(LayerSpec, _names, st.dictionaries(_keys, _words, max_size=3)), max_size=3
        ).map(tuple),
    )
)
def test_a_spec_reads_back_as_it_was_written(spec: DiskSpec) -> None:
    """`str` and `parse` are inverses for every body and value there is."""
    assert parse(str(spec)) == spec


@given(st.text(st.sampled_from("ab:|,=.- "), max_size=24))
def test_any_text_is_a_disk_or_a_mistake(text: str) -> None:
    """Nothing is half understood: what is read is written, and read as the same again."""
    try:
        spec = parse(text)
    except VhostBlkError:
        return
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty name is no disk: write a path, or scheme:body"),
        ("file:a,b", "'b' is not an option: write key=value, and a comma in a name twice"),
        ("file:a,", "'' is not an option"),
        ("file:a,=x", "'=x' is not an option"),
        ("file:a,cache=none,cache=none", "option 'cache' is given twice"),
        ("cow:x|file:y", r"'x' is not an option: a layer has only such: write cow:key=value; "),
        ("file:x|zeroes", r"'x' is not an option.*; a disk comes last, layers before it$"),
        ("file:a.img|b.img", r"'a.img' is not an option: a layer has only such"),
        ("cow:a=1,|file:y", r"'' is not an option: a layer has only such"),
        ("cow:a=1,a=2|file:y", r"option 'a' is given twice"),
        ("stats|", r"nothing is behind the last bar: write a disk there, e.g. stats\|disk.img"),
        ("|disk.img", r"'' in front of a bar is not a layer: write layer:key=value,…\|disk"),
        ("/tmp/a|b", r"'/tmp/a' in front of a bar is not a layer.*write file:/tmp/a\|\|b"),
        ("a,b=c|d", r"'a,b=c' in front of a bar is not a layer.*write file:a,,b=c\|\|d"),
        ("/a||b", r"a plain path has no bar: for a file of that name write file:/a\|\|b"),
        ("stats|a||b", r"a plain path has no bar: for a file of that name write file:a\|\|b"),
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


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("0", 0),
        ("0s", 0),
        ("7ns", 7),
        ("50us", 50_000),
        ("2ms", 2_000_000),
        ("1.5s", 1_500_000_000),
        ("0.25us", 250),
        ("1m", 60_000_000_000),
    ],
)
def test_times_have_a_unit(text: str, time: int) -> None:
    """Nanoseconds come of it, exactly; only nothing needs no unit."""
    assert parse_time(text, "read") == time


@pytest.mark.parametrize("text", ["", "2", "ms", "-1s", "1.s", "1e3s", "2 ms", "2MS", "٣s", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """A number alone could be anything."""
    with pytest.raises(VhostBlkError, match=f"read={text}: not a time: write 0, 50us, 2ms or 1.5s"):
        parse_time(text, "read")


def test_a_time_ends_with_the_day() -> None:
    """What is longer is a mistake, and would not fit everywhere."""
    assert parse_time("1440m", "read") == 86_400 * 10**9
    with pytest.raises(VhostBlkError, match="too long: write a day"):
        parse_time("86401s", "read")


@pytest.mark.parametrize(
    ("text", "base", "rate"),
    [
        ("0", 1000, 0),
        ("500", 1000, 500),
        ("10K", 1000, 10_000),
        ("1.5k/s", 1000, 1500),
        ("2G", 1000, 2 * 10**9),
        ("100M", 1024, 100 << 20),
        ("0.5K/s", 1024, 512),
    ],
)
def test_rates_are_so_many_a_second(text: str, base: int, rate: int) -> None:
    """What K is depends on what is counted."""
    assert parse_rate(text, "iops", base=base) == rate


@pytest.mark.parametrize("text", ["", "K", "-1", "1T", "1/m", "1 K", "9" * 30, "1.K", "inf"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Nothing is guessed of a number that is not one."""
    with pytest.raises(VhostBlkError, match=r"iops=.*: not a rate: write a number, or 10K, 1.5M"):
        parse_rate(text, "iops")


def test_a_rate_is_not_rounded_to_none() -> None:
    """Zero says that there is no limit, so less than one is refused, however zero is written."""
    assert [parse_rate(text, "iops") for text in ("0", "0.0", "0K/s", "0.001K")] == [0, 0, 0, 1]
    for text in ("0.5", "0.0009K"):
        with pytest.raises(VhostBlkError, match="too small: write 1 a second or more, or 0"):
            parse_rate(text, "iops")


def test_a_rate_has_a_largest() -> None:
    """More than that a second is no limit, and would not be counted rightly."""
    assert parse_rate("8192G", "bps", base=1024) == 1 << 43
    with pytest.raises(VhostBlkError, match="too large: write 8796093022208 a second at most"):
        parse_rate("8193G", "bps", base=1024)
    with pytest.raises(VhostBlkError, match="too large: write 10 a second at most"):
        parse_rate("11", "iops", most=10)


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
