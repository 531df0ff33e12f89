"""An option that is a time; a file of its own, as `vhostblk ctl` imports only what it needs."""

import math
from collections.abc import Callable
from typing import TypeVar

import click

MAX_SECONDS = 1_000_000

_F = TypeVar("_F", bound=Callable[..., object])


class Seconds(click.FloatRange):
    """
    A time that every clock can take.

    Args:
        zero: It may be 0.
    """

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__(min=0, min_open=not zero, max=MAX_SECONDS)

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it; "nan" is none, though it is in any range."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no time.", param, ctx)
        return seconds


def timeout_option(seconds: float, text: str) -> Callable[[_F], _F]:
    """
    Give a command ``--timeout``.

    Args:
        seconds: Unless somebody says otherwise.
        text: Of the help.
    """
    return click.option(
        "--timeout",
        type=Seconds(),
        default=seconds,
        show_default=True,
        metavar="SECONDS",
        help=text,
    )
