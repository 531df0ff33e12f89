"""How far something is, on stderr, for a person who waits."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import click

TELL_SECONDS = 10.0
"""How often progress is told where there is no terminal."""
REDRAW_SECONDS = 0.2
"""And on one."""


@contextmanager
def one_line() -> Iterator[Callable[[str], None]]:
    """Yield what shows a line in place of the one before; none is left behind."""
    try:
        yield lambda line: click.echo(f"\r{line}\033[K", nl=False, err=True)
    finally:
        click.echo("\r\033[K", nl=False, err=True)


@contextmanager
def shown(look: Callable[[], str]) -> Iterator[None]:
    """
    Show how far it is: on one line of a terminal, else in a line now and then.

    Args:
        look: Returns a line that says so; called by a thread of its own.
    """
    over, terminal = threading.Event(), sys.stderr.isatty()
    seconds = REDRAW_SECONDS if terminal else TELL_SECONDS
    with one_line() if terminal else nullcontext(partial(click.echo, err=True)) as tell:

        def show() -> None:
            while not over.wait(seconds):
                tell(look())

        thread = threading.Thread(target=show, name="progress")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
