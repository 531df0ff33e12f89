import struct

import pytest
from frontend_bytes import REGION, SAMPLES, Sample, some_fds, u64, vring

from vhostblk.errors import ProtocolError
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.messages import (
    AddMemReg,
    Message,
    RemMemReg,
    SetLogBase,
    SetMemTable,
    SetVringKick,
    close_fds,
    fds_of,
)
from vhostblk.protocol.parse import PARSERS, Body
from vhostblk.spec.vhost_user import Request


def parse(number: int, payload: bytes, fds: int = 0, *, need_reply: bool = False) -> Message:
    """Parse; descriptors of a message that fails are closed as the connection does it."""
    owned = tuple(Fd(number) for number in some_fds(fds))
    try:
        return PARSERS[Request(number)](Body(payload, owned, need_reply))
    except ProtocolError:
        for fd in owned:
            fd.close()
        raise


def test_every_message_number_has_a_parser_and_a_sample() -> None:
    """1 to 43, none missing."""
    assert set(PARSERS) == set(Request)
    assert [sample.number for sample in SAMPLES] == [int(request) for request in Request]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Request(sample.number).name)
def test_parser_reads_the_message(sample: Sample) -> None:
    """Numbers, descriptors and need_reply arrive in the fields of that message's class."""
    message = parse(sample.number, sample.payload, sample.fds, need_reply=True)
    assert message.request == sample.number
    assert message.need_reply
    for name, value in sample.fields.items():
        assert getattr(message, name) == value
    assert len(fds_of(message)) == sample.fds
    close_fds(message)


@pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES if sample.number != Request.CREATE_CRYPTO_SESSION],
    ids=lambda sample: Request(sample.number).name,
)
def test_parser_refuses_another_size(sample: Sample) -> None:
    """A byte more is an error, and so is a byte less; only one message has any size."""
    with pytest.raises(ProtocolError, match=r"bytes|space"):
        parse(sample.number, sample.payload + b"\0", sample.fds)
    if sample.payload:
        with pytest.raises(ProtocolError, match=r"bytes|space"):
            parse(sample.number, sample.payload[:-1], sample.fds)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Request(sample.number).name)
def test_parser_refuses_another_number_of_descriptors(sample: Sample) -> None:
    """A surplus descriptor is an error, and so is a missing one."""
    surplus = 2 if sample.number == Request.REM_MEM_REG else sample.fds + 1
    with pytest.raises(ProtocolError, match="file descriptors"):
        parse(sample.number, sample.payload, surplus)
    if sample.fds and sample.number != Request.SET_LOG_BASE:
        with pytest.raises(ProtocolError, match="file descriptors"):
            parse(sample.number, sample.payload, sample.fds - 1)


@pytest.mark.parametrize("number", [12, 13, 14])
def test_vring_descriptor_is_none_only_by_nofd(number: int) -> None:
    """Bit 8 says there is no descriptor; then there must be none."""
    message = parse(number, u64(0x101))
    assert getattr(message, "fd", "missing") is None
    assert getattr(message, "index", None) == 1
    with pytest.raises(ProtocolError, match="file descriptors"):
        parse(number, u64(0x101), 1)


def test_vring_index_of_a_kick_is_its_low_eight_bits() -> None:
    """Reserved bits above NOFD are nobody's index."""
    assert parse(12, u64(0xABCD_0000_0000_01FE)) == SetVringKick(index=0xFE, fd=None)


def test_vring_enable_is_zero_or_one() -> None:
    """Any other number neither enables nor disables."""
    with pytest.raises(ProtocolError, match="neither"):
        parse(18, vring(0, 2))


def test_mem_table_regions_have_their_descriptors_in_order() -> None:
    """The n-th descriptor is the n-th region's."""
    message = parse(5, struct.pack("=II", 2, 0) + REGION + REGION, 2)
    assert isinstance(message, SetMemTable)
    first, second = message.regions
    assert (first.gpa, first.size, first.uva) == (0x100000, 0x200000, 0x7F0000000000)
    assert first.mmap_offset == 0x3000
    assert first.fd is not second.fd
    assert fds_of(message) == (first.fd, second.fd)
    close_fds(message)


def test_mem_table_has_at_most_eight_regions() -> None:
    """More cannot have descriptors; the count is not trusted to size anything."""
    with pytest.raises(ProtocolError, match="at most 8"):
        parse(5, struct.pack("=II", 9, 0) + REGION * 9, 8)
    with pytest.raises(ProtocolError, match="at most 8"):
        parse(5, struct.pack("=II", 0xFFFFFFFF, 0))


def test_rem_mem_reg_may_bring_a_descriptor() -> None:
    """It says nothing, but it is ours to close."""
    message = parse(38, bytes(8) + REGION, 1)
    assert isinstance(message, RemMemReg)
    assert len(fds_of(message)) == 1
    close_fds(message)


def test_add_mem_reg_skips_its_padding() -> None:
    """The first eight bytes are padding, whatever is in them."""
    message = parse(37, b"\xff" * 8 + REGION, 1)
    assert isinstance(message, AddMemReg)
    assert message.region.gpa == 0x100000
    close_fds(message)


def test_log_base_without_shared_memory_is_an_address() -> None:
    """Without LOG_SHMFD it is a bare u64."""
    assert parse(6, u64(0x1234)) == SetLogBase(mmap_size=0, mmap_offset=0x1234, fd=None)


@pytest.mark.parametrize(
    ("offset", "size", "data"),
    [(0, 0, 0), (0, 4, 3), (0, 257, 257), (256, 1, 1), (0xFFFFFFFF, 4, 4), (0, 0xFFFFFFFF, 4)],
)
@pytest.mark.parametrize("number", [24, 25])
def test_config_stays_inside_the_config_space(
    number: int, offset: int, size: int, data: int
) -> None:
    """No byte beyond 256, no empty range, and as many bytes as are said."""
    with pytest.raises(ProtocolError, match="config space"):
        parse(number, struct.pack("=III", offset, size, 0) + bytes(data))


def test_config_reaches_its_last_byte() -> None:
    """All 256 bytes may be asked for at once."""
    parse(24, struct.pack("=III", 0, 256, 0) + bytes(256))
    parse(24, struct.pack("=III", 255, 1, 0) + bytes(1))
