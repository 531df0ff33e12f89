"""
From a disk as somebody wrote it to the disk itself, with the layers in front of it.

One table of schemes: what each may be told, and who makes it; that of the layers is in `layers`.
Nothing is opened here; that is `Disk.open`'s, on the thread that will serve.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar, cast

from vhostblk.disk.api import Disk, FileIo
from vhostblk.disk.file import CacheMode, File, Locking, LockWhen
from vhostblk.disk.grammar import DiskSpec, parse, parse_size, parse_switch, parse_time
from vhostblk.disk.layers import LAYERS, check, stack
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.memory import Memory
from vhostblk.disk.nbd import Nbd
from vhostblk.disk.nbd_where import FORM, qcow2, started, where
from vhostblk.disk.null import Null
from vhostblk.disk.python import load
from vhostblk.errors import VhostBlkError

_SECTOR = 512

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Scheme:
    """
    A kind of disk.

    Args:
        build: Makes one of a spec whose options are known.
        options: Those there are; None where the disk itself decides.
        form: How to write one, for errors and help.
    """

    build: Callable[[DiskSpec], Disk]
    options: frozenset[str] | None
    form: str


def make(spec: DiskSpec | str) -> Disk:
    """
    Make a disk and its layers; none of it is open yet.

    Args:
        spec: As parsed, or the text.

    Raises:
        VhostBlkError: No such scheme, layer or option, or a value that is none; one line that says
            what to write.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    for layer in spec.layers:
        if layer.name in SCHEMES:
            raise VhostBlkError(
                f"{spec}: {layer.name} is a disk, not a layer: a disk is last, behind the bars"
            )
    check(spec.layers)
    return stack(spec.layers, _disk(spec.alone))


def _disk(spec: DiskSpec) -> Disk:
    scheme = SCHEMES.get(spec.scheme)
    if scheme is None:
        raise _no_disk(spec)
    if not spec.body:
        raise VhostBlkError(f"{spec}: something is missing behind the colon: write {scheme.form}")
    if scheme.options is not None:
        _check_options(spec, scheme.options)
    return scheme.build(spec)


def _no_disk(spec: DiskSpec) -> VhostBlkError:
    written = str(spec).rstrip(":")
    if spec.scheme in LAYERS:
        return VhostBlkError(
            f"{written}: {spec.scheme} is a layer, and nothing is behind it: "
            f"write its disk there, e.g. {written}|disk.img"
        )
    return VhostBlkError(
        f"{spec}: no disk has the scheme {spec.scheme!r} (there are {', '.join(SCHEMES)}); "
        f"for a file of that name write file:{spec}"
    )


def beside(
    spec: DiskSpec,
    *,
    cache: str | None,
    read_only: bool,
    lock: str | None = None,
    record: str | None = None,
) -> DiskSpec:
    """
    Add to a disk what was said of the device it is for.

    Args:
        spec: The disk; what is said goes to the disk itself, not to what is in front of it.
        cache: A file's cache mode; None: as *spec* says.
        read_only: Open a file so, which lets readers share its lock.  For other disks the device
            refuses writes.
        lock: When a file is locked; None: as *spec* says.
        record: Where requests are recorded, see `recorded`; None: only where *spec* says.

    Raises:
        VhostBlkError: A cache mode or a lock for what has none, or two answers to one question.
    """
    if cache is not None:
        if spec.scheme != "file":
            raise VhostBlkError(f"cache is for files: a {spec.scheme}: disk has no host cache")
        spec = spec.with_option("cache", cache)
    if lock is not None:
        if spec.scheme != "file":
            raise VhostBlkError(f"lock is for files: a {spec.scheme}: disk has no image lock")
        spec = spec.with_option("lock", lock)
    if read_only and spec.scheme in {"file", "qcow2"}:
        spec = spec.with_option("read-only", "on")
    return spec if record is None else recorded(spec, record)


def recorded(spec: DiskSpec, text: str) -> DiskSpec:
    """
    Put a layer in front of everything else that records what the guest asks.

    Args:
        spec: The disk.
        text: ``FILE[,payload=…]``: the file, and other options of the layer ``record``.

    Raises:
        VhostBlkError: There is no such option.
    """
    layer = parse(f"record:path={text}|null:512").layers
    check(layer)
    return replace(spec, layers=(*layer, *spec.layers))


