"""The minimal responder gives back what it is given; how fast is not asserted here."""

import ctypes
import struct
from threading import Thread

import pytest

from bench.respond import Ring, build

SIZE, HEADS = 4, (2, 0, 3)
NEXT = 1
NO_NOTIFY = 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("respond"))


@pytest.mark.parametrize("status", [False, True])
def test_every_head_is_given_back_once(library: ctypes.CDLL, *, status: bool) -> None:
    """
    Heads come back in order, no kick is wanted, and a status byte is written if that was said.

    Spec: virtio 1.3, 2.7.8, 2.7.10.
    """
    desc = ctypes.create_string_buffer(16 * SIZE)
    avail = ctypes.create_string_buffer(struct.pack("<HH4H", 0, len(HEADS), *HEADS, 0), 14)
    used = ctypes.create_string_buffer(6 + 8 * SIZE)
    written = ctypes.create_string_buffer(b"\xff" * 4, 4)
    here = ctypes.addressof(written)
    # Heads 0 and 2 go on at descriptor 1, whose data is the status byte; head 3 is one alone.
    for index, (at, flags) in enumerate(((0, NEXT), (here + 1, 0), (0, NEXT), (here + 3, 0))):
        struct.pack_into("<QIHH", desc, 16 * index, at, 1, flags, 1)
    ring = Ring(
        desc=ctypes.addressof(desc),
        avail=ctypes.addressof(avail),
        used=ctypes.addressof(used),
        size=SIZE,
        status=status,
    )
    thread = Thread(target=library.respond, args=(ctypes.byref(ring),))
    thread.start()
    while struct.unpack_from("<H", used, 2)[0] != len(HEADS):
        pass
    ring.stop = 1
    thread.join()
    assert struct.unpack_from("<HH6I", used) == (NO_NOTIFY, 3, 2, 1, 0, 1, 3, 1)
    assert written.raw == (b"\xff\0\xff\0" if status else b"\xff" * 4)
