import hashlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.memory.symptoms import LEAST_BYTES, looks_encrypted, stray_bits

SIZES = st.sampled_from([16, 32, 64, 128, 256, 512, 1024])
FULL = b"\xff"


def noise(seed: int, length: int) -> bytes:
    """Bytes as random as a ciphertext's."""
    return hashlib.shake_256(seed.to_bytes(8, "little")).digest(length)


def nonzero(data: st.DataObject, length: int) -> bytes:
    """Bytes of which none is zero: the worst a field can be."""
    return (
        data.draw(st.binary(min_size=1, max_size=8))
        .replace(b"\0", FULL)
        .ljust(length, FULL)[:length]
    )


@settings(max_examples=100)
@given(st.data(), SIZES)
def test_no_plausible_ring_looks_encrypted(data: st.DataObject, size: int) -> None:
    """
    A ring with addresses below 2^48, lengths below 2^24, entries below its size: never.

    Every other byte is as far from zero as it can be, in every element that the ring has.
    """
    heads = data.draw(st.lists(st.integers(1, size - 1), min_size=1, max_size=8))
    head = max(heads)
    address, length, idx = nonzero(data, 6), nonzero(data, 3), nonzero(data, 2)
    flags = data.draw(st.integers(1, 7))
    desc = struct.pack("<8s4sHH", address, length, flags, head) * size
    avail = b"\1\0" + idx + struct.pack("<H", head) * size + idx
    used = b"\1\0" + idx + struct.pack("<I4s", head, length) * size + idx
    assert not looks_encrypted(desc + avail + used)


@given(st.integers(0, 1 << 32), SIZES)
def test_a_ciphertext_looks_encrypted(seed: int, size: int) -> None:
    """One byte of 256 is zero, a quarter of what is asked of a ring."""
    length = 26 * max(size, 32) + 12
    assert looks_encrypted(noise(seed, length))


def test_a_short_ring_is_not_judged() -> None:
    """Eight descriptors have 220 bytes: chance could leave them without zeroes."""
    assert not looks_encrypted(FULL * (LEAST_BYTES - 1))
    assert looks_encrypted(FULL * LEAST_BYTES)


def test_one_zero_in_64_is_the_limit() -> None:
    """Fewer look encrypted, as many do not."""
    assert looks_encrypted(bytes(15) + FULL * 1009)
    assert not looks_encrypted(bytes(16) + FULL * 1008)
    assert not looks_encrypted(bytes(1024))


def inside(address: int) -> bool:
    """A machine with 1 GiB at 4 GiB."""
    return 1 << 32 <= address < 5 << 30


@given(st.integers(1 << 32, (5 << 30) - 1), st.sampled_from([(47,), (51,), (47, 51)]))
def test_bits_are_named(address: int, bits: tuple[int, ...]) -> None:
    """Each bit that is one too many is named."""
    marked = address | sum(1 << bit for bit in bits)
    assert stray_bits(marked, inside) == bits


@given(st.integers(0, (1 << 64) - 1))
def test_no_bit_is_named_where_none_is_to_blame(address: int) -> None:
    """An address in memory, or one that is outside without the bits as well."""
    bits = stray_bits(address, inside)
    assert not bits or not inside(address)
    assert stray_bits(address & 0xFFFF_FFFF, inside) == ()
    assert stray_bits((address & 0xFFFF_FFFF) | 1 << 51, inside) == ()
    assert stray_bits(1 << 32, inside) == ()
    assert stray_bits(1 << 32 | 1 << 46, inside) == ()