def prepare(disk: object, record: str | None) -> tuple[object, DiskSpec | None]:
    """
    Make what is served of what somebody gave.

    Args:
        disk: A disk, or one named as text.
        record: Where requests are recorded, see `recorded`; None: nowhere.

    Returns:
        The disk, not open yet, and how it was written, if it was.

    Raises:
        VhostBlkError: As `make`.
    """
    if isinstance(disk, str):
        spec = parse(disk)
        spec = spec if record is None else recorded(spec, record)
        return make(spec), spec
    if record is None:
        return disk, None
    return stack(recorded(parse("null:512"), record).layers, cast("Disk", disk)), None


def _check_options(spec: DiskSpec, known: frozenset[str]) -> None:
    for key in spec.options:
        if key not in known:
            some = ", ".join(sorted(known)) or "none"
            raise VhostBlkError(f"{spec}: no option {key!r} for {spec.scheme}: (there are {some})")


def _file(spec: DiskSpec) -> Disk:
    options = spec.options
    return File(
        spec.body,
        cache=_choice(options, "cache", CacheMode.WRITEBACK),
        read_only=_switch(options, "read-only", default=False),
        discard=_switch(options, "discard", default=True),
        locking=_choice(options, "locking", Locking.AUTO),
        lock=_choice(options, "lock", LockWhen.ALWAYS),
        io=_choice(options, "io", FileIo.AUTO),
    )


def _memory(spec: DiskSpec) -> Disk:
    memfd = _switch(spec.options, "memfd", default=False)
    return Memfd(_size(spec)) if memfd else Memory(_size(spec))


def _null(spec: DiskSpec) -> Disk:
    return Null(_size(spec), zero=_switch(spec.options, "zero", default=True))


def _python(spec: DiskSpec) -> Disk:
    return load(spec.body, spec.options)


def _nbd(spec: DiskSpec) -> Disk:
    return Nbd(where(spec.scheme, spec.body, spec.options), timeout=_timeout(spec))


def _started(spec: DiskSpec) -> Disk:
    return Nbd(started(spec.scheme, spec.body, spec.options), timeout=_timeout(spec))


def _qcow2(spec: DiskSpec) -> Disk:
    read_only = _switch(spec.options, "read-only", default=False)
    return Nbd(qcow2(spec.body, read_only=read_only), timeout=_timeout(spec))


def _timeout(spec: DiskSpec) -> float:
    return parse_time(spec.options.get("timeout", "30s"), "timeout") / 1e9


def _size(spec: DiskSpec) -> int:
    size = parse_size(spec.body, f"{spec.scheme}: size")
    if not size or size % _SECTOR:
        raise VhostBlkError(f"{spec}: a disk has 512 bytes or a multiple of that, not {size}")
    return size


def _switch(options: Mapping[str, str], key: str, *, default: bool) -> bool:
    return parse_switch(options[key], key) if key in options else default


def _choice(options: Mapping[str, str], key: str, default: _E) -> _E:
    kind = type(default)
    text = options.get(key, default.value)
    try:
        return kind(text)
    except ValueError:
        raise VhostBlkError(f"{key}={text}: write {key}= and one of {', '.join(kind)}") from None


SCHEMES: Mapping[str, Scheme] = {
    "file": Scheme(
        _file,
        frozenset({"cache", "read-only", "discard", "locking", "lock", "io"}),
        "file:PATH[,key=value,…]",
    ),
    "memory": Scheme(_memory, frozenset({"memfd"}), "memory:SIZE[,memfd=on], e.g. memory:4G"),
    "null": Scheme(_null, frozenset({"zero"}), "null:SIZE[,zero=off]"),
    "nbd": Scheme(_nbd, frozenset({"export", "timeout"}), FORM),
    "nbd+unix": Scheme(_nbd, frozenset({"timeout"}), "nbd+unix:///EXPORT?socket=PATH"),
    "nbds": Scheme(_nbd, frozenset({"timeout"}), "nbds://HOST[:PORT]/EXPORT"),
    "nbds+unix": Scheme(_nbd, frozenset({"timeout"}), "nbds+unix:///EXPORT?socket=PATH"),
    "nbd+exec": Scheme(
        _started, frozenset({"export", "timeout"}), "nbd+exec:COMMAND[,export=NAME]"
    ),
    "qcow2": Scheme(_qcow2, frozenset({"read-only", "timeout"}), "qcow2:PATH[,read-only=on]"),
    "python": Scheme(_python, None, "python:module:Class[,arg=value,…]"),
}
