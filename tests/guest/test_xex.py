import pytest

from vhostblk.guest.aes import Aes128
from vhostblk.guest.layout import PAGE
from vhostblk.guest.xex import Frames, PageCipher, _key

ADDRESS = 0x12345 * PAGE


def test_the_construction_is_xex() -> None:
    """A block is AES of the plaintext plus the tweak, plus the tweak again."""
    cipher = PageCipher(5)
    plain = b"sixteen bytes..."
    tweak = cipher.tweak(ADDRESS + 48).to_bytes(16, "little")
    inner = bytes(a ^ b for a, b in zip(plain, tweak, strict=True))
    outer = bytes(
        a ^ b for a, b in zip(Aes128(_key(5, b"data")).encrypt(inner), tweak, strict=True)
    )
    assert cipher.encrypt(ADDRESS + 48, plain) == outer
    assert cipher.decrypt(ADDRESS + 48, outer) == plain


def test_the_tweak_is_a_sum_over_address_bits() -> None:
    """The tweaks of two addresses without a common bit add up; bits within a block do not count."""
    cipher = PageCipher(5)
    assert cipher.tweak(0x5010) == cipher.tweak(0x4000) ^ cipher.tweak(0x1010)
    assert cipher.tweak(0x501F) == cipher.tweak(0x5010)
    assert cipher.tweak(0) == 0
    numbers = b"".join(j.to_bytes(16, "little") for j in (4, 63))
    expected = Aes128(_key(5, b"tweak")).encrypt(numbers)
    assert cipher.tweak(16).to_bytes(16, "little") == expected[:16]
    assert cipher.tweak(1 << 63).to_bytes(16, "little") == expected[16:]


def test_pieces_of_a_page_agree_with_the_page() -> None:
    """Encrypting a page at once and block by block is the same."""
    cipher = PageCipher(0)
    page = cipher.encrypt(ADDRESS, bytes(PAGE))
    for offset in (0, 16, 2048, PAGE - 16):
        assert cipher.encrypt(ADDRESS + offset, bytes(16)) == page[offset : offset + 16]
    assert cipher.decrypt(ADDRESS, page) == bytes(PAGE)


def test_equal_pages_differ() -> None:
    """No two blocks of zeros look alike, on no two pages, and with no two seeds."""
    blocks = set()
    for cipher in (PageCipher(0), PageCipher(1)):
        for address in (0, PAGE):
            page = cipher.encrypt(address, bytes(PAGE))
            blocks |= {page[i : i + 16] for i in range(0, PAGE, 16)}
    assert len(blocks) == 4 * PAGE // 16


def test_a_flipped_bit_garbles_one_block() -> None:
    """What a rogue write hits is a block, all of it, and nothing else."""
    cipher = PageCipher(3)
    page = bytearray(cipher.encrypt(ADDRESS, bytes(PAGE)))
    page[100] ^= 1
    plain = cipher.decrypt(ADDRESS, page)
    garbled = plain[96:112]
    assert plain[:96] + plain[112:] == bytes(PAGE - 16)
    assert sum(byte != 0 for byte in garbled) > 8


@pytest.mark.parametrize(("offset", "length"), [(8, 16), (0, 8), (PAGE - 16, 32)])
def test_only_blocks_of_one_page(offset: int, length: int) -> None:
    """Ranges that are no blocks, or reach over the page, are refused."""
    with pytest.raises(ValueError, match="not whole blocks of a page"):
        PageCipher(0).encrypt(ADDRESS + offset, bytes(length))


def test_frames_are_a_permutation() -> None:
    """Every page has a frame of its own, which is not its own number, and keeps it."""
    frames = Frames(7)
    addresses = [frames.address(page) for page in range(5000)]
    assert len(set(addresses)) == 5000
    assert all(address % PAGE == 0 and address >> 60 == 0 for address in addresses)
    assert sum(address == page * PAGE for page, address in enumerate(addresses)) == 0
    assert addresses == [Frames(7).address(page) for page in range(5000)]
    assert addresses[0] != Frames(8).address(0)


def test_moving_finds_a_new_frame() -> None:
    """A page that moved lies where no page was."""
    frames = Frames(7)
    before = {frames.address(page) for page in range(100)}
    frames.move(5)
    assert frames.address(5) not in before
    assert frames.address(6) in before
