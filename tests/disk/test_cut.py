"""The power-cut layer: a cache that reads see through, and what a cut leaves of it."""

import asyncio
import contextvars
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.disk.call import BY_DEVICE, Calls, run
from vhostblk.disk.cut import At, Cut, Then, build
from vhostblk.disk.layer import Value
from vhostblk.disk.loss import Lose
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError

SECTOR = 512
SIZE = 16 * SECTOR


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    """Close the loop that all benches of this module share."""
    Bench.loop = asyncio.new_event_loop()
    yield
    Bench.loop.close()


class Bench:
    """
    A layer over memory, called as a server does.

    Args:
        layer: Options of the layer.
    """

    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self, **layer: object) -> None:
        self.memory = Memory(SIZE)
        self.layer = Cut(self.memory, **{"seed": 1, **layer})  # type: ignore[arg-type]
        self.calls = Calls(self.layer)
        self.do(run(self.calls.open))

    def do(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]

    def end(self) -> None:
        self.do(run(self.calls.close))

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> None:
        self.do(run(self.calls.write, sector * SECTOR, [memoryview(data)], fua=fua))

    def flush(self) -> None:
        self.do(run(self.calls.flush))

    def cut(self) -> Mapping[str, Value]:
        told = self.do(self.layer.cut())
        assert isinstance(told, Mapping)
        return told

    def read(self, disk: Memory | None = None) -> bytes:
        """Return all of it, in views of odd lengths."""
        whole = bytearray(SIZE)
        views = [memoryview(whole)[:700], memoryview(whole)[700:705], memoryview(whole)[705:]]
        self.do(run(Calls(disk or self.layer).read, 0, views))
        return bytes(whole)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_reads_see_what_is_not_flushed(bench: Bench) -> None:
    """The disk below has nothing of it before the flush, and all of it behind."""
    bench.write(1, b"a" * 1024)
    bench.write(2, b"b" * 512)
    expected = bytes(512) + b"a" * 512 + b"b" * 512 + bytes(SIZE - 1536)
    assert bench.read() == expected
    assert bench.read(bench.memory) == bytes(SIZE)
    bench.flush()
    assert bench.read() == bench.read(bench.memory) == expected


def test_a_write_with_fua_goes_down_at_once(bench: Bench) -> None:
    """It alone, over what is older and not flushed."""
    bench.write(0, b"a" * 1024)
    bench.write(1, b"b" * 512, fua=True)
    assert bench.read() == b"a" * 512 + b"b" * 512 + bytes(SIZE - 1024)
    assert bench.read(bench.memory) == bytes(512) + b"b" * 512 + bytes(SIZE - 1024)


def test_what_is_flushed_stays(bench: Bench) -> None:
    """A cut that loses all it may loses nothing that was flushed."""
    bench.layer.change({"lose": "all"})
    bench.write(0, b"a" * SECTOR)
    bench.flush()
    bench.write(0, b"b" * SECTOR)
    told = bench.cut()
    assert (told["seed"], told["lost"], told["kept"]) == (1, 1, 0)
    assert told["what"] == "request 3: write of 512 bytes at 0 lost"
    assert bench.read(bench.memory)[:SECTOR] == b"a" * SECTOR


def test_without_power_every_request_fails(bench: Bench) -> None:
    """EIO until the power is on again; then what is there is served, and the next seed is used."""
    bench.write(0, b"a" * SECTOR)
    bench.layer.change({"lose": "none"})
    bench.cut()
    works: list[Callable[[], object]] = [
        lambda: bench.write(1, bytes(SECTOR)),
        bench.flush,
        bench.read,
        lambda: bench.do(run(bench.calls.discard, 0, SECTOR)),
    ]
    for work in works:
        with pytest.raises(OSError, match="the power is off") as raised:
            work()
        assert raised.value.errno == errno.EIO
    with pytest.raises(VhostBlkError, match="off already"):
        bench.cut()
    bench.layer.power_on()
    assert bench.read()[:SECTOR] == b"a" * SECTOR
    assert bench.layer.settings()["seed"] == 2
    with pytest.raises(VhostBlkError, match="power is on"):
        bench.layer.power_on()


@pytest.mark.parametrize(
    ("at", "done"), [(At(3), 2), (At(2, "write"), 2), (At(1, "flush"), 3)], ids=str
)
def test_the_power_goes_with_a_request(at: At, done: int) -> None:
    """That request is in flight at the cut and fails; those before it have completed."""
    bench = Bench(at=at, lose=Lose.ALL)
    works: list[Callable[[], object]] = [
        lambda: bench.write(0, b"a" * SECTOR),
        bench.read,
        lambda: bench.write(1, b"b" * SECTOR),
        bench.flush,
    ]
    for work in works[:done]:
        work()
    with pytest.raises(OSError, match="the power goes with this request"):
        works[done]()
    assert bench.layer.settings()["power"] == "off"
    assert bench.read(bench.memory) == bytes(SIZE)


