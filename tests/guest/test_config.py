from vhostblk.guest.config import LAYOUT, BlkConfig
from vhostblk.spec.virtio_blk import CONFIG_SIZE


def test_parse() -> None:
    """
    Every field is where the standard puts it.

    Spec: virtio 1.3, 5.2.4.
    """
    golden = bytes.fromhex(
        "0102030405060708"  # capacity
        "11121314 21222324"  # size_max, seg_max
        "3132 33 34"  # geometry
        "41424344"  # blk_size
        "51 52 5354 55565758"  # topology
        "61 00 7172"  # writeback, padding, num_queues
        "81828384 91929394 a1a2a3a4"  # discard
        "b1b2b3b4 c1c2c3c4 d1 000000"  # write zeroes
    )
    assert len(golden) == LAYOUT.size == CONFIG_SIZE
    assert BlkConfig.parse(golden + b"what lies behind") == BlkConfig(
        capacity=0x0807060504030201,
        size_max=0x14131211,
        seg_max=0x24232221,
        cylinders=0x3231,
        heads=0x33,
        sectors=0x34,
        blk_size=0x44434241,
        physical_block_exp=0x51,
        alignment_offset=0x52,
        min_io_size=0x5453,
        opt_io_size=0x58575655,
        writeback=0x61,
        num_queues=0x7271,
        max_discard_sectors=0x84838281,
        max_discard_seg=0x94939291,
        discard_sector_alignment=0xA4A3A2A1,
        max_write_zeroes_sectors=0xB4B3B2B1,
        max_write_zeroes_seg=0xC4C3C2C1,
        write_zeroes_may_unmap=0xD1,
    )
