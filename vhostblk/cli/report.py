"""
How a command ends and what it says on the way.

Everything a person reads goes to stderr: one line per error that says what to do, and log lines
with their level.  A traceback is for whoever debugs vhostblk itself, so it takes ``-vv``.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from enum import IntEnum

import click

from vhostblk.errors import VhostBlkError

MESSAGES = "vhostblk.messages"
"""The logger of every protocol message by name, at level DEBUG."""
STATUS = "vhostblk.status"
"""The logger of status documents that were asked for, at level INFO: however quiet we are."""

READY = "ready for a front-end"
"""What a server logs once it serves; whoever started it may wait for it."""

_log = logging.getLogger("vhostblk")


class Status(IntEnum):
    """Exit statuses; 130 is what a shell reports for SIGINT."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    BUG = 70
    INTERRUPTED = 130


def start_logging(verbosity: int) -> None:
    """
    Send log lines to stderr.

    Args:
        verbosity: -1: warnings only, 0: what an operator wants, 1: every protocol message too,
            2: everything.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter())
    _log.handlers = [handler]
    _log.propagate = False
    level = {-1: logging.WARNING, 0: logging.INFO, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    _log.setLevel(level)
    messages = logging.DEBUG if verbosity >= 1 else logging.NOTSET
    logging.getLogger(MESSAGES).setLevel(messages)
    logging.getLogger(STATUS).setLevel(logging.INFO)


def ready() -> None:
    """Say that a front-end can come now."""
    _log.info(READY)


def _formatter() -> logging.Formatter:
    formatter = logging.Formatter(
        "{asctime}.{msecs:03.0f} {levelname:<7} {message}", "%Y-%m-%dT%H:%M:%S", style="{"
    )
    formatter.converter = time.gmtime
    return formatter


def run(command: click.Command, argv: Sequence[str], *, name: str) -> int:
    """
    Run a command to its end.

    Args:
        command: What to run.
        argv: Its arguments, without the program's name.
        name: What the program is called.

    Returns:
        The exit status; whatever went wrong was said in one line on stderr.
    """
    try:
        result: object = command.main(list(argv), prog_name=name, standalone_mode=False)
    except BrokenPipeError:
        return _quiet_stdout()
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - the last stop
        line, status = _explained(error, name)
        click.echo(line, err=True)
        return status
    return result if isinstance(result, int) else Status.DONE


def _explained(error: BaseException, name: str) -> tuple[str, Status]:
    match error:
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else name
            said = error.format_message()
            said += "" if said.endswith((".", "?")) else "."
            line = f"{where}: {said} See '{where} --help'."
            status = Status.USAGE
        case click.Abort() | KeyboardInterrupt():
            line, status = f"{name}: interrupted", Status.INTERRUPTED
        case click.ClickException():
            line, status = f"{name}: {error.format_message()}", Status.FAILED
        case VhostBlkError():
            line, status = f"{name}: {error}", Status.FAILED
        case OSError():
            line, status = f"{name}: {_os_error(error)}", Status.FAILED
        case _:
            line, status = f"{name}: {_bug(error)}", Status.BUG
    return line, status


def _os_error(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _bug(error: BaseException) -> str:
    _log.debug("the traceback", exc_info=error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what}; please report it with the output of -vv"


def _quiet_stdout() -> int:
    """Whoever read our output went away; Python must not complain again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Status.FAILED
