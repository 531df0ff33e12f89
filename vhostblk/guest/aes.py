"""
AES-128 over many blocks at once, in nothing but the standard library.

A test kit must not need a crypto package, and a loop over the bytes of a page would take most of a
second.  So the blocks are turned on their side: lane *i* holds byte *i* of every block, a table
look-up is one ``bytes.translate`` for the whole lane, and an addition one XOR of long integers.  A
page of 256 blocks takes well under a millisecond.

This encrypts the memory of a make-believe guest with a key anybody can read.  It is no protection
of anything: it leaks its timing and wipes nothing.

Spec: FIPS 197.
"""

from collections.abc import Sequence

BLOCK = 16
KEY_BYTES = 16
ROUNDS = 10
_POLYNOMIAL = 0x11B
_ORDER = 255
"""How many elements of the field are not zero."""
_FORWARD = (2, 3, 1, 1)
_INVERSE = (14, 11, 13, 9)
"""First row of MixColumns and of its inverse; the others are this one rotated."""


def multiply(a: int, b: int) -> int:
    """
    Multiply in the field of AES.

    Args:
        a: A byte.
        b: A byte.

    Returns:
        The product.

    Spec: FIPS 197, 4.2.
    """
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= _POLYNOMIAL
        b >>= 1
    return product


def _make_sbox() -> bytes:
    # Multiplicative inverses by powers of the generator 3, then the affine map of FIPS 197, 5.1.1.
    powers = [1]
    while len(powers) < _ORDER:
        powers.append(multiply(powers[-1], 3))
    sbox = bytearray(256)
    for exponent, value in enumerate(powers):
        sbox[value] = _affine(powers[-exponent % _ORDER])
    sbox[0] = _affine(0)
    return bytes(sbox)


def _affine(value: int) -> int:
    doubled = value | value << 8
    rotations = (doubled >> 8 - shift for shift in range(5))
    mixed = 0x63
    for rotated in rotations:
        mixed ^= rotated & 0xFF
    return mixed


SBOX = _make_sbox()
INVERSE_SBOX = bytes(SBOX.index(value) for value in range(256))


class Aes128:
    """
    A cipher with one key.

    Args:
        key: 16 bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, not {KEY_BYTES}")
        self._keys = _expand(key)
        # The equivalent inverse cipher wants the inner round keys mixed (FIPS 197, 5.3.5).
        inner = [bytes(_mix_bytes(k)) for k in self._keys[1:-1]]
        self._inverse_keys = [self._keys[-1], *reversed(inner), self._keys[0]]
        self._ones: dict[int, int] = {}

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """Encrypt *data*, any number of blocks, each by itself."""
        return self._run(data, self._keys, _ENCRYPT)

    def decrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """Decrypt what ``encrypt`` returned."""
        return self._run(data, self._inverse_keys, _DECRYPT)

    def _run(
        self, data: bytes | bytearray | memoryview, keys: Sequence[bytes], way: "_Way"
    ) -> bytes:
        data = bytes(data)
        count, rest = divmod(len(data), BLOCK)
        if rest:
            raise ValueError(f"{len(data)} bytes are not whole blocks")
        ones = self._ones.setdefault(count, int.from_bytes(b"\1" * count, "little"))
        lanes = [data[i::BLOCK] for i in range(BLOCK)]
        lanes = [_add(lane, key * ones) for lane, key in zip(lanes, keys[0], strict=True)]
        for key in keys[1:-1]:
            lanes = way.round(lanes, [k * ones for k in key])
        out = bytearray(len(data))
        for i, key_byte in enumerate(keys[-1]):
            out[i::BLOCK] = _add(lanes[way.source[i]].translate(way.box), key_byte * ones)
        return bytes(out)


class _Way:
    """
    One direction: a substitution, a shift of the rows, and four products of the substitution.

    Args:
        box: SubBytes or its inverse.
        row: First row of the matrix of MixColumns or of its inverse.
        shift: 1 for ShiftRows, -1 for its inverse.
    """

    def __init__(self, box: bytes, row: Sequence[int], shift: int) -> None:
        self.box = box
        self.source = [4 * ((i // 4 + shift * (i % 4)) % 4) + i % 4 for i in range(BLOCK)]
        self._row = row
        self._tables = {m: bytes(multiply(value, m) for value in box) for m in set(row)}

    def round(self, lanes: Sequence[bytes], keys: Sequence[int]) -> list[bytes]:
        """Substitute, shift, mix and add the round key."""
        size = len(lanes[0])
        products = [
            {m: _number(lanes[at].translate(table)) for m, table in self._tables.items()}
            for at in self.source
        ]
        mixed = []
        for i, total in enumerate(keys):
            for j in range(4):
                total ^= products[i - i % 4 + j][self._row[(j - i) % 4]]  # noqa: PLW2901 - a sum
            mixed.append(total.to_bytes(size, "little"))
        return mixed


_ENCRYPT = _Way(SBOX, _FORWARD, 1)
_DECRYPT = _Way(INVERSE_SBOX, _INVERSE, -1)


def _expand(key: bytes) -> list[bytes]:
    words = [key[i : i + 4] for i in range(0, KEY_BYTES, 4)]
    constant = 1
    for i in range(4, 4 * (ROUNDS + 1)):
        last = words[-1]
        if i % 4 == 0:
            turned = (last[1:] + last[:1]).translate(SBOX)
            last = bytes([turned[0] ^ constant]) + turned[1:]
            constant = multiply(constant, 2)
        words.append(bytes(a ^ b for a, b in zip(words[-4], last, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, len(words), 4)]


def _mix_bytes(key: bytes) -> list[int]:
    mixed = [0] * BLOCK
    for i in range(BLOCK):
        for j in range(4):
            mixed[i] ^= multiply(key[i - i % 4 + j], _INVERSE[(j - i) % 4])
    return mixed


def _number(lane: bytes) -> int:
    return int.from_bytes(lane, "little")


def _add(lane: bytes, number: int) -> bytes:
    return (_number(lane) ^ number).to_bytes(len(lane), "little")
