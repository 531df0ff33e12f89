"""
What memory looks like that was not meant for us: bytes of a ring, and addresses, judged.

Nothing here is a proof, and nothing that is served depends on it: it chooses the words in which an
operator is told what is wrong with the guest.
"""

from collections.abc import Callable

LEAST_BYTES = 256
"""Fewer are not judged: chance alone could leave a ring that short without zeroes."""
BYTES_PER_ZERO = 64
"""
One byte in 256 of a ciphertext is zero.  Every descriptor has four zeroes or more in its 16 bytes:
two of the address, one of the length, one of the flags; so has every used element.
"""
PRIVACY_BITS = (47, 51)
"""Address bits that tell private from shared pages: SEV's C-bit is either, as is the shared bit of
TDX.  In addresses for the device there is none of them."""


def looks_encrypted(data: bytes) -> bool:
    """Tell whether *data*, all of a ring, has as few zeroes as only a ciphertext has."""
    return len(data) >= LEAST_BYTES and data.count(0) * BYTES_PER_ZERO < len(data)


def stray_bits(address: int, inside: Callable[[int], bool]) -> tuple[int, ...]:
    """
    Find bits without which an address would be one.

    Args:
        address: As the guest wrote it; it is not *inside*.
        inside: Whether an address is in guest memory.

    Returns:
        Numbers of the bits, lowest first; none if that is not what is wrong.
    """
    bits = tuple(bit for bit in PRIVACY_BITS if address >> bit & 1)
    plain = address & ~sum(1 << bit for bit in bits)
    return bits if bits and not inside(address) and inside(plain) else ()
