"""Answers of the control socket as a person reads them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from vhostblk.server.jsonrpc import Json

_UNITS = ("", "K", "M", "G", "T", "P", "E")


def devices(result: Json) -> str:
    """Show ``list``: a table, or that there is nothing."""
    rows = cast("Sequence[Mapping[str, Json]]", result)
    if not rows:
        return "no devices"
    table = [("NAME", "SIZE", "ACCESS", "FRONT-END", "SOCKET", "DISK")]
    table += [
        (
            str(row["name"]),
            size(cast("int", row["size"])),
            "read-only" if row["read_only"] else "writable",
            "connected" if row["front_end_connected"] else "-",
            str(row["socket_path"] or "-"),
            str(row["disk"]),
        )
        for row in rows
    ]
    return columns(table)


def version(result: Json) -> str:
    """Show ``version``."""
    told = cast("Mapping[str, Json]", result)
    return f"vhostblk {told['version']}, {told['engine']} engine, process {told['pid']}"


def resumed(name: str, result: Json) -> str:
    """Show ``resume``."""
    count = cast("Mapping[str, int]", result)["queues"]
    if not count:
        return f"no queue of {name} was stopped"
    return (
        f"{count} queue{'' if count == 1 else 's'} of {name} tr{'ies' if count == 1 else 'y'} again"
    )


def layers(result: Json) -> str:
    """Show ``layers``: a table, or that there is nothing."""
    rows = cast("Sequence[Mapping[str, Json]]", result)
    if not rows:
        return "no layers"
    table = [("LAYER", "COMMANDS", "SETTINGS")]
    table += [
        (
            str(row["name"]),
            " ".join(map(str, cast("Sequence[str]", row["commands"]))) or "-",
            _options(row["settings"]),
        )
        for row in rows
    ]
    return columns(table)


def layer(result: Json, command: str) -> str:
    """Show ``layer``: what it is set to, and what *command* has returned."""
    row = cast("Mapping[str, Json]", result)
    told = [f"{row['name']}: {_options(row['settings'])}"]
    if row["result"]:
        told.append(f"{command}: {_options(row['result'])}")
    return "\n".join(told)


def _options(values: Json) -> str:
    """Show settings as options are written."""
    told = cast("Mapping[str, Json]", values).items()
    return " ".join(f"{key}={_switch(value)}" for key, value in told) or "-"


def _switch(value: Json) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value is None else str(value)


def resized(name: str, result: Json) -> str:
    """Show ``resize``."""
    bytes_ = cast("Mapping[str, int]", result)["size"]
    return f"{name} has {bytes_} bytes ({size(bytes_)})"


def moved(name: str, queue: int, result: Json) -> str:
    """Show ``move``."""
    worker = cast("Mapping[str, int]", result)["worker"]
    return f"worker {worker} serves queue {queue} of {name}"


def status(result: Json) -> str:
    """Show the status document of a device."""
    return "\n".join(_lines(cast("Mapping[str, Json]", result), ""))


def all_status(result: Json) -> str:
    """Show the status documents of all devices."""
    documents = cast("Mapping[str, Json]", result)
    return "\n\n".join(map(status, documents.values())) if documents else "no devices"


def size(number: int) -> str:
    """Return bytes with the largest unit that leaves no remainder, as disks are written."""
    unit = 0
    while number and not number % 1024 and unit + 1 < len(_UNITS):
        number //= 1024
        unit += 1
    return f"{number}{_UNITS[unit]}"


def columns(table: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table, the last one left ragged."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    )
    return "\n".join(line.rstrip() for line in padded)


def _lines(document: Mapping[str, Json], indent: str) -> Iterator[str]:
    plain = {key: value for key, value in document.items() if not _nested(value)}
    width = max(map(len, plain), default=0)
    for key, value in document.items():
        if key in plain:
            yield f"{indent}{key.ljust(width)}  {_plain(value)}"
            continue
        for part in value if isinstance(value, list) else [_told(key, value)]:
            if not part:
                continue
            yield f"{indent}{key}:"
            yield from _lines(cast("Mapping[str, Json]", part), indent + "  ")


def _told(key: str, value: Json) -> Json:
    """Leave out what has not happened: a queue counts more than a person reads."""
    if key == "counters" and isinstance(value, Mapping):
        return {name: number for name, number in value.items() if number}
    if key == "latency" and isinstance(value, Mapping):
        return {op: one for op, one in value.items() if isinstance(one, Mapping) and one["count"]}
    return value


def _nested(value: Json) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(one, Mapping) for one in value)
    )


def _plain(value: Json) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return " ".join(map(str, value)) or "-"
        case _:
            return str(value)
