import pytest

from vhostblk.guest.aes import INVERSE_SBOX, SBOX, Aes128, multiply

# FIPS 197, Appendix B; Appendix C.1; and the four blocks of NIST SP 800-38A, F.1.1.
VECTORS = [
    (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "3243f6a8885a308d313198a2e0370734",
        "3925841d02dc09fbdc118597196a0b32",
    ),
    (
        "000102030405060708090a0b0c0d0e0f",
        "00112233445566778899aabbccddeeff",
        "69c4e0d86a7b0430d8cdb78070b4c55a",
    ),
    (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
        "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf",
    ),
    (
        "2b7e151628aed2a6abf7158809cf4f3c",
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4",
    ),
]


@pytest.mark.parametrize(("key", "plain", "cipher"), VECTORS)
def test_vectors(key: str, plain: str, cipher: str) -> None:
    """
    The published vectors come out, both ways.

    Spec: FIPS 197, Appendix B and C.1; NIST SP 800-38A, F.1.1.
    """
    aes = Aes128(bytes.fromhex(key))
    assert aes.encrypt(bytes.fromhex(plain)).hex() == cipher
    assert aes.decrypt(bytes.fromhex(cipher)).hex() == plain


def test_tables() -> None:
    """
    The substitution is the published one at its corners, and a permutation.

    Spec: FIPS 197, 4.2 (an example of the product) and figure 7.
    """
    assert multiply(0x57, 0x83) == 0xC1
    assert (SBOX[0], SBOX[1], SBOX[0x53], SBOX[0xFF]) == (0x63, 0x7C, 0xED, 0x16)
    assert bytes(range(256)).translate(SBOX).translate(INVERSE_SBOX) == bytes(range(256))


def test_blocks_are_independent() -> None:
    """A page is its blocks, each encrypted by itself, and comes back."""
    aes = Aes128(bytes(range(16)))
    page = bytes(i * 7 & 0xFF for i in range(4096))
    cipher = aes.encrypt(page)
    for at in (0, 16, 2048, 4080):
        assert cipher[at : at + 16] == aes.encrypt(page[at : at + 16])
    assert aes.decrypt(cipher) == page
    assert aes.encrypt(b"") == b""


def test_sizes_are_checked() -> None:
    """Other keys than 16 bytes and pieces of blocks are refused."""
    with pytest.raises(ValueError, match="key of 15"):
        Aes128(bytes(15))
    with pytest.raises(ValueError, match="17 bytes"):
        Aes128(bytes(16)).encrypt(bytes(17))
