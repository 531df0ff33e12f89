"""A layer that fails requests on demand; run by the C core."""

import errno as errnos
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from vhostblk.disk.api import Disk
from vhostblk.disk.given import check_number, check_path, check_share, check_switch
from vhostblk.disk.grammar import MAX_SIZE, parse_size, parse_switch
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.numbers import parse_number, parse_share
from vhostblk.disk.ops import ALL, Op, ops_of, ops_text, parse_ops
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

_MAX_ERRNO = 4095
"""What the core takes at most."""

OPTIONS = frozenset({"state", "ops", "rate", "count", "after", "range", "errno", "seed", "file"})
FORM = (
    "error[:state=on|off][,ops=OP+OP…][,rate=SHARE][,count=N][,after=N][,range=FROM-TO]"
    "[,errno=NAME][,seed=N][,file=PATH]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStage:
    """
    What the core is to do.

    Args:
        on: Requests fail; else only while the file is there.
        file: A name, see `Error`; empty: none.
        ops: Which kinds.
        rate: Which share of them, 0 to 1.
        count: So many fail, and no more; 0: without an end.
        after: So many pass first.
        offset: Those that touch bytes from here,
        end: to in front of here.
        errno: What they fail with.
        seed: Which of them.
    """

    on: bool = True
    file: str = ""
    ops: frozenset[Op] = ALL
    rate: float = 1.0
    count: int = 0
    after: int = 0
    offset: int = 0
    end: int = MAX_SIZE
    errno: int = errnos.EIO
    seed: int = 0

    def with_text(self, options: Mapping[str, str]) -> "ErrorStage":
        """Return what this is with options written anew."""
        new: dict[str, object] = {}
        for key, text in options.items():
            if key == "range":
                new["offset"], new["end"] = parse_range(text)
            elif key in _PARSERS:
                field, parse = _PARSERS[key]
                new[field] = parse(text)
            else:
                some = ", ".join(sorted(OPTIONS))
                raise VhostBlkError(f"no option {key!r} (there are {some})")
        return replace(self, **new)  # type: ignore[arg-type]  # of the fields' types, by the table


class Error(StageLayer):
    """
    Fails requests in place of *below*, which never sees them.

    Args:
        below: Any disk.
        on: From the start; None: where there is no *file*.
        ops: Which kinds, by the names of `Op`.
        rate: Which share of them, 0 to 1.
        count: So many fail, and no more; 0: without an end.
        after: So many of the kind pass first.
        offset: Those fail that touch bytes from here,
        end: to in front of here, and flushes, which have no place.
        error: An ``errno``.
        seed: Chooses which fail where *rate* is less than 1.
        file: Requests fail as well while something of that name exists; looked for every 5 ms at
            most.

    Raises:
        VhostBlkError: There is no such kind, or a value is none.
    """

    name: ClassVar[str] = "error"
    commands = ("on", "off")

    def __init__(  # noqa: PLR0913 - an argument for each option
        self,
        below: object,
        *,
        on: bool | None = None,
        ops: Collection[str] = tuple(Op),
        rate: float = 1.0,
        count: int = 0,
        after: int = 0,
        offset: int = 0,
        end: int = MAX_SIZE,
        error: int = errnos.EIO,
        seed: int = 0,
        file: str = "",
    ) -> None:
        super().__init__(below)
        self._stage = ErrorStage(
            on=not file if on is None else check_switch(on, "on"),
            file=check_path(file, "file"),
            ops=ops_of(ops),
            rate=check_share(rate, "rate"),
            count=check_number(count, "count"),
            after=check_number(after, "after"),
            offset=check_number(offset, "offset", most=MAX_SIZE),
            end=check_number(end, "end", most=MAX_SIZE),
            errno=check_number(error, "error", least=1, most=_MAX_ERRNO),
            seed=check_number(seed, "seed"),
        )
        if end <= offset:
            raise VhostBlkError(f"range={offset}-{end}: write its first byte and its end")

    def stage(self) -> ErrorStage:
        """Return what fails."""
        return self._stage

    def settings(self) -> Mapping[str, Value]:
        """Return what fails, how many were of the kind while it was on, and how many failed."""
        set_to = self._stage
        return {
            "state": "on" if set_to.on else "off",
            "ops": ops_text(set_to.ops),
            "rate": set_to.rate,
            "count": set_to.count,
            "after": set_to.after,
            "range": f"{set_to.offset}-{'' if set_to.end == MAX_SIZE else set_to.end}",
            "errno": errnos.errorcode.get(set_to.errno, str(set_to.errno)),
            "seed": set_to.seed,
            "file": set_to.file or None,
            **self.counted(),
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set any option but the file; ``count`` and ``after`` are counted anew."""
        if "file" in values:
            raise VhostBlkError("error: the file cannot be changed while it serves")
        self._become(self._stage.with_text(values))

    def options(self) -> Mapping[str, str]:
        """Return whether it is on."""
        return {"state": "on" if self._stage.on else "off"}

    def on(self) -> None:
        """Fail what is to fail from now on."""
        self._become(replace(self._stage, on=True))

    def off(self) -> None:
        """Let everything pass, unless the file is there."""
        self._become(replace(self._stage, on=False))

    def _become(self, stage: ErrorStage) -> None:
        if self.bound is not None:
            self.bound.set(stage)
        self._stage = stage


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    file = options.get("file", "")
    made = Error(below, file=file)
    made.change({key: text for key, text in options.items() if key != "file"})
    return made


def parse_errno(text: str) -> int:
    """
    Read an errno by its name, ``ENOSPC``.

    Raises:
        VhostBlkError: There is none of that name.
    """
    number = getattr(errnos, text, None)
    if not text.startswith("E") or not isinstance(number, int):
        raise VhostBlkError(f"errno={text}: write the name of an error: EIO, ENOSPC, ETIMEDOUT")
    return number


def parse_range(text: str) -> tuple[int, int]:
    """
    Read a range of bytes: ``1M-2M``, ``1M-``.

    Returns:
        Its first byte, and the first behind it.

    Raises:
        VhostBlkError: None, or one that ends before it begins.
    """
    first, dash, last = text.partition("-")
    if not dash:
        raise VhostBlkError(f"range={text}: write its first byte and its end: 1M-2M, or 1M-")
    offset = parse_size(first or "0", "range")
    end = parse_size(last, "range") if last else MAX_SIZE
    if end <= offset:
        raise VhostBlkError(f"range={text}: ends before it begins")
    return offset, end


_PARSERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "state": ("on", partial(parse_switch, what="state")),
    "ops": ("ops", parse_ops),
    "rate": ("rate", partial(parse_share, what="rate")),
    "count": ("count", partial(parse_number, what="count")),
    "after": ("after", partial(parse_number, what="after")),
    "errno": ("errno", parse_errno),
    "seed": ("seed", partial(parse_number, what="seed")),
}
"""By option, the field of the stage and how it is read."""
