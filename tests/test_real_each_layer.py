"""What each layer is there for, seen by a real guest: three disks, one boot."""

import random
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from guest_boot import tools
from guest_boot.operators import Operator
from guest_boot.restarts import Server

from vhostblk.cli import qemu_args
from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.trace.lines import NAMES
from vhostblk.trace.reader import read

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
TIMEOUT_S = 90.0
TABLE = "label: gpt\nstart=2048, size=2048\nstart=4096, size=4096\n"
PART = slice(2 * MIB, 4 * MIB)
"""Where the table has the second one."""
BAD = range(2048, 2050)
"""Sectors that fail; not where Linux looks for partitions."""
LOOKED_AT = (2040, 2041, 2049, 2050)
"""Where reads of eight sectors begin: those in the middle touch bad ones."""
START = MIB
"""Where the disk with an offset begins."""
TAIL = 64 << 10
DATA = b"w" * TAIL
LATE_US = 3000
"""Of the disk with a delay."""
LINE = re.compile(r"\S+ q0 (\S+) (\d+)\+(\d+): ok in \S+")

STACKS = {
    "part": "log:file={0}/log|limit:iops=20,burst=1ms|stats|partition:number=2|"
    "record:path={0}/trace",
    "cut": f"error:range={BAD.start * 512}-{BAD.stop * 512},errno=ENOSPC|truncate:size=2M",
    "slow": "stats|delay:read=3ms,flush=3ms|cache:mode=writeback,size=1M|"
    "verify:file={0}/sums|offset:start=1M,size=2M",
}
SCRIPT = f"""\
named() {{ echo /dev/$(grep -lx $1 /sys/block/vd*/serial | cut -d / -f 4); }}
part=$(named part) cut=$(named cut) slow=$(named slow)
summed() {{ say $1 "$(sha256sum | cut -d ' ' -f 1)"; }}
look() {{
    failed= why=
    for sector in {" ".join(map(str, LOOKED_AT))}; do
        byte=$((512 * $sector))
        dd if=$cut bs=4k skip=$byte count=1 iflag=direct,skip_bytes 2>/tmp/why >>/tmp/read || {{
            failed="$failed$sector "
            why=$(head -n 1 /tmp/why)
        }}
    done
}}
overwrite() {{
    dd if=/tmp/data of=$cut bs=4k seek={512 * (BAD.stop - 1)} count=1 oflag=direct,seek_bytes
}}
head -c {TAIL} /dev/zero | tr '\\0' w > /tmp/data

say part_size "$(blockdev --getsize64 $part)"
dd if=/tmp/data of=$part bs=64k seek=8 count=1 oflag=direct
dd if=$part bs=64k iflag=direct | summed part

say cut_size "$(blockdev --getsize64 $cut)"
look
say failed "$failed"
say why "$why"
say refused "$(overwrite 2>&1 | head -n 1)"

say slow_size "$(blockdev --getsize64 $slow)"
dd if=/tmp/data of=$slow bs=64k seek=4 oflag=direct
for i in 1 2; do dd if=$slow bs=64k count=8 iflag=direct | summed slow; done
say first part
while [ $(blockdev --getsize64 $cut) = {2 * MIB} ]; do sleep 0.05; done

dd if=$part bs=64k iflag=direct | summed part
rm /tmp/read
look
say failed "$failed"
summed looked_at < /tmp/read
overwrite
dd if=$cut bs=1M skip=2 count=1 iflag=direct | summed grown
dd if=/tmp/data of=$slow bs=64k seek=4 conv=fsync
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """
    The guest and its disks, by name.

    Args:
        directory: Where everything is.
        vm: The guest.
        before: What was in the images.
        servers: Who serve them.
    """

    directory: Path
    vm: Vm
    before: Mapping[str, bytes]
    servers: Mapping[str, Server]

    def now(self, name: str) -> bytes:
        """Return what is in an image."""
        return (self.directory / f"{name}.img").read_bytes()

    def operator(self, name: str) -> Operator:
        """Return who looks at a disk."""
        return Operator(self.directory / f"{name}.ctl", self.vm, name)

    def counted(self, name: str, layer: str, key: str) -> float:
        """Return what a layer has counted."""
        value = self.operator(name).settings(layer)[key]
        assert isinstance(value, int | float)
        return value


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Boot a guest with all of `STACKS`."""
    before, servers, disks = {}, {}, list[str]()
    for seed, name in enumerate(STACKS):
        image = tmp_path / f"{name}.img"
        image.write_bytes(random.Random(seed).randbytes(8 * MIB))
        if name == "part":
            command = ["/sbin/sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(image)]
            subprocess.run(command, input=TABLE.encode(), check=True, capture_output=True)
        before[name] = image.read_bytes()
        disk = f"{STACKS[name].format(tmp_path)}|{image}"
        options = ("--control", str(tmp_path / f"{name}.ctl"), "--serial", name)
        servers[name] = Server(tmp_path / name, disk, tmp_path / f"{name}.log", options)
        attached = qemu_args.Attachment(socket_path=tmp_path / name, memory=None, id=name)
        disks += qemu_args.arguments(attached)
    first, others = disks[:4], disks[4:]
    assert first[1].endswith(str(tmp_path / "part"))
    machine = Machine(tmp_path / "part", arguments=tuple(others))
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        vm = stack.enter_context(Vm(tools(), machine, SCRIPT, tmp_path))
        yield Bench(tmp_path, vm, before, servers)


def with_written(data: bytes, offset: int) -> bytes:
    return data[:offset] + DATA + data[offset + len(DATA) :]


def sums(bench: Bench, name: str) -> list[str]:
    """Return what the guest has said under a name, in order."""
    return [value for said, value in bench.vm.said() if said == name]


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def look_at_the_partition(bench: Bench) -> None:
    """It is where the table says, and nowhere else."""
    expected = with_written(bench.before["part"], PART.start + 8 * TAIL)
    assert bench.now("part") == expected
    assert bench.vm.marks["part_size"] == str(2 * MIB)
    assert sums(bench, "part") == [digest(expected[PART])] * 2


def look_at_requests(bench: Bench, counted: Mapping[str, float]) -> None:
    """Log, statistics and recording agree on what the guest has asked, each at its place."""
    reads = [("read", at, TAIL) for at in range(0, 2 * MIB, TAIL)]
    asked = [("write", 8 * TAIL, TAIL), *reads]
    lines = (bench.directory / "log").read_text().splitlines()
    logged = [found for line in lines if (found := LINE.fullmatch(line))]
    assert len(logged) == len(lines)
    told = [(one[1], int(one[2]), int(one[3])) for one in logged]
    assert told[-len(asked) :] == asked  # and not what came when it was off
    (segment,) = read(bench.directory / "trace").segments
    steps = [one.submitted for one in segment.requests()]
    recorded = [(NAMES[one.op], one.offset - PART.start, one.length) for one in steps]
    assert recorded[-len(asked + reads) :] == asked + reads
    for op in ("read", "write"):
        lengths = [length for name, _, length in recorded if name == op]
        assert (counted[f"{op} requests"], counted[f"{op} bytes"]) == (len(lengths), sum(lengths))


def look_at_errors(bench: Bench) -> None:
    """What was to fail has failed and nothing else, until it was off; and the size is as set."""
    before = bench.before["cut"]
    assert bench.vm.marks["cut_size"] == str(2 * MIB)
    assert sums(bench, "failed") == [" ".join(map(str, LOOKED_AT[1:-1])), ""]
    for said in ("why", "refused"):
        assert "Input/output error" in bench.vm.marks[said]
    looked_at = b"".join(before[512 * sector :][:4096] for sector in LOOKED_AT)
    assert sums(bench, "looked_at") == [digest(looked_at)]
    assert sums(bench, "grown") == [digest(before[2 * MIB : 3 * MIB])]
    at = 512 * (BAD.stop - 1)
    assert bench.now("cut") == before[:at] + DATA[:4096] + before[at + 4096 :]


def test_each_layer_does_what_it_is_there_for(bench: Bench) -> None:
    """And does it no more when it is told so, while the guest goes on."""
    bench.vm.wait_for("first", TIMEOUT_S)
    waited = bench.counted("part", "limit", "waited")
    assert waited > 0
    bench.operator("part").ask("layer", layer="limit", set={"iops": "0"})
    bench.operator("part").ask("layer", layer="log", do="off")

    assert bench.counted("cut", "error", "injected") == len(LOOKED_AT[1:-1]) + 1
    assert bench.now("cut") == bench.before["cut"]
    bench.operator("cut").ask("layer", layer="error", do="off")

    assert bench.now("slow") == bench.before["slow"]
    assert bench.counted("slow", "cache", "dirty") == TAIL
    assert bench.counted("slow", "cache", "hits") > 0
    bench.operator("cut").ask("resize", size=3 * MIB)

    said = bench.vm.wait(TIMEOUT_S)
    assert bench.counted("part", "limit", "waited") == waited
    requests = bench.operator("part").settings("stats")
    counted = {key: n for key, n in requests.items() if isinstance(n, int | float)}
    assert said["slow_size"] == str(2 * MIB)
    slow = with_written(bench.before["slow"], START + 4 * TAIL)
    assert sums(bench, "slow") == [digest(slow[START : START + 8 * TAIL])] * 2
    assert bench.now("slow") == slow
    assert bench.counted("slow", "cache", "dirty") == 0
    assert bench.counted("slow", "delay", "delayed") > 0
    assert bench.counted("slow", "stats", "read mean_us") >= LATE_US
    bench.operator("slow").ask("layer", layer="verify", do="scrub")
    assert bench.counted("slow", "verify", "checked") == TAIL // 512
    for server in bench.servers.values():
        server.stop()
    look_at_the_partition(bench)
    look_at_requests(bench, counted)
    look_at_errors(bench)
