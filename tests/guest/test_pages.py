import pytest

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.pages import (
    Apart,
    Encrypted,
    Mode,
    PageStateError,
    PageStates,
    Protection,
    protect,
)


def raw_page() -> memoryview:
    return memoryview(bytearray(PAGE))


def test_encrypted_write_changes_whole_blocks() -> None:
    """A write of one byte rewrites its block, leaves the others, and is read back."""
    pages, raw = Encrypted(Protection(mode="sev")), raw_page()
    pages.write(3, raw, 0, memoryview(b"a" * PAGE), private=True)
    before = bytes(raw)
    pages.write(3, raw, 100, memoryview(b"b"), private=True)
    assert before[:96] == raw[:96]
    assert before[112:] == raw[112:]
    assert sum(a != b for a, b in zip(before[96:112], raw[96:112], strict=True)) > 8
    assert pages.read(3, raw, slice(98, 103), private=True) == b"aabaa"


def test_encrypted_shared_access_is_raw() -> None:
    """Without the C-bit the CPU sees and writes what lies in memory."""
    pages, raw = Encrypted(Protection(mode="sev")), raw_page()
    pages.write(0, raw, 7, memoryview(b"plain"), private=False)
    assert bytes(raw[7:12]) == b"plain"
    assert pages.read(0, raw, slice(7, 12), private=True) != b"plain"


def test_a_rogue_write_garbles_its_blocks_only() -> None:
    """What the host writes into ciphertext reads as noise in exactly the blocks it touched."""
    pages, raw = Encrypted(Protection(mode="sev")), raw_page()
    pages.write(0, raw, 0, memoryview(bytes(PAGE)), private=True)
    raw[30:34] = b"evil"
    seen = pages.read(0, raw, slice(0, PAGE), private=True)
    assert (seen[:16], seen[48:]) == (bytes(16), bytes(PAGE - 48))
    assert seen[16:32] != bytes(16)
    assert seen[32:48] != bytes(16)


def test_moving_changes_ciphertext_only() -> None:
    """A page in another frame looks different and reads the same; copied ciphertext is noise."""
    pages, raw = Encrypted(Protection(mode="sev", seed=1, spa_seed=2)), raw_page()
    pages.write(9, raw, 0, memoryview(b"z" * PAGE), private=True)
    before = bytes(raw)
    pages.move(9, raw, private=True)
    assert all(before[i : i + 16] != raw[i : i + 16] for i in range(0, PAGE, 16))
    assert pages.read(9, raw, slice(0, PAGE), private=True) == b"z" * PAGE
    assert pages.read(9, memoryview(bytearray(before)), slice(0, 16), private=True) != b"z" * 16


def test_apart_keeps_private_bytes_out_of_the_memfd() -> None:
    """Private bytes are ours alone, zero at first, and lost at a conversion."""
    pages, raw = Apart(), raw_page()
    assert pages.read(1, raw, slice(5, 9), private=True) == bytes(4)
    pages.write(1, raw, 5, memoryview(b"mine"), private=True)
    assert bytes(raw) == bytes(PAGE)
    assert pages.read(1, raw, slice(4, 10), private=True) == b"\0mine\0"
    pages.converted(1, raw, private=False)
    assert pages.read(1, raw, slice(5, 9), private=True) == bytes(4)


@pytest.mark.parametrize(("mode", "word"), [("snp", "RMP"), ("tdx", "#VE")])
def test_wrong_form_is_an_error_where_hardware_checks(mode: Mode, word: str) -> None:
    """SEV-SNP and TDX fault on an access in the other form, both ways."""
    states = PageStates(mode)
    with pytest.raises(PageStateError, match=f"shared access to the private page.*{word}"):
        states.form(4, private=False)
    states.convert(4, private=False)
    with pytest.raises(PageStateError, match=f"private access to the shared page.*{word}"):
        states.form(4, private=True)
    assert states.form(4, None) is False


def test_sev_allows_any_form() -> None:
    """SEV does what the access says."""
    states = PageStates("sev")
    assert states.form(0, None) is True
    assert states.form(0, private=False) is False


def test_converting_twice_is_an_error() -> None:
    """A driver that converts what it has already converted has lost count."""
    states = PageStates("snp")
    with pytest.raises(PageStateError, match="GPA 0x4000 is private"):
        states.convert(4, private=True)
    states.convert(4, private=False)
    with pytest.raises(PageStateError, match="GPA 0x4000 is shared"):
        states.convert(4, private=False)


def test_unknown_modes_are_refused() -> None:
    """Only the four modes exist; plain needs nothing."""
    assert protect(Protection()) is None
    with pytest.raises(GuestError, match="no memory mode 'es'"):
        protect(Protection(mode="es"))  # type: ignore[arg-type]
