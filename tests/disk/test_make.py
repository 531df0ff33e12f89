from pathlib import Path

import pytest

from vhostblk.disk.call import Calls, starts_writeback
from vhostblk.disk.file import CacheMode, File, Locking
from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.layer import layers
from vhostblk.disk.make import SCHEMES, beside, make, prepare
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.disk.pause import Pause
from vhostblk.disk.zeroes import Zeroes
from vhostblk.errors import VhostBlkError


def test_a_plain_path_and_file_make_the_same(image: Path) -> None:
    """A path alone is a file: without options."""
    for text in (str(image), f"file:{image}"):
        disk = make(text)
        assert isinstance(disk, File)
        assert disk.path == str(image)
        assert starts_writeback(disk)


def test_file_takes_its_options(image: Path) -> None:
    """Every option reaches the disk."""
    disk = make(f"file:{image},cache=directsync,read-only=on,discard=off,locking=off")
    assert isinstance(disk, File)
    assert not starts_writeback(disk)
    disk.open()
    try:
        info = disk.info()
        assert disk.native().direct
        assert (info.read_only, info.max_discard) == (True, 0)
        other = make(str(image))
        other.open()  # nobody locked it
        other.close()
    finally:
        disk.close()


def test_memory_and_null_take_a_size() -> None:
    """The body is the size, with or without a suffix."""
    assert isinstance(make("memory:4G"), Memory)
    assert Calls(make("memory:1M")).info().size == 1 << 20
    null = make("null:1T,zero=off")
    assert isinstance(null, Null)
    assert Calls(null).info().size == 1 << 40
    assert not null.native().zero


def test_python_makes_what_the_class_makes() -> None:
    """A class by name, its arguments converted."""
    disk = make("python:vhostblk.disk.memory:Memory,size=2M")
    assert isinstance(disk, Memory)
    assert Calls(disk).info().size == 2 << 20


def test_a_spec_is_as_good_as_its_text() -> None:
    """What was parsed elsewhere is taken as it is."""
    assert isinstance(make(parse("null:512")), Null)


