"""A real guest's ext4, and the power cut: at every request of a recording, and while it runs."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from guest_boot import tools
from guest_boot.restarts import Server
from power_kit import ext4
from power_kit.recorder import segment
from server_kit.serving import serving

from vhostblk.cli import rpc
from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.disk.file import File
from vhostblk.disk.loss import Fate, Losing
from vhostblk.disk.power import Kind
from vhostblk.disk.record import Record
from vhostblk.sweep.plan import Plan
from vhostblk.sweep.sweep import Progress, Subject, Sweep

pytestmark = [pytest.mark.guest, pytest.mark.slow]

TIMEOUT_S = 90.0
UNMOUNT = "umount /mnt\n"


def record(directory: Path, script: str) -> Subject:
    """Run a guest and return the recording of all it asked of its disk, which was zeroes."""
    image, path = directory / "image", directory / "trace"
    with image.open("wb") as file:
        file.truncate(ext4.SIZE)
    with serving("native") as server:
        socket = server.add(Record(File(str(image)), path=path, payload="full"))
        with Vm(tools(), Machine(socket), script, directory) as vm:
            vm.wait(TIMEOUT_S)
    return Subject(segment(path), None, ext4.SIZE)


def swept(subject: Subject, directory: Path, *, grain: int, seeds: int) -> Progress:
    """Check every state from the first mount on."""
    marks = dict(ext4.marks(subject.segment))
    assert sorted(marks.values()) == list(range(ext4.FILES + 1))
    plan = Plan(first=min(marks), seeds=seeds, losing=Losing(grain=grain))
    sweep = Sweep(subject, plan, directory, jobs=2)
    sweep.run(ext4.Judge(marks), go_on=True)
    sweep.close()
    return sweep.progress


@pytest.mark.timeout(600)
def test_ext4_survives_a_cut_at_every_request(tmp_path: Path) -> None:
    """
    It needs no repair but its journal's, and what was synced is there, in every state.

    Formatted, mounted, written to and unmounted by the guest.  4096 bytes are never torn, as ext4
    wants its superblock written as a whole: with 512 that, and nothing else, is found.
    """
    subject = record(tmp_path, ext4.mounted() + ext4.WRITE + UNMOUNT)
    progress = swept(subject, tmp_path, grain=4096, seeds=16)
    assert not progress.failures, progress.failures[0]
    assert progress.checked > 200

    start, end = ext4.SUPERBLOCK
    for failure in swept(subject, tmp_path, grain=512, seeds=4).failures:
        assert "superblock" in failure.said.output
        assert any(
            v.fate is Fate.TORN and v.kind is Kind.WRITE and v.offset < end <= v.offset + v.length
            for v in failure.state.cut.verdicts
            if v.offset <= start
        )


@pytest.mark.timeout(600)
def test_ext4_without_barriers_does_not(tmp_path: Path) -> None:
    """The sweep finds that nobody flushes: files that were synced are not there, or worse."""
    subject = record(tmp_path, ext4.mounted("barrier=0") + ext4.WRITE + UNMOUNT)
    progress = swept(subject, tmp_path, grain=4096, seeds=4)
    assert len(progress.failures) > progress.checked // 4


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_guest_whose_power_is_cut_keeps_what_it_has_synced(tmp_path: Path, seed: int) -> None:
    """Cut by the control socket while it writes, guest killed; then the image is looked at."""
    image, control = tmp_path / "image", tmp_path / "c"
    with image.open("wb") as file:
        file.truncate(ext4.SIZE)
    disk = f"cut:seed={seed},grain=4K|{image}"
    server = Server(tmp_path / "s", disk, tmp_path / "log", ("--control", str(control)))
    script = ext4.mounted() + ext4.WRITE + "sleep 600\n"
    with server, Vm(tools(), Machine(tmp_path / "s"), script, tmp_path) as vm:
        for _ in range(4 + seed):
            synced = int(vm.wait_for("synced", TIMEOUT_S))
        question = {"device": "s", "layer": "cut", "do": "cut"}
        answer = rpc.call(control, "layer", question, seconds=60)
        assert isinstance(answer, Mapping)
        told = answer["result"]
        assert isinstance(told, Mapping), answer
        assert told["seed"] == seed
    copy = tmp_path / "copy"
    shutil.copy(image, copy)
    assert ext4.damage(copy, synced) is None, told
