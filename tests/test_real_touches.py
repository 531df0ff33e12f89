"""
A real guest whose I/O is bounced, as in a confidential one: the pages that a back-end touches.

What it may touch is found out by a relay that follows the guest's rings by itself, at the moment of
each touch; where the bounce buffers are, the guest's kernel says.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import auditing
import pytest
from guest_boot import scenarios, tools
from guest_boot.relay import Relay

from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.guest.touches import Auditor

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK_SIZE = 64 * MIB
BOOT_TIMEOUT_S = 90.0
AGAIN_S = 0.05
"""How often every page is watched anew."""
WINDOW = re.compile(r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]")
SCRIPT = f"""\
say window "$(dmesg | grep 'software IO TLB: mapped')"
say segment "$(cat /sys/block/vda/queue/max_segment_size)"
say system up
{scenarios.FILE_SYSTEM}
"""


@dataclass(slots=True)
class Run:
    """
    A boot under an auditor.

    Args:
        said: What the guest said.
        relay: Who followed its rings.
        auditor: Who watched the back-end.
    """

    said: dict[str, str]
    relay: Relay
    auditor: Auditor


@contextmanager
def watched_again(auditor: Auditor) -> Iterator[None]:
    """Watch every page anew, all the time."""
    end = threading.Event()

    def work() -> None:
        while not end.wait(AGAIN_S):
            auditor.watch_again()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def boot(directory: Path, program: str, *words: str) -> Run:
    """Boot a bounced guest on a back-end that is watched."""
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    relay = Relay(directory / "q")
    auditor = Auditor("", judge=relay.allows, glance=relay.glance)
    command = ("{auditor}", *words, "--socket-path", "{socket}", str(image))
    with auditing.audited(program, *command, auditor=auditor) as server:
        relay.backend = server.socket
        machine = Machine(
            relay.path,
            # A long ring takes longer to go round than a busy machine keeps the relay waiting.
            device_options=("iommu_platform=on", "disable-legacy=on", "queue-size=1024"),
            kernel_options="swiotlb=force iommu=soft",
        )
        with (
            watched_again(auditor),
            relay,
            Vm(tools(), machine, SCRIPT, directory) as vm,
        ):
            vm.wait_for("system", BOOT_TIMEOUT_S)
            auditor.forget()
            said = vm.wait(BOOT_TIMEOUT_S)
    return Run(said, relay, auditor)


def window(run: Run) -> range:
    """Return the addresses of the guest's bounce buffers."""
    found = WINDOW.search(run.said["window"])
    assert found, run.said
    return range(int(found[1], 16), int(found[2], 16) + 1)


@pytest.mark.parametrize("engine", ["native", pytest.param("reference", marks=pytest.mark.slow)])
def test_only_rings_and_posted_descriptors_are_touched(engine: str, tmp_path: Path) -> None:
    """
    Firmware and Linux: at each touch, the page is of a ring or of a chain that is available then.

    And once Linux has the disk, what is touched beside the rings lies in its bounce buffers.
    """
    run = boot(tmp_path, "audited.py", "serve", "--engine", engine)
    assert run.relay.missed == 0, "judged by all that was in the ring"
    assert run.auditor.strays == []
    assert int(run.said["segment"]) == 256 << 10
    pages = {run.relay.gpa(touch) for touch in run.auditor.touches}
    assert len(pages) > 100
    assert len(run.auditor.touches) > 1000
    assert all(page in window(run) for page in pages - run.relay.ring_pages)


@pytest.mark.slow
@pytest.mark.parametrize("misdeed", ["read_on", "write_back"])
def test_a_bad_back_end_is_caught(misdeed: str, tmp_path: Path) -> None:
    """One byte behind a buffer, or written back into a buffer that is read-only."""
    run = boot(tmp_path, "audited_badly.py", misdeed, "serve", "--engine", "reference")
    assert run.auditor.strays
    assert {touch.write for touch in run.auditor.strays} == {misdeed == "write_back"}
