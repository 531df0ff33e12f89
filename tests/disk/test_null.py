from vhostblk.disk.api import Extent, NativeNull
from vhostblk.disk.call import Calls
from vhostblk.disk.null import Null


def test_reads_give_zeroes() -> None:
    """Whatever was written, zeroes come back, over views of any length."""
    disk = Null(1 << 20)
    calls = Calls(disk)
    calls.write(0, [memoryview(b"\xff" * 512)])
    views = [memoryview(bytearray(b"\xff" * n)) for n in (1, 511, 3 << 16)]
    calls.read(0, views)
    assert [bytes(v) for v in views] == [bytes(1), bytes(511), bytes(3 << 16)]
    assert disk.native() == NativeNull(zero=True)


def test_without_zero_the_buffer_is_left_alone() -> None:
    """zero=off costs nothing: the buffer is not touched."""
    disk = Null(1 << 20, zero=False)
    buffer = bytearray(b"\xff" * 512)
    disk.read(0, [memoryview(buffer)])
    assert buffer == b"\xff" * 512
    assert disk.native() == NativeNull(zero=False)


def test_it_can_everything_and_holds_nothing() -> None:
    """Discards and zeroes are taken, all of it is a hole, and nothing is volatile."""
    calls = Calls(Null(1 << 20))
    can = calls.abilities()
    assert (can.write, can.discard, can.write_zeroes) == (True, True, True)
    assert calls.discard(0, 512) is None
    assert calls.write_zeroes(0, 512, unmap=True) is None
    assert list(calls.block_status(512, 1024)) == [Extent(512, 1024, hole=True)]
    info = calls.info()
    assert (info.size, info.volatile, info.may_unmap) == (1 << 20, False, True)
