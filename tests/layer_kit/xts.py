"""AES-XTS by OpenSSL's own interface, a sector at a time: what LUKS images hold, for tests."""

import ctypes
import functools

SECTOR = 512


@functools.cache
def _crypto() -> ctypes.CDLL:
    crypto = ctypes.CDLL("libcrypto.so.3")
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_128_xts", "EVP_aes_256_xts"):
        getattr(crypto, name).restype = ctypes.c_void_p
    return crypto


def crypt(key: bytes, offset: int, data: bytes, *, sector: int = SECTOR, encrypt: bool) -> bytes:
    """
    Encrypt or decrypt what lies at byte *offset* of the disk.

    Args:
        key: Both keys.
        offset: A multiple of *sector*.
        data: So is its length.
        sector: Bytes that are encrypted as one; their number counts 512 bytes in any case.
        encrypt: Else decrypt.
    """
    crypto = _crypto()
    cipher = {32: crypto.EVP_aes_128_xts, 64: crypto.EVP_aes_256_xts}[len(key)]
    context = ctypes.c_void_p(crypto.EVP_CIPHER_CTX_new())
    out, n, parts = ctypes.create_string_buffer(sector), ctypes.c_int(), []
    for at in range(0, len(data), sector):
        iv = ((offset + at) // SECTOR).to_bytes(16, "little")
        kind = ctypes.c_void_p(cipher())
        assert crypto.EVP_CipherInit_ex(context, kind, None, key, iv, int(encrypt)) == 1
        part = data[at : at + sector]
        assert crypto.EVP_CipherUpdate(context, out, ctypes.byref(n), part, sector) == 1
        assert n.value == sector
        parts.append(out.raw)
    crypto.EVP_CIPHER_CTX_free(context)
    return b"".join(parts)
