"""
Memory encryption as an SEV machine does it: AES with a tweak from the system-physical address.

The tweak makes equal plaintexts differ from block to block, and ties a block to the page frame it
lies in: a host that copies ciphertext elsewhere, or writes into it, gives the guest noise.

Each block is ``AES_K(P ^ T(a)) ^ T(a)``, with ``T(a)`` the sum of one constant for each set bit of
its address.  This is the construction that was found in such machines; the constants, like the
keys, are ours.
"""

import hashlib

from vhostblk.guest.aes import BLOCK, Aes128
from vhostblk.guest.layout import PAGE

_FIRST_BIT = 4
"""Address bits below this one count bytes within a block."""
_ADDRESS_BITS = 64
_HALF = 24
"""Bits of one half of a frame number."""
FRAME_BITS = 2 * _HALF
_FEISTEL_ROUNDS = 4
_KNOWN_PIECES = 4096
"""How many pieces are remembered in both forms; most of what is read was written just before."""


class PageCipher:
    """
    The memory controller's cipher, for one guest.

    Args:
        seed: Decides the keys.
    """

    def __init__(self, seed: int) -> None:
        self._aes = Aes128(_key(seed, b"data"))
        numbers = b"".join(j.to_bytes(BLOCK, "little") for j in range(_ADDRESS_BITS))
        tweaks = Aes128(_key(seed, b"tweak")).encrypt(numbers)
        self._tweaks = [
            int.from_bytes(tweaks[i : i + BLOCK], "little") for i in range(0, len(tweaks), BLOCK)
        ]
        self._ones = int.from_bytes((b"\1" + bytes(BLOCK - 1)) * (PAGE // BLOCK), "little")
        self._offsets = self._offset_tweaks()
        self._masks: dict[int, bytes] = {}
        self._known: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def encrypt(self, address: int, data: bytes | bytearray | memoryview) -> bytes:
        """
        Encrypt whole blocks of one page.

        Args:
            address: System-physical, of the first byte; a multiple of 16.
            data: A multiple of 16 bytes, of this page only.

        Returns:
            What lies in memory.
        """
        mask = self._mask(address, len(data))
        cipher = _xor(self._aes.encrypt(_xor(data, mask)), mask)
        if len(self._known) >= _KNOWN_PIECES:
            self._known.clear()
        self._known[address, len(data)] = (cipher, bytes(data))
        return cipher

    def decrypt(self, address: int, data: bytes | bytearray | memoryview) -> bytes:
        """Decrypt what lies in memory at *address* (see ``encrypt``)."""
        mask = self._mask(address, len(data))
        cipher, plain = self._known.get((address, len(data)), (None, b""))
        if cipher == data:
            return plain
        return _xor(self._aes.decrypt(_xor(data, mask)), mask)

    def tweak(self, address: int) -> int:
        """Return the tweak of the block at *address*, as a little-endian number."""
        total = 0
        for j in range(_FIRST_BIT, _ADDRESS_BITS):
            if address >> j & 1:
                total ^= self._tweaks[j]
        return total

    def _offset_tweaks(self) -> int:
        tweaks = [self.tweak(offset) for offset in range(0, PAGE, BLOCK)]
        return int.from_bytes(b"".join(t.to_bytes(BLOCK, "little") for t in tweaks), "little")

    def _mask(self, address: int, length: int) -> bytes:
        offset = address % PAGE
        if (offset | length) % BLOCK or offset + length > PAGE:
            raise ValueError(f"{length} bytes at {address:#x} are not whole blocks of a page")
        base = address - offset
        if base not in self._masks:
            mask = self._offsets ^ self.tweak(base) * self._ones
            self._masks[base] = mask.to_bytes(PAGE, "little")
        return self._masks[base][offset : offset + length]


class Frames:
    """
    Which page frame of the machine holds which page of the guest.

    Args:
        seed: Decides the permutation.
    """

    _GENERATION_BIT = 36

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._moves: dict[int, int] = {}

    def address(self, page: int) -> int:
        """Return the system-physical address of the guest's page number *page*."""
        number = self._moves.get(page, 0) << self._GENERATION_BIT | page
        if page >> self._GENERATION_BIT or number >> FRAME_BITS:
            raise ValueError(f"page number {page:#x} has no frame")
        return self._permute(number) * PAGE

    def move(self, page: int) -> None:
        """Put the page into a frame that no page ever had."""
        self._moves[page] = self._moves.get(page, 0) + 1

    def _permute(self, number: int) -> int:
        # A Feistel network: a permutation, whatever the function of one half is.
        left, right = number >> _HALF, number & (1 << _HALF) - 1
        for turn in range(_FEISTEL_ROUNDS):
            mixed = hashlib.blake2b(
                b"%d %d %d" % (self._seed, turn, right), digest_size=_HALF // 8
            ).digest()
            left, right = right, left ^ int.from_bytes(mixed, "little")
        return left << _HALF | right


def _key(seed: int, use: bytes) -> bytes:
    return hashlib.blake2b(b"%d " % seed + use, digest_size=16).digest()


def _xor(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    number = int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")
    return number.to_bytes(len(mask), "little")
