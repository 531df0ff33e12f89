"""What the kernel says of a process's memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mapped:
    """
    A mapping of a process.

    Args:
        start: Its first byte.
        end: Behind its last.
        name: What is mapped, as the kernel writes it; empty for anonymous memory.
        fields: What /proc/PID/smaps says of it, by name.
    """

    start: int
    end: int
    name: str
    fields: dict[str, str]

    @property
    def flags(self) -> set[str]:
        """The words of VmFlags: dd, not in a core dump; dc, not in a child; lo, locked."""
        return set(self.fields["VmFlags"].split())


def mapped(process: int | str = "self") -> Iterator[Mapped]:
    """Yield the mappings of a process, in order."""
    found: Mapped | None = None
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if re.fullmatch("[0-9a-f]+-[0-9a-f]+", words[0]):
            if found is not None:
                yield found
            start, end = (int(edge, 16) for edge in words[0].split("-"))
            found = Mapped(start, end, words[5] if len(words) == 6 else "", {})
        elif found is not None:
            name, _, value = line.partition(":")
            found.fields[name] = value.strip()
    if found is not None:
        yield found


def mapped_at(address: int, process: int | str = "self") -> Mapped:
    """Return the mapping that holds *address*."""
    return next(one for one in mapped(process) if one.start <= address < one.end)


def status(process: int | str, name: str) -> int:
    """Return a number of /proc/PID/status; of sizes, kilobytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def switches(process: int) -> dict[str, int]:
    """Return how often each thread of a process was taken off its CPU, by its number."""
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    tasks = [one.name for one in Path(f"/proc/{process}/task").iterdir()]
    return {one: sum(status(f"{process}/task/{one}", name) for name in names) for one in tasks}
