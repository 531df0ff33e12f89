"""The figures of ``vhostblk bench``: as a document, and as a person reads them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from vhostblk.cli.shown import columns
from vhostblk.cli.shown import size as as_size
from vhostblk.guest.load_report import Kind, Progress, Report

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
_RATES = ((1e6, "M"), (1e3, "k"))
_SPEEDS = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"))
_TIMES = ((1e6, "s"), (1e3, "ms"))
_PHASES = {
    "fill": "writing all blocks",
    "warm-up": "warming up",
    "load": "measuring",
    "check": "reading all blocks",
}


class KindDocument(TypedDict):
    """Reads, or writes."""

    requests: int
    iops: float
    bytes_per_s: float
    latency_us: dict[str, float]


class Document(TypedDict):
    """What ``--json`` writes; see docs/reference/cli.md."""

    load: dict[str, object]
    seconds: float
    interrupted: bool
    iops: float
    read: KindDocument
    write: KindDocument
    client_cpu_us: float
    server_cpu_us: float | None
    server_pid: int | None
    failed: dict[str, int]
    kicks_per_request: float
    sleeps_per_request: float
    missed_calls: int
    checked: int


def document(report: Report) -> Document:
    """Return the figures as plain values."""
    plan = report.plan
    load = plan.load
    return {
        "load": {
            "op": load.op,
            "read_percent": load.read_percent,
            "bytes": load.bytes,
            "depth": load.depth,
            "queues": load.queues,
            "order": load.order,
            "wait": load.wait,
            "packed": load.packed,
            "event_idx": plan.event_idx,
            "indirect": plan.indirect,
            "queue_size": plan.queue_size,
            "size": plan.blocks * load.bytes,
            "seed": load.seed,
            "cpus": list(load.cpus),
            "verify": load.verify,
        },
        "seconds": report.seconds,
        "interrupted": report.interrupted,
        "iops": report.iops,
        "read": _kind(report.read),
        "write": _kind(report.write),
        "client_cpu_us": report.client_cpu_us,
        "server_cpu_us": report.server_cpu_us,
        "server_pid": report.server,
        "failed": dict(report.failed),
        "kicks_per_request": report.kicks,
        "sleeps_per_request": report.sleeps,
        "missed_calls": report.missed_calls,
        "checked": report.checked,
    }


def _kind(kind: Kind) -> KindDocument:
    latency = kind.latency
    told = {name: latency.percentile(percent) / 1e3 for name, percent in _PERCENTILES.items()}
    mean = latency.sum_ns / kind.requests / 1e3 if kind.requests else 0.0
    return {
        "requests": kind.requests,
        "iops": kind.iops,
        "bytes_per_s": kind.bytes_per_s,
        "latency_us": {"mean": mean, **told, "max": latency.max_ns / 1e3},
    }


def progress(now: Progress) -> str:
    """Return a line on how it goes."""
    failed = f", {now.failed} failed" if now.failed else ""
    return (
        f"{_PHASES[now.phase]}, {now.seconds:.0f} s: {_rate(now.iops)} IOPS, "
        f"{_speed(now.bytes_per_s)}{failed}"
    )


def table(figures: Document) -> str:
    """Return the figures for a person."""
    return "\n".join(_lines(figures))


def _lines(figures: Document) -> Iterator[str]:
    yield _head(figures)
    yield ""
    rows: list[Sequence[str]] = [("", "IOPS", "bytes/s", "p50", "p90", "p99", "p99.9", "max")]
    for name, kind in (("read", figures["read"]), ("write", figures["write"])):
        if kind["requests"]:
            took = kind["latency_us"]
            times = (_time(took[which]) for which in (*_PERCENTILES, "max"))
            rows.append((name, _rate(kind["iops"]), _speed(kind["bytes_per_s"]), *times))
    yield columns(rows)
    yield ""
    yield from _rest(figures)


def _head(figures: Document) -> str:
    load = figures["load"]
    features = ("packed", "event_idx", "indirect")
    ring = ["packed" if load["packed"] else "split"]
    ring += [name.upper() for name in features[1:] if load[name]]
    mix = f" ({load['read_percent']} % reads)" if load["op"] == "rw" else ""
    order = "at random" if load["order"] == "rand" else "in sequence"
    waits = "sleeps" if load["wait"] == "block" else "polls"
    queues = load["queues"]
    return (
        f"{load['op']}{mix} {_bytes(load['bytes'])} {order} in {_bytes(load['size'])}, "
        f"depth {load['depth']}, {queues} queue{'' if queues == 1 else 's'} "
        f"({', '.join(ring)}), the client {waits}"
    )


def _bytes(value: object) -> str:
    return as_size(int(str(value)))


def _rest(figures: Document) -> Iterator[str]:
    server = figures["server_cpu_us"]
    told = "unknown" if server is None else f"{server:.2f} us (process {figures['server_pid']})"
    yield f"CPU per request: client {figures['client_cpu_us']:.2f} us, server {told}"
    requests = figures["read"]["requests"] + figures["write"]["requests"]
    early = ", ended early" if figures["interrupted"] else ""
    yield (
        f"{requests} requests in {figures['seconds']:.2f} s{early}; for each "
        f"{figures['kicks_per_request']:.3f} kicks, {figures['sleeps_per_request']:.3f} sleeps"
    )
    if figures["load"]["verify"]:
        yield f"verified: {figures['checked']} blocks were read, and all were right"
    if figures["missed_calls"]:
        yield f"calls that never came: {figures['missed_calls']}"
    if failed := _failed(figures["failed"]):
        yield f"failed: {failed}"


def _failed(failed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in failed.items() if count)


def _rate(iops: float) -> str:
    return _scaled(iops, _RATES, "")


def _speed(bytes_per_s: float) -> str:
    return _scaled(bytes_per_s, _SPEEDS, " B/s", " ")


def _time(us: float) -> str:
    return _scaled(us, _TIMES, " us", " ")


def _scaled(value: float, units: Sequence[tuple[float, str]], plain: str, space: str = "") -> str:
    for unit, name in units:
        if value >= unit:
            return f"{_digits(value / unit)}{space}{name}"
    return f"{_digits(value)}{plain}"


def _digits(value: float) -> str:
    """Return three digits of what they mean, or more in front of the point."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - powers of ten
