"""
The one way to write a disk as text, on a command line or in a file.

::

    stack   = *( layer "|" ) disk
    disk    = path | scheme ":" body *( "," option )
    layer   = scheme [ ":" [ option *( "," option ) ] ]
    option  = key "=" value
    scheme  = a word of small letters, digits, "+", "." and "-" that begins with a letter
    key     = a word of letters, digits, "-" and "_"

Layers stand in front of their disk, the outermost first.  A comma or a bar in a body or a value is
written twice, as QEMU's users know it of commas.  A disk that begins with a word and a colon has a
scheme; anything else is a path, taken as it is to its last character, which only a bar ends.

This file knows the form and no scheme; which disks, layers and options there are is `make`'s.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vhostblk.errors import VhostBlkError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.ASCII)
_LAYER = re.compile(r"([a-z][a-z0-9+.-]*)(?::|\Z)", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_SIZE = re.compile(r"([0-9]+)([KMGTPE]?)", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(ns|us|ms|s|m)", re.ASCII)
_RATE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?([KMG]?)(?:/s)?", re.ASCII | re.IGNORECASE)
_BARS = re.compile(r"\|\||\||[^|]+")
_COMMAS = re.compile(r",,|\|\||[,|]|[^,|]+")
_NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9}

MAX_TIME = 86_400 * 10**9
"""Nanoseconds of the longest time there is need to write."""
MAX_SIZE = (1 << 63) - 512
"""Bytes of the largest disk: file offsets are signed, sectors are whole."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """
    A layer as somebody wrote it.

    Args:
        name: Which.
        options: In the order they were given.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as it is written in front of a bar."""
        if not self.options:
            return self.name
        return f"{self.name}:" + ",".join(map(_doubled, _words(self.options)))


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """
    A disk as somebody wrote it.

    Args:
        scheme: What kind; ``file`` for a plain path.
        body: What stood behind the colon, doubled characters made single.
        options: In the order they were given.
        layers: What stands in front of it, the outermost first.
    """

    scheme: str
    body: str
    options: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerSpec, ...] = ()

    def __str__(self) -> str:
        """Return text that `parse` reads back as this."""
        disk = f"{self.scheme}:" + ",".join(map(_doubled, [self.body, *_words(self.options)]))
        return "|".join([*map(str, self.layers), disk])

    @property
    def alone(self) -> "DiskSpec":
        """The disk without what is in front of it."""
        return replace(self, layers=())

    def with_option(self, key: str, value: str) -> "DiskSpec":
        """
        Add an option of the disk itself that was given elsewhere, say as ``--cache``.

        Raises:
            VhostBlkError: The text says something else already.
        """
        old = self.options.get(key, value)
        if old != value:
            raise VhostBlkError(f"{self}: {key}={old} here, but {key}={value} elsewhere: say one")
        return replace(self, options={**self.options, key: value})


def parse(text: str) -> DiskSpec:
    """
    Read a disk and its layers from text.

    Raises:
        VhostBlkError: Not of the form; the message is one line that says what to write.
    """
    *layers, disk = _parts(text)
    if layers and not disk:
        raise VhostBlkError(
            f"{text}: nothing is behind the last bar: write a disk there, e.g. {text}disk.img"
        )
    # The disk first: of a path with a bar in it that says more.
    spec = _disk(disk, text)
    return replace(spec, layers=tuple(_layer(layer, text) for layer in layers))


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


def parse_time(text: str, what: str) -> int:
    """
    Read a time: ``2ms``, ``50us``, ``1.5s``, ``0``.

    Args:
        text: A number with its unit: ns, us, ms, s or m.
        what: Its name in the error.

    Returns:
        Nanoseconds, 0 or more.

    Raises:
        VhostBlkError: Not such a number, or more than a day.
    """
    if text == "0":
        return 0
    match = _TIME.fullmatch(text)
    if match is None:
        raise VhostBlkError(f"{what}={text}: not a time: write 0, 50us, 2ms or 1.5s")
    time = _scaled(match[1], match[2], _NANOSECONDS[match[3]])
    if time > MAX_TIME:
        raise VhostBlkError(f"{what}={text}: too long: write a day (1440m) or less")
    return time


def parse_rate(text: str, what: str, *, base: int = 1000, most: int = 1 << 43) -> int:
    """
    Read how often, or how much, each second: ``500``, ``10K``, ``1.5M``, ``100M/s``.

    Args:
        text: A number, then nothing or one of K, M, G; ``/s`` may stand behind it.
        what: Its name in the error.
        base: What K is: 1000 where things are counted, 1024 for bytes.
        most: So many at most.

    Returns:
        So many a second, 0 or more.

    Raises:
        VhostBlkError: Not such a number, too large, or less than 1 and not 0.
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise VhostBlkError(f"{what}={text}: not a rate: write a number, or 10K, 1.5M, 2G")
    rate = _scaled(match[1], match[2], base ** " KMG".index(match[3].upper() or " "))
    if not rate and int(match[1] + (match[2] or "")):
        raise VhostBlkError(f"{what}={text}: too small: write 1 a second or more, or 0")
    if rate > most:
        raise VhostBlkError(f"{what}={text}: too large: write {most} a second at most, or 0")
    return rate


def _parts(text: str) -> list[str]:
    """Split at single bars; doubled ones stay as they are."""
    parts = [""]
    for piece in _BARS.findall(text):
        if piece == "|":
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _disk(text: str, whole: str) -> DiskSpec:
    scheme = _SCHEME.match(text)
    if scheme is not None:
        body, *words = _split(text[scheme.end() :])
        hint = "write key=value, and a comma in a name twice"
        return DiskSpec(scheme[1], body, _options(words, whole, hint))
    if not text:
        raise VhostBlkError("an empty name is no disk: write a path, or scheme:body")
    if "|" in text:
        path = text.replace("||", "|")
        raise VhostBlkError(
            f"{whole}: a plain path has no bar: for a file of that name write "
            f"{DiskSpec('file', path)}"
        )
    return DiskSpec("file", text)


def _layer(text: str, whole: str) -> LayerSpec:
    match = _LAYER.match(text)
    if match is None:
        raise VhostBlkError(
            f"{whole}: {text!r} in front of a bar is not a layer: write layer:key=value,…|disk; "
            f"for a file of that name write file:{_doubled(whole.replace('||', '|'))}"
        )
    rest = text[match.end() :]
    hint = f"a layer has only such: write {match[1]}:key=value; a disk comes last, layers before it"
    return LayerSpec(match[1], _options(_split(rest), whole, hint) if rest else {})


def _options(words: Sequence[str], whole: str, hint: str) -> Mapping[str, str]:
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise VhostBlkError(f"{whole}: {word!r} is not an option: {hint}")
        if key in options:
            raise VhostBlkError(f"{whole}: option {key!r} is given twice: say it once")
        options[key] = value
    return options


def _split(text: str) -> list[str]:
    """Split at single commas; a doubled comma or bar is that character."""
    words = [""]
    for piece in _COMMAS.findall(text):
        if piece == ",":
            words.append("")
        else:
            words[-1] += piece[:1] if piece in {",,", "||"} else piece
    return words


def _scaled(whole: str, fraction: str | None, unit: int) -> int:
    digits = fraction or ""
    scaled: int = int(whole + digits) * unit // 10 ** len(digits)
    return scaled


def _words(options: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in options.items()]


def _doubled(text: str) -> str:
    return text.replace(",", ",,").replace("|", "||")
