import logging
import subprocess
import sys
from importlib import metadata

import click
import pytest

from vhostblk.cli import main, report
from vhostblk.errors import VhostBlkError


def test_vhostblk_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody who types only the name sees the commands, on stdout, with examples."""
    assert main.main([]) == 0

    out, err = capsys.readouterr()
    assert "qemu-args     Print what QEMU needs to use a served disk." in out
    assert "vhostblk serve --socket-path /run/vm0.sock disk.img" in out
    assert err == ""


def test_version_is_the_distributions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--version`` prints what was installed; a source tree says that it is one."""
    monkeypatch.setattr(metadata, "version", lambda _name: "7.8.9")
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == "vhostblk 7.8.9\n"

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == "vhostblk (run from a source tree, not installed)\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["frobnicate"], "vhostblk: No such command 'frobnicate'. See 'vhostblk --help'."),
        (
            ["qemu-args"],
            (
                "vhostblk qemu-args: Give --socket-path PATH or --connect PATH, one of them."
                " See 'vhostblk qemu-args --help'."
            ),
        ),
        (
            ["qemu-args", "--soket-path", "x"],
            (
                "vhostblk qemu-args: No such option '--soket-path'. Did you mean '--socket-path'?"
                " See 'vhostblk qemu-args --help'."
            ),
        ),
        (
            ["serve", "--poll", "50", "x"],
            (
                "vhostblk serve: Invalid value for '--poll': poll '50': give auto, always, 0, or"
                " microseconds up to 1000000, like 50us. See 'vhostblk serve --help'."
            ),
        ),
    ],
)
def test_a_usage_error_is_one_line(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was typed wrong is said in one line on stderr, with where to look; status 2."""
    assert main.main(argv) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err == line + "\n"


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (VhostBlkError("disk.img is gone; give another"), "x: disk.img is gone; give another", 1),
        (FileNotFoundError(2, "No such file", "a.img"), "x: a.img: No such file", 1),
        (OSError("odd"), "x: odd", 1),
        (click.ClickException("no"), "x: no", 1),
        (KeyboardInterrupt(), "x: interrupted", 130),
        (
            ZeroDivisionError("two\nlines"),
            (
                "x: internal error: ZeroDivisionError: two lines;"
                " please report it with the output of -vv"
            ),
            70,
        ),
    ],
)
def test_run_says_every_error_in_one_line(
    error: BaseException, line: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No exception reaches a person as a traceback."""

    @click.command()
    def fails() -> None:
        raise error

    assert report.run(fails, [], name="x") == status
    out, err = capsys.readouterr()
    assert (out, err.lstrip("\n")) == ("", line + "\n")  # click ends the line of a ^C first


def test_run_shows_the_traceback_of_a_bug_to_vv(capsys: pytest.CaptureFixture[str]) -> None:
    """With -vv the traceback of an internal error is in the log."""

    @click.command()
    def fails() -> None:
        report.start_logging(2)
        raise ZeroDivisionError

    assert report.run(fails, [], name="x") == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (-1, ["warning"]),
        (0, ["warning", "info"]),
        (1, ["warning", "info", "message"]),
        (2, ["warning", "info", "message", "debug"]),
    ],
)
def test_start_logging_follows_v(
    verbosity: int, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """-q leaves warnings, -v adds the protocol's messages, -vv everything; levels are named."""
    report.start_logging(verbosity)
    log = logging.getLogger("vhostblk.server")
    log.warning("a warning")
    log.info("a info")
    logging.getLogger(report.MESSAGES).debug("a message")
    log.debug("a debug")

    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" a ")[2] for line in lines] == shown
    assert all(" WARNING " in line or " INFO " in line or " DEBUG " in line for line in lines)


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    """``vhostblk … | true`` ends quietly."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "vhostblk"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert err == b""
