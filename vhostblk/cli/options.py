"""
Option values that need more than click's own types.

Each parser takes what was typed and returns the value, or raises `click.BadParameter` with what
to type instead; `option` makes a click callback of it.
"""

import grp
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import click

MAX_QUEUES = 64
MAX_MODE = 0o777
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Owner:
    """
    Who owns a socket.

    Args:
        uid: User; None: stays as it is.
        gid: Group; None: stays as it is.
    """

    uid: int | None
    gid: int | None


def parsed(
    parse: Callable[[str], _T],
) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """Make a click callback of a parser; an option that was not given stays None."""

    def callback(_context: click.Context, _param: click.Parameter, text: str | None) -> _T | None:
        return None if text is None else parse(text)

    return callback


def mode(text: str) -> int:
    """
    Read permission bits in octal, as chmod takes them.

    Raises:
        click.BadParameter: It is not octal, or more than 777.
    """
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text) or int(text, 8) > MAX_MODE:
        raise click.BadParameter(f"{text!r} is not a mode; give octal digits like 660.")
    return int(text, 8)


def owner(text: str) -> Owner:
    """
    Read USER, USER:GROUP or :GROUP, by name or number, as chown takes them.

    Raises:
        click.BadParameter: No such user or group.
    """
    user, _, group = text.partition(":")
    if not user and not group:
        raise click.BadParameter("give USER, USER:GROUP or :GROUP.")
    uid = _number(user, lambda name: pwd.getpwnam(name).pw_uid, "user")
    gid = _number(group, lambda name: grp.getgrnam(name).gr_gid, "group")
    return Owner(uid, gid)


def _number(text: str, look_up: Callable[[str], int], what: str) -> int | None:
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    try:
        return look_up(text)
    except KeyError:
        raise click.BadParameter(f"there is no {what} {text!r} on this machine.") from None


def qemu_size(text: str) -> str:
    """
    Read a size the way QEMU takes it; it goes there as it is.

    Raises:
        click.BadParameter: It is not a whole number with K, M, G or T behind it.
    """
    if not re.fullmatch(r"[1-9][0-9]*[KMGT]", text.upper()):
        raise click.BadParameter(f"{text!r} is not a size; give a whole number and a unit: 512M.")
    return text.upper()


def qemu_id(text: str) -> str:
    """
    Read a name for QEMU's objects.

    Raises:
        click.BadParameter: QEMU would refuse it.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text):
        raise click.BadParameter(
            f"{text!r} is not an id; begin with a letter, go on with letters, digits, '-._'."
        )
    return text