def test_a_cut_is_repeated_by_its_seed() -> None:
    """The same requests, the same seed: the same disk, and the same told."""
    ends = []
    for _ in range(2):
        bench = Bench(seed=77)
        for number in range(12):
            bench.write(number, bytes([number + 1]) * SECTOR * 4)
        ends.append((bench.cut(), bench.read(bench.memory)))
    assert ends[0] == ends[1]
    assert len(set(ends[0][1])) > 2


def test_memory_is_bounded() -> None:
    """Behind the limit older writes go down before they are flushed; reads see no difference."""
    bench = Bench(limit=8192)
    expected = bytearray(SIZE)
    for number in range(100):
        at = number * 5 % 15
        bench.write(at, bytes([number]) * SECTOR)
        expected[at * SECTOR : (at + 1) * SECTOR] = bytes([number]) * SECTOR
        unflushed = bench.layer.settings()["unflushed_bytes"]
        assert isinstance(unflushed, int)
        assert unflushed <= 8192
        assert bench.read() == expected
    assert bench.read(bench.memory) != bytes(SIZE)


def test_closing_loses_nothing(bench: Bench) -> None:
    """A server that ends in order has flushed; where it has not, the layer does."""

    class Kept(Memory):
        def close(self) -> None:
            """Stay."""

    bench.layer.below = bench.memory = Kept(SIZE)
    del bench.layer.under
    bench.memory.open()
    bench.write(0, b"a" * SECTOR)
    bench.end()
    whole = bytearray(SECTOR)
    bench.memory.read(0, [memoryview(whole)])
    assert whole == b"a" * SECTOR


class Slow(Memory):
    """Takes turns of the loop for each write; fails when told to."""

    failing = False
    flushes = 0

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:  # type: ignore[override]
        for _ in range(3):
            await asyncio.sleep(0)
        if self.failing:
            raise OSError(errno.ENOSPC, "full")
        super().write(offset, views)

    async def flush(self) -> None:
        await asyncio.sleep(0)
        self.flushes += 1


def slow_bench() -> tuple[Bench, Slow]:
    bench = Bench(lose=Lose.ALL)
    slow = Slow(SIZE)
    slow.open()
    bench.layer.below = bench.memory = slow
    del bench.layer.under
    return bench, slow


def test_reads_see_what_is_on_its_way_down() -> None:
    """While a flush writes, reads and newer writes get what they should."""
    bench, _ = slow_bench()

    async def race() -> list[bytes]:
        await run(bench.calls.write, 0, [memoryview(b"a" * 1024)])
        await run(bench.calls.write, 512, [memoryview(b"b" * 512)])
        flushing = asyncio.ensure_future(run(bench.calls.flush))
        seen = []
        for turn in range(8):
            if turn == 4:
                await run(bench.calls.write, 0, [memoryview(b"c" * 512)])
            view = bytearray(1024)
            await run(bench.calls.read, 0, [memoryview(view)])
            seen.append(bytes(view))
            await asyncio.sleep(0)
        await flushing
        return seen

    seen = bench.do(race())
    assert seen == [b"a" * 512 + b"b" * 512] * 4 + [b"c" * 512 + b"b" * 512] * 4


def test_a_cut_in_a_flush_lets_it_fail() -> None:
    """What is on its way down may be there; the flush has not completed, so it fails."""
    bench, slow = slow_bench()

    async def race() -> None:
        await run(bench.calls.write, 0, [memoryview(b"a" * 512)])
        flushing = asyncio.ensure_future(run(bench.calls.flush))
        await asyncio.sleep(0)
        await bench.layer.cut()
        with pytest.raises(OSError, match="the power is off"):
            await flushing

    bench.do(race())
    assert slow.flushes == 2


def test_what_the_disk_below_does_not_take_is_tried_again() -> None:
    """The flush fails; the next one writes it, and reads see it in between."""
    bench, slow = slow_bench()
    bench.write(0, b"a" * SECTOR)
    slow.failing = True
    with pytest.raises(OSError, match="full"):
        bench.flush()
    assert bench.read()[:SECTOR] == b"a" * SECTOR
    slow.failing = False
    bench.flush()
    assert bench.read(slow)[:SECTOR] == b"a" * SECTOR


