"""What a program gives a layer: looked at when it is made, as text is when it is read."""

import os

from vhostblk.disk.numbers import MAX_NUMBER
from vhostblk.errors import VhostBlkError

MAX_PATH = 4095
"""Bytes of the longest name of a file."""


def check_number(number: object, what: str, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """
    Return a whole number that is one.

    Args:
        number: What was given.
        what: Its name in the error.
        least: The smallest that it may be.
        most: The largest.

    Raises:
        VhostBlkError: It is none, too small or too large.
    """
    if type(number) is int and least <= number <= most:
        return number
    some = f"from {least} on" if most == MAX_NUMBER else f"from {least} to {most}"
    raise VhostBlkError(f"{what}={number}: write a whole number {some}")


def check_share(share: object, what: str) -> float:
    """
    Return a share, 0 to 1.

    Raises:
        VhostBlkError: It is none; not even of what is no number.
    """
    if type(share) in {int, float} and 0 <= share <= 1:  # type: ignore[operator]  # a number
        return share  # type: ignore[return-value]  # as asked above
    raise VhostBlkError(f"{what}={share}: write a share: 0.05, up to 1")


def check_switch(switch: object, what: str) -> bool:
    """
    Return what is true or false; a text would be true, whatever it says.

    Raises:
        VhostBlkError: It is neither.
    """
    if isinstance(switch, bool):
        return switch
    raise VhostBlkError(f"{what}={switch}: write True or False")


def check_path(path: str | os.PathLike[str], what: str) -> str:
    """
    Return the name of a file, or nothing where none was given.

    Raises:
        VhostBlkError: No file can have it.
    """
    try:
        name = os.fspath(path)
        good = "\0" not in name and len(os.fsencode(name)) <= MAX_PATH
    except (TypeError, ValueError):
        name, good = "", False
    if not good:
        raise VhostBlkError(f"{what}: no file is called that: write the name of a file")
    return name
