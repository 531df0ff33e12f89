"""Slots follow the master, whatever a checker does to them."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from vhostblk.disk.power import Change, Kind, Piece
from vhostblk.sweep.image import Image, Slot

SIZE = 1 << 18


def nothing(path: Path) -> None:
    """Look, and touch nothing."""
    path.read_bytes()


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"!" * 512)


def cut_short(path: Path) -> None:
    os.truncate(path, 1000)


def lengthen(path: Path) -> None:
    os.truncate(path, SIZE * 2)


def replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"other")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "harm", [nothing, overwrite, cut_short, lengthen, replace, remove], ids=lambda f: f.__name__
)
def test_a_checker_spoils_only_its_own_state(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Whatever one does to its image, the next state is what it should be, byte for byte."""
    random = Random(7)
    model = bytearray(SIZE)
    master = Image(tmp_path / "master", SIZE)
    slots = [Slot(tmp_path / f"slot{n}", SIZE) for n in range(2)]
    for number in range(24):
        stable = [piece(random, number)]
        for slot in slots:
            slot.master_went_on(master.store(stable))
        put(model, stable[0])
        slot = slots[random.randrange(2)]
        pieces = [piece(random, number) for _ in range(random.randrange(4))]
        slot.become(master, pieces)
        expected = bytearray(model)
        for one in pieces:
            put(expected, one)
        assert slot.path.read_bytes() == expected
        harm(slot.path)
    master.close()
    for slot in slots:
        slot.close()
    assert list(tmp_path.iterdir()) == []


def piece(random: Random, number: int) -> Piece:
    start = random.randrange(SIZE // 512 - 64) * 512
    length = random.randrange(1, 64) * 512
    data = random.choice([None, bytes([number + 1]) * length])
    return Piece(Change(number, start, length, data, Kind.WRITE), start, start + length)


def put(model: bytearray, piece: Piece) -> None:
    model[piece.start : piece.end] = piece.data or bytes(piece.end - piece.start)


def test_holes_stay_holes(tmp_path: Path) -> None:
    """An image of a disk with little on it takes little, in the master and in each slot."""
    master = Image(tmp_path / "master", 1 << 30)
    slot = Slot(tmp_path / "slot", 1 << 30)
    change = Change(1, 512 << 20, 4096, b"x" * 4096)
    master.store([Piece(change, change.offset, change.offset + 4096)])
    slot.become(master, [])
    assert slot.path.stat().st_blocks * 512 < 1 << 20
    assert slot.path.stat().st_size == 1 << 30
    master.close()
    slot.close()