def test_a_device_ends_well_without_power(bench: Bench) -> None:
    """Its last flush is not the guest's: what is there is stable, and what is lost was told."""
    bench.write(0, b"a" * SECTOR)
    bench.cut()

    async def end() -> None:
        BY_DEVICE.set(True)
        await run(bench.calls.flush)

    context = contextvars.copy_context()
    context.run(bench.do, end())
    assert bench.layer.options() == {"seed": "2", "power": "off"}


def test_one_without_power_is_made_again_without(bench: Bench) -> None:
    """As text, for a process that takes over, and by what a reload inherits."""
    bench.write(0, b"a" * SECTOR)
    bench.cut()
    again = build(Memory(SIZE), bench.layer.options())
    assert (again.settings()["power"], again.settings()["seed"]) == ("off", 2)
    heir = Bench(seed=9)
    bench.do(run(heir.calls.inherit, bench.layer))
    assert heir.layer.settings()["power"] == "off"
    assert heir.layer.settings()["last_cut"] == bench.layer.settings()["last_cut"]
    with pytest.raises(VhostBlkError, match=r"'power' cannot be changed.*--do power_on"):
        heir.layer.change({"power": "on"})
    heir.layer.power_on()


def test_it_says_what_it_is_set_to(bench: Bench) -> None:
    """And what is not flushed; a change is all or nothing."""
    bench.write(0, bytes(1024))
    told = bench.layer.settings()
    assert (told["seed"], told["power"], told["unflushed_bytes"]) == (1, "on", 1024)
    with pytest.raises(VhostBlkError, match="no option 'speed'"):
        bench.layer.change({"seed": "9", "speed": "1"})
    with pytest.raises(VhostBlkError, match="at=1 is over: 1 have come"):
        bench.layer.change({"at": "1"})
    assert bench.layer.settings()["seed"] == 1
    bench.layer.change({"seed": "9", "tear": "off", "at": "write:2"})
    told = bench.layer.settings()
    assert (told["seed"], told["tear"], told["at"]) == (9, "off", "write:2")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seed": "-1"}, "seed=-1: write a whole number from 0"),
        ({"at": "fsync:3"}, "at=fsync:3: write a number from 1, or read, write"),
        ({"at": "0"}, "at=0: write"),
        ({"lose": "some"}, "lose=some: write lose= and one of any, all"),
        ({"tear": "yes"}, "write tear=on"),
        ({"grain": "1000"}, "grain=1000: write a power of two"),
        ({"then": "die"}, "then=die: write then=eio or then=exit"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, str], error: str) -> None:
    """The line says what to write."""
    with pytest.raises(VhostBlkError, match=error):
        build(Memory(SIZE), options)


def test_it_is_built_of_text() -> None:
    """Every option has its place."""
    text = {"seed": "5", "at": "flush:2", "lose": "late", "tear": "off"}
    layer = build(Memory(SIZE), {**text, "grain": "4K", "limit": "1M", "then": "exit"})
    told = layer.settings()
    assert {key: told[key] for key in text} == {**text, "seed": 5}
    assert (told["grain"], told["limit"], told["then"]) == (4096, 1 << 20, Then.EXIT)


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "fua", "flush", "discard", "zeroes", "unmap"]),
        st.integers(0, 15),
        st.integers(1, 6),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(steps, st.sampled_from([0, 6000, 64 << 20]), st.integers(0, 99))
def test_it_is_the_disk_it_is_in_front_of(
    steps: list[tuple[str, int, int]], limit: int, seed: int
) -> None:
    """Whatever is written, flushed or written back: reads give the last byte that was written."""
    bench = Bench(limit=limit, seed=seed)
    model, stable = bytearray(SIZE), bytearray(SIZE)
    random = Random(seed)
    for op, sector, count in steps:
        at, length = sector * SECTOR, min(count * SECTOR, SIZE - sector * SECTOR)
        data = random.randbytes(length) if op in {"write", "fua"} else bytes(length)
        match op:
            case "write" | "fua":
                bench.write(sector, data, fua=op == "fua")
            case "flush":
                bench.flush()
                stable[:] = model
                assert bench.read(bench.memory) == model
                continue
            case "discard":
                bench.do(run(bench.calls.discard, at, length))
            case _:
                bench.do(run(bench.calls.write_zeroes, at, length, unmap=op == "unmap"))
        model[at : at + length] = data
        assert bench.read() == model
    bench.flush()
    bench.cut()
    assert bench.read(bench.memory) == model
    bench.end()
