"""The page about the status document names every field of it, and no other."""

import re
from dataclasses import fields
from pathlib import Path

from vhostblk.engine.api import Counters, WorkerCounters, WorkerStatus
from vhostblk.memory.window import GuestDma
from vhostblk.server.latency import LatencyStatus
from vhostblk.server.setup_status import FileIoStatus, LayerStatus
from vhostblk.server.status import QueueStatus, SharedWindow, Status

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "status.md"
ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \|", re.MULTILINE)


def test_page_describes_every_field() -> None:
    """The first column of its tables is what there is: fields, counters, kinds of guests."""
    described = re.findall(r"`(\w+)`", " ".join(ROW.findall(PAGE.read_text())))
    documents = (Status, LayerStatus, FileIoStatus, SharedWindow, QueueStatus, LatencyStatus)
    there = {name for one in documents for name in one.__annotations__} - {"queues", "workers"}
    there |= {field.name for one in (Counters, WorkerCounters) for field in fields(one)}
    there |= {field.name for field in fields(WorkerStatus)} - {"counters"}
    assert set(described) == there | set(GuestDma)
    assert len(described) == len(set(described)), "one row each"


def test_fields_of_parts_are_inherited() -> None:
    """A TypedDict's annotations hold those of the documents it is made of."""
    assert "cbit_address_total" in Status.__annotations__
