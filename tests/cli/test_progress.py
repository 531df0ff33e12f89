"""What a person sees who waits."""

import sys
import threading

import pytest

from vhostblk.cli import progress


@pytest.mark.parametrize(
    ("terminal", "begin", "end"),
    [(True, "\r1 of 3\033[K\r2 of 3\033[K", "\033[K\r\033[K"), (False, "1 of 3\n2 of 3\n", "\n")],
    ids=["terminal", "log"],
)
def test_progress_is_shown_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    begin: str,
    end: str,
    *,
    terminal: bool,
) -> None:
    """On a terminal each line is put over the one before, and the last goes; nothing on stdout."""
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.001)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.001)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    looks, enough = 0, threading.Event()

    def look() -> str:
        nonlocal looks
        looks += 1
        if looks > 2:
            enough.set()
        return f"{looks} of 3"

    with progress.shown(look):
        assert enough.wait(10)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(begin)
    assert said.err.endswith(end)