def test_layers_are_made_in_front_of_their_disk() -> None:
    """In the order they are written, each with its options; the disk below is made as ever."""
    disk = make("pause:ops=read|zeroes|zeroes:unmap=on|memory:1M")
    outer, first, second = layers(disk)
    assert isinstance(outer, Pause)
    assert isinstance(first, Zeroes)
    assert isinstance(second, Zeroes)
    assert isinstance(second.below, Memory)
    assert outer.settings()["ops"] == "read"
    assert [first.settings()["unmap"], second.settings()["unmap"]] == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "foo:x",
            "no disk has the scheme 'foo' .there are file, memory, null, nbd, nbd.unix, nbds",
        ),
        ("foo:x", "for a file of that name write file:foo:x"),
        ("file:", "something is missing behind the colon: write file:PATH"),
        ("memory:", "something is missing behind the colon: write memory:SIZE"),
        (
            "file:x,cash=none",
            "no option 'cash' for file: .there are cache, discard, io, lock, locking",
        ),
        ("memory:1G,zero=off", "no option 'zero' for memory: .there are memfd"),
        ("file:x,cache=unsafe", "cache=unsafe: write cache= and one of writeback, none, writet"),
        ("file:x,read-only=1", "read-only=1: write read-only=on or read-only=off"),
        ("file:x,lock=never", "lock=never: write lock= and one of always, while-running"),
        ("file:x,io=fast", "io=fast: write io= and one of auto, ring, inline"),
        ("file:x,locking=yes", "locking=yes: write locking= and one of auto, on, off"),
        ("null:1G,zero=x", "zero=x: write zero=on or zero=off"),
        ("memory:x", "memory: size 'x' is not a size"),
        ("memory:1000", "512 bytes or a multiple of that, not 1000"),
        ("null:0", "512 bytes or a multiple of that, not 0"),
        ("python:x", "write python:module:Class"),
        ("fast|null:1M", r"fast: no layer is called 'fast' \(there are .*pause.*zeroes"),
        (
            "pause:fast=on|null:1M",
            r"no option 'fast' for the layer pause \(there are file, ops, pau",
        ),
        ("zeroes:unmap=yes|null:1M", "zeroes: unmap=yes: write unmap=on or unmap=off"),
        ("zeroes|file|x", r"zeroes\|file\|file:x: file is a disk, not a layer: a disk is last"),
        ("zeroes:", r"zeroes: zeroes is a layer, and nothing is behind it.*e.g. zeroes\|disk.img"),
        ("zeroes|pause:", r"pause is a layer, and nothing is behind it: write its disk there"),
        ("zeroes:unmap=on", r"zeroes is a layer.*e.g. zeroes:unmap=on\|disk.img"),
        ("zeroes|", r"nothing is behind the last bar: write a disk there"),
        ("zeroes|foo:x", "no disk has the scheme 'foo'"),
    ],
)
def test_a_mistake_says_what_to_write(text: str, message: str) -> None:
    """Every mistake in a disk's text is one line with the remedy in it."""
    with pytest.raises(VhostBlkError, match=message) as caught:
        make(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_looks_like_a_scheme_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named foo:x exists; it is still foo's to mean, and the message says how to name it."""
    monkeypatch.chdir(tmp_path)
    Path("foo:x").write_bytes(bytes(512))
    with pytest.raises(VhostBlkError, match="write file:foo:x"):
        make("foo:x")
    for text in ("file:foo:x", "./foo:x"):
        disk = make(text)
        disk.open()
        assert disk.info().size == 512
        disk.close()


def test_every_scheme_says_how_it_is_written() -> None:
    """The form begins with the scheme: it is shown to people."""
    for name, scheme in SCHEMES.items():
        assert scheme.form.startswith(f"{name}:")


def test_the_reference_has_every_scheme_and_option() -> None:
    """`docs/reference/disks.md` names each scheme with its options, and each cache mode."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "disks.md"
    text = page.read_text()
    for name, scheme in SCHEMES.items():
        section = text[text.index(f"\n## {name}\n") :].split("\n## ")[1]
        assert f"`{name}:" in section
        for option in scheme.options or ():
            assert f"{option}=" in section
    for mode in (*CacheMode, *Locking):
        assert f"`{mode}`" in text


def test_beside_puts_cache_and_read_only_into_a_file(tmp_path: Path) -> None:
    """What the command was told of the file reaches the file, which opens and locks itself so."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    disk = make(beside(parse(str(image)), cache="writethrough", read_only=True))
    assert isinstance(disk, File)
    disk.open()
    assert (disk.writeback, disk.info().read_only) == (False, True)
    disk.close()


def test_beside_reaches_the_disk_below_its_layers() -> None:
    """The layers know of no cache, and the file is what is opened read-only."""
    spec = beside(parse("zeroes|file:x.img"), cache="none", read_only=True, lock="while-running")
    assert str(spec) == "zeroes|file:x.img,cache=none,lock=while-running,read-only=on"
    with pytest.raises(VhostBlkError, match="a memory: disk has no host cache"):
        beside(parse("zeroes|memory:1M"), cache="none", read_only=False)


def test_beside_serves_any_disk_read_only() -> None:
    """read_only is the device's for a disk that has no such option itself."""
    spec = parse("memory:1M")
    assert beside(spec, cache=None, read_only=True) == spec


def test_beside_refuses_two_answers_to_one_question() -> None:
    """An option of the command and one of the disk may not differ."""
    spec = parse("file:disk.img,cache=none")
    with pytest.raises(VhostBlkError, match="cache=none here, but cache=writeback elsewhere"):
        beside(spec, cache="writeback", read_only=False)


def test_beside_refuses_an_option_the_disk_has_not() -> None:
    """A cache mode says nothing about memory."""
    spec = parse("memory:1M")
    with pytest.raises(VhostBlkError, match="a memory: disk has no host cache"):
        beside(spec, cache="none", read_only=False)


def test_beside_takes_a_file_of_any_name() -> None:
    """A back-end program is given a path, never a scheme."""
    spec = beside(DiskSpec("file", "memory:1M"), cache=None, read_only=False)
    assert isinstance(make(str(spec)), File)


def test_prepare_makes_what_is_named_and_takes_what_is_there(tmp_path: Path) -> None:
    """Only of a disk that is named is known how; either is recorded if somebody says so."""
    path, memory = tmp_path / "trace", Memory(1 << 20)
    assert prepare(memory, None) == (memory, None)
    made, source = prepare("zeroes|null:1M", None)
    assert isinstance(made, Zeroes)
    assert source == parse("zeroes|null:1M")
    made, source = prepare("zeroes|null:1M", str(path))
    assert [one.name for one in layers(made)] == ["record", "zeroes"]
    assert source == parse(f"record:path={path}|zeroes|null:1M")
    made, source = prepare(memory, str(path))
    assert [(one.name, one.below) for one in layers(made)] == [("record", memory)]
    assert source is None
