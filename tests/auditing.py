"""Servers in processes of their own, under an auditor."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import running

from vhostblk.guest import uffd
from vhostblk.guest.errors import GuestError
from vhostblk.guest.touches import Auditor

TESTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Audited:
    """
    A back-end under an auditor.

    Args:
        socket: Where it listens.
        auditor: Who watches.
        pid: Its process.
    """

    socket: Path
    auditor: Auditor
    pid: int


def needs_userfaultfd() -> None:
    """Skip the test where nobody may watch."""
    try:
        os.close(uffd.make())
    except GuestError as error:
        pytest.skip(str(error))


@contextmanager
def audited(program: str, *words: str | Path, auditor: Auditor | None = None) -> Iterator[Audited]:
    """
    Run a program that listens at ``{socket}`` and reports to ``{auditor}``, both in *words*.

    Args:
        program: Below tests/.
        words: Its arguments.
        auditor: One with judgement; its path is set.
    """
    needs_userfaultfd()
    with tempfile.TemporaryDirectory(prefix="vhb") as name:
        directory = Path(name)
        socket = directory / "s"
        watching = auditor or Auditor("")
        watching.path = directory / "a"
        filled = [str(w).format(socket=socket, auditor=watching.path) for w in words]
        with watching:
            process = running.start(
                TESTS / program, *filled, cwd=directory, environ={"PYTHONPATH": _path()}
            )
            try:
                running.wait_for_socket(socket, process)
                yield Audited(socket, watching, process.pid)
            finally:
                process.kill()
                with suppress(ValueError):
                    process.communicate()


def serve(*words: str | Path, auditor: Auditor | None = None) -> AbstractContextManager[Audited]:
    """Run ``vhostblk serve`` with *words* under an auditor."""
    return audited(
        "audited.py", "{auditor}", "serve", "--socket-path", "{socket}", *words, auditor=auditor
    )


def rogue(misdeed: str) -> AbstractContextManager[Audited]:
    """Run the back-end that does what it must not under an auditor."""
    return audited("guest_peers/audited_rogue.py", "{socket}", "{auditor}", misdeed)


def _path() -> str:
    return f"{running.PACKAGES}:{TESTS}"
