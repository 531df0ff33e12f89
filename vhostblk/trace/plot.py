"""Pictures of a trace, by matplotlib, which is not installed with this package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import Op
from vhostblk.trace.reader import Request

_COLOURS = {
    Op.READ: "tab:blue",
    Op.WRITE: "tab:red",
    Op.FLUSH: "tab:green",
    Op.DISCARD: "tab:orange",
    Op.WRITE_ZEROES: "tab:purple",
}
_NS, _MIB, _KIB = 1e9, 1 << 20, 1 << 10
SUFFIXES = frozenset({".png", ".svg"})


def plot(requests: Sequence[Request], path: Path, title: str) -> None:
    """
    Draw where requests went over time, how long they took, and how large they were.

    Args:
        requests: In any order, at least one.
        path: A file whose name ends in .png or .svg.
        title: Above the picture.

    Raises:
        VhostBlkError: matplotlib is not there, or the name ends otherwise.
    """
    if path.suffix not in SUFFIXES:
        raise VhostBlkError(f"{path}: write a name that ends in .png or .svg")
    figure = _figure()
    figure.suptitle(title)
    places, latencies, sizes = figure.subplots(3, 1)
    for op in Op:
        chosen = [one for one in requests if one.submitted.op is op]
        if chosen:
            _draw(op, chosen, places, latencies, sizes)
    places.set(xlabel="s", ylabel="offset, MiB")
    latencies.set(xlabel="s", ylabel="latency, us", yscale="log")
    sizes.set(xlabel="request, KiB", ylabel="requests", yscale="log")
    sizes.set_xscale("log", base=2)
    for axes in (places, latencies, sizes):
        axes.legend(loc="upper right", fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _figure() -> Any:  # noqa: ANN401 - matplotlib's are of no use without it
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only who plots needs it
    except ImportError as error:
        raise VhostBlkError(
            "pictures are drawn by matplotlib: install it, `pip install vhostblk[plot]`"
        ) from error
    return Figure(figsize=(10, 12), layout="constrained")


def _draw(op: Op, requests: Sequence[Request], places: Any, latencies: Any, sizes: Any) -> None:  # noqa: ANN401
    name = op.name.lower().replace("_", "-")
    look = {"color": _COLOURS[op], "label": name}
    if op is not Op.FLUSH:
        times = [one.submitted.time / _NS for one in requests]
        places.scatter(times, [one.submitted.offset / _MIB for one in requests], s=4, **look)
        lengths = [max(one.submitted.length / _KIB, 0.5) for one in requests]
        sizes.hist(lengths, bins=[2**n for n in range(-1, 16)], alpha=0.6, **look)
    over = [(one.submitted.time / _NS, one.latency) for one in requests if one.latency is not None]
    if over:
        shown = [max(latency, 1) / 1000 for _, latency in over]
        latencies.scatter([time for time, _ in over], shown, s=4, **look)
