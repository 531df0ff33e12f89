"""What ``vhostblk serve`` says in one line and does not do."""

import subprocess
import sys
from pathlib import Path

import pytest

from vhostblk.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no.img"], "no.img: no such file: create it, e.g. truncate -s 10G no.img"),
        (["."], ".: not a regular file or block device, cannot be a disk"),
        (
            ["odd.img"],
            (
                "odd.img: its 1 bytes are not a multiple of its 512-byte blocks:"
                " truncate -s 512 odd.img makes it so"
            ),
        ),
        (
            ["foo:x"],
            (
                "foo:x: no disk has the scheme 'foo' (there are file, memory, null,"
                " nbd, nbd+unix, nbds, nbds+unix, nbd+exec, qcow2, python);"
                " for a file of that name write file:foo:x"
            ),
        ),
        (["memory:12"], "memory:12: a disk has 512 bytes or a multiple of that, not 12"),
        (
            ["--cache", "none", "memory:1M"],
            "cache is for files: a memory: disk has no host cache",
        ),
        (
            ["--serial", "123456789012345678901", "memory:1M"],
            "serial '123456789012345678901' is longer than 20 bytes",
        ),
        (["--queue-size", "3", "memory:1M"], "queue_size is a power of two up to 1024, not 3"),
        (
            ["--block-size", "1000", "memory:1M"],
            "block_size is a power of two from the disk's 512 to 1048576, not 1000",
        ),
        (
            ["--confidential", "require", "memory:1M"],
            (
                "confidential require needs to know what the guest shares: give shared ranges, as"
                " the guest's dmesg prints them ('software IO TLB: mapped [mem ...]'), or"
                " learn=10000"
            ),
        ),
        (
            ["--shared-ranges", "1M+1M", "memory:1M"],
            (
                "shared ranges are not looked at with confidential auto: give confidential require,"
                " too"
            ),
        ),
        (
            ["--confidential", "off", "--on-violation", "break", "memory:1M"],
            "with confidential off nothing is a violation: give confidential require, too",
        ),
    ],
)
def test_serve_says_in_one_line_what_is_wrong(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A disk or an option that cannot be is an error before anything is served."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.img").write_bytes(b"x")
    assert main.main(["serve", "--engine", "reference", "-q", "--socket-path", "s", *words]) == 1
    assert capsys.readouterr() == ("", f"vhostblk: {line}\n")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "no where/s",
            (
                "cannot listen on no where/s: its directory is not there:"
                " mkdir -p 'no where', or choose another"
            ),
        ),
        (".", ". is a directory: give the socket a name in it"),
        ("file", "file exists and is not a socket: choose another path"),
        (
            "x" * 120,
            (
                f"{'x' * 120}: a socket path has 107 bytes at most, not 120:"
                " choose a directory with a shorter name, like /run"
            ),
        ),
    ],
)
def test_serve_says_what_is_wrong_with_a_path(
    path: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A socket that cannot be made is an error that names the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main.main(["serve", "-q", "--socket-path", path, "memory:1M"]) == 1
    assert capsys.readouterr() == ("", f"vhostblk: {line}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--socket-mode", "999"],
            "Invalid value for '--socket-mode': '999' is not a mode; give octal digits like 660.",
        ),
        (
            ["--socket-owner", "no-such-user"],
            (
                "Invalid value for '--socket-owner': there is no user 'no-such-user'"
                " on this machine."
            ),
        ),
        (
            ["--engine", "fast"],
            "Invalid value for '--engine': 'fast' is not one of 'auto', 'native', 'reference'.",
        ),
        (["--fd", "3"], "Give --socket-path PATH, --connect PATH or --fd FDNUM, one of them."),
        (
            ["--shared-ranges", "1M-0x1fffff"],
            (
                "Invalid value for '--shared-ranges': shared range '1M-0x1fffff' ends within a"
                " page: the end is the first byte behind the range, 0x200000."
            ),
        ),
        (
            ["--confidential", "on"],
            "Invalid value for '--confidential': 'on' is not one of 'off', 'auto', 'require'.",
        ),
    ],
)
def test_serve_refuses_bad_options(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option is a usage error: status 2, one line, where to look."""
    assert main.main(["serve", "--socket-path", "s", *words, "memory:1M"]) == 2
    assert capsys.readouterr() == ("", f"vhostblk serve: {line} See 'vhostblk serve --help'.\n")


def test_fd_says_that_it_is_no_socket() -> None:
    """A descriptor that is not a socket is named."""
    words = [sys.executable, "-m", "vhostblk", "serve", "--fd", "0", "memory:1M"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "vhostblk: fd 0 is not a socket: Socket operation on non-socket\n"
