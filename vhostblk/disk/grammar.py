"""
The one way to write a disk as text, on a command line or in a file.

::

    disk    = path | scheme ":" body *( "," key "=" value )
    scheme  = a word of small letters, digits, "+", "." and "-" that begins with a letter
    key     = a word of letters, digits, "-" and "_"

A comma in a body or a value is written twice, as QEMU's users know it.  What begins with a word
and a colon is a scheme; anything else is a path, taken as it is to its last character.  ``|`` is
kept for layers in front of a disk and is written twice too where it is meant as a character.

This file knows the form and no scheme; which schemes and options there are is `make`'s.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vhostblk.errors import VhostBlkError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_SIZE = re.compile(r"([0-9]+)([KMGTPE]?)", re.ASCII | re.IGNORECASE)

MAX_SIZE = (1 << 63) - 512
"""Bytes of the largest disk: file offsets are signed, sectors are whole."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """
    A disk as somebody wrote it.

    Args:
        scheme: What kind; ``file`` for a plain path.
        body: What stood behind the colon, doubled characters made single.
        options: In the order they were given.
    """

    scheme: str
    body: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return text that `parse` reads back as this."""
        words = [self.body, *(f"{key}={value}" for key, value in self.options.items())]
        return f"{self.scheme}:" + ",".join(map(_doubled, words))

    def with_option(self, key: str, value: str) -> "DiskSpec":
        """
        Add an option that was given elsewhere, say as ``--cache``.

        Raises:
            VhostBlkError: The text says something else already.
        """
        old = self.options.get(key, value)
        if old != value:
            raise VhostBlkError(f"{self}: {key}={old} here, but {key}={value} elsewhere: say one")
        return replace(self, options={**self.options, key: value})


def parse(text: str) -> DiskSpec:
    """
    Read a disk from text.

    Raises:
        VhostBlkError: Not of the form; the message is one line that says what to write.
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _plain(text)
    words = _split(text[scheme.end() :], text)
    options: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise VhostBlkError(
                f"{text}: {word!r} is not an option: write key=value, and a comma in a name twice"
            )
        if key in options:
            raise VhostBlkError(f"{text}: option {key!r} is given twice: say it once")
        options[key] = value
    return DiskSpec(scheme[1], words[0], options)


def parse_size(text: str, what: str = "size") -> int:
    """
    Read a number of bytes: ``1048576``, ``512M``, ``4G``, ``1T``.

    Args:
        text: Digits, then nothing or one of K, M, G, T, P, E: powers of 1024.
        what: Its name in the error.

    Returns:
        Bytes, 0 or more.

    Raises:
        VhostBlkError: Not such a number, or more than a disk can have.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise VhostBlkError(f"{what} {text!r} is not a size: write bytes, or 512M, 4G, 1T")
    size = int(match[1]) << (10 * " KMGTPE".index(match[2].upper() or " "))
    if size > MAX_SIZE:
        raise VhostBlkError(f"{what} {text!r} is too large: a disk has less than 8E")
    return size


def parse_switch(text: str, what: str) -> bool:
    """
    Read ``on`` or ``off``.

    Raises:
        VhostBlkError: Neither of them.
    """
    if text not in {"on", "off"}:
        raise VhostBlkError(f"{what}={text}: write {what}=on or {what}=off")
    return text == "on"


def _plain(text: str) -> DiskSpec:
    """Take a path as it is; only a bar is not ours to decide yet."""
    if not text:
        raise VhostBlkError("an empty name is no disk: write a path, or scheme:body")
    if "|" in text:
        raise VhostBlkError(
            f"{text}: layers (|) are not available; for a file of that name write "
            f"{DiskSpec('file', text)}"
        )
    return DiskSpec("file", text)


def _split(text: str, whole: str) -> list[str]:
    """Split at single commas; a doubled comma or bar is that character."""
    words = [""]
    for piece in re.findall(r",,|\|\||[,|]|[^,|]+", text):
        if piece == ",":
            words.append("")
        elif piece == "|":
            raise VhostBlkError(
                f"{whole}: layers (|) are not available; write || for a bar in a name"
            )
        else:
            words[-1] += piece[:1] if piece in {",,", "||"} else piece
    return words


def _doubled(text: str) -> str:
    return text.replace(",", ",,").replace("|", "||")
