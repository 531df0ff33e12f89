"""Keys come from where they are said to be, and do not stay in memory."""

import ctypes
import os
import re
from pathlib import Path

import pytest

from vhostblk.disk import secret
from vhostblk.disk.secret import MAX_KEY, KeySource, Secret, parse_source
from vhostblk.errors import VhostBlkError

KEY = b"a key\0with any bytes\n"


def read(source: KeySource) -> bytes:
    with source.read() as key, key.view() as view:
        return bytes(view)


def test_a_key_of_a_file_is_all_of_it(tmp_path: Path) -> None:
    """Its last newline, too, as cryptsetup and QEMU have it."""
    path = tmp_path / "key"
    path.write_bytes(KEY)
    assert read(KeySource("key-file", str(path))) == KEY


def test_a_key_of_a_file_descriptor() -> None:
    """A pipe that gives it in parts is read to its end."""
    out, into = os.pipe()
    with os.fdopen(out, "rb"), os.fdopen(into, "wb", buffering=0) as pipe:
        pipe.write(KEY[:5])
        pipe.write(KEY[5:])
        pipe.close()
        assert read(KeySource("key-fd", str(out))) == KEY


@pytest.mark.parametrize(
    ("command", "key"),
    [("echo secret", b"secret"), ("printf secret", b"secret"), (r"printf 'a\n\n'", b"a\n")],
)
def test_a_key_of_a_command_is_what_it_prints(command: str, key: bytes) -> None:
    """But for the end of its last line."""
    assert read(KeySource("key-command", command)) == key


def test_a_key_of_the_kernels_keyring() -> None:
    """It is found by its name where this process has it."""
    add_key = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    process_keyring = ctypes.c_long(-2)
    name = f"vhostblk-test-{os.getpid()}"
    size = ctypes.c_size_t(len(KEY))
    if libc.syscall(add_key, b"user", name.encode(), KEY, size, process_keyring) < 0:
        pytest.skip(f"needs the kernel's keyrings: add_key: {os.strerror(ctypes.get_errno())}")
    assert read(KeySource("keyring", name)) == KEY


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("key-file", "/nowhere/key", "key-file=/nowhere/key: No such file or directory"),
        ("key-file", "/dev/null", "key-file=/dev/null: the key is empty"),
        ("key-file", "/dev/zero", f"key-file=/dev/zero: the key is longer than {MAX_KEY} bytes"),
        ("key-fd", "999999", "key-fd=999999: Bad file descriptor"),
        ("key-command", "exit 3", "key-command=exit 3: it ended with status 3"),
        ("key-command", "kill -9 $$", "key-command=kill -9 $$: it ended with signal 9"),
        ("key-command", "true", "key-command=true: the key is empty"),
    ],
)
def test_no_key_is_one_line(kind: str, text: str, said: str) -> None:
    """It names the option, and what is wrong."""
    with pytest.raises(VhostBlkError, match=f"^{re.escape(said)}$"):
        KeySource(kind, text).read()


@pytest.mark.parametrize(
    "options", [{}, {"key-file": "a", "keyring": "b"}, {"key-fd": "three"}, {"key": "secret"}]
)
def test_options_that_name_no_source(options: dict[str, str]) -> None:
    """One source is named, by one option; the key itself is none."""
    with pytest.raises(VhostBlkError, match=r"^(where the key is: write one of key-file=|key-fd)"):
        parse_source(options)


def test_options_name_a_source() -> None:
    """Other options are somebody else's."""
    assert parse_source({"discard": "on", "keyring": "vm0"}) == KeySource("keyring", "vm0")


def test_a_secret_is_locked_and_not_dumped() -> None:
    """The kernel says so of its memory: lo, locked; dd, not dumped."""
    with Secret(100) as key:
        with key.room() as room:
            start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        flags = flags_at(start)
    assert {"lo", "dd"} <= flags


def test_a_secret_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its memory goes, all of it is zeroes; closing it again is nothing."""
    key, seen = Secret(64), []
    with key.room() as room:
        room[: len(KEY)] = KEY
    key.length = len(KEY)
    memory = key._memory

    class Watched:
        closed = False

        def close(self) -> None:
            seen.append(memory[:])
            self.closed = True

    monkeypatch.setattr(key, "_memory", Watched())
    key.close()
    key.close()
    memory.close()
    assert seen == [bytes(64)]


def test_memory_that_cannot_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key is read then."""

    class Refusing:
        def mlock(self, *_: object) -> int:
            ctypes.set_errno(12)
            return -1

    monkeypatch.setattr(secret, "_libc", Refusing())
    with pytest.raises(VhostBlkError, match=r"cannot be locked .Cannot allocate memory.: raise"):
        Secret(64)


def flags_at(address: int) -> set[str]:
    """Return what the kernel says of the mapping that has *address*."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    return set()
