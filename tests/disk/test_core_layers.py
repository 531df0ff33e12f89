"""What is written of the layers that the C core runs: options, and what they are told as."""

import asyncio
import errno

import pytest

from vhostblk.disk.call import Calls, run
from vhostblk.disk.delay import Delay, Wait, parse_wait, wait_text
from vhostblk.disk.error import Error, parse_range
from vhostblk.disk.grammar import MAX_SIZE
from vhostblk.disk.limit import Limit, LimitStage
from vhostblk.disk.make import make
from vhostblk.disk.null import Null
from vhostblk.disk.ops import Op, ops_text, parse_ops
from vhostblk.disk.stats import Stats, counters
from vhostblk.errors import VhostBlkError

MS = 1_000_000


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("0", Wait()),
        ("2ms", Wait(2 * MS)),
        ("1ms..5ms", Wait(MS, 4 * MS)),
        ("1ms+4ms", Wait(MS, 4 * MS, exponential=True)),
        ("0+1500us", Wait(0, 1_500_000, exponential=True)),
    ],
)
def test_a_wait_is_read_and_told(text: str, wait: Wait) -> None:
    """A time, a range, or a time and how much more on average; `wait_text` is the way back."""
    assert parse_wait(text, "read") == wait
    assert parse_wait(wait_text(wait), "read") == wait


def test_one_kind_of_request_goes_before_all() -> None:
    """In whatever order they are written."""
    for made in (
        Delay(Null(512), all="1ms", read="2ms"),
        Delay(Null(512), read="2ms", all="1ms"),
    ):
        waits = dict(zip(Op, made.stage().waits, strict=True))
        assert waits[Op.READ] == Wait(2 * MS)
        assert {waits[op] for op in Op if op is not Op.READ} == {Wait(MS)}


def test_limits_are_read() -> None:
    """Requests by thousands, bytes by 1024."""
    assert Limit(Null(512), iops=500, write_bps="1M", burst="0").stage() == LimitStage(
        rates=(500, 0, 0, 0, 0, 1 << 20), burst_ns=0
    )


def test_errors_are_read_and_told() -> None:
    """Every option comes back in what the layer says of itself."""
    layer = make(
        "error:state=off,ops=read+flush,rate=5%,count=3,after=2,range=1M-2M,errno=ENOSPC,seed=9"
        "|null:1M"
    )
    assert isinstance(layer, Error)
    assert layer.settings() == {
        "state": "off",
        "ops": "read+flush",
        "rate": 0.05,
        "count": 3,
        "after": 2,
        "range": f"{1 << 20}-{2 << 20}",
        "errno": "ENOSPC",
        "seed": 9,
        "file": None,
    }
    assert layer.stage().errno == errno.ENOSPC


def test_an_error_layer_with_a_file_begins_switched_off() -> None:
    """The file switches it on; without one it is on."""
    off, on = make("error:file=/nowhere|null:1M"), make("error|null:1M")
    assert isinstance(off, Error)
    assert isinstance(on, Error)
    assert not off.stage().on
    assert on.stage().on


def test_a_range_may_have_no_end() -> None:
    """It ends with the disk then."""
    assert parse_range("4096-") == (4096, MAX_SIZE)
    assert parse_range("-4096") == (0, 4096)


def test_kinds_of_requests_are_read_and_told() -> None:
    """All of them have a word of their own."""
    assert parse_ops("read+write-zeroes") == {Op.READ, Op.WRITE_ZEROES}
    assert ops_text(parse_ops("all")) == "all"


def test_stats_names_what_the_core_counts() -> None:
    """A name for each counter, each once."""
    assert len(counters()) == len(set(counters())) == 5 * 118
    assert Stats(Null(512)).settings() == {"file": None}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("delay:read=fast|null:1M", "delay: read=fast: not a time"),
        ("delay:read=5ms..1ms|null:1M", "ends before it begins: write 1ms..5ms"),
        ("delay:sleep=1ms|null:1M", "no option 'sleep'"),
        ("limit:iops=lots|null:1M", "limit: iops=lots: not a rate"),
        ("limit:speed=1|null:1M", "no option 'speed'"),
        ("error:rate=200%|null:1M", "error: rate=200%: write a share"),
        ("error:count=-1|null:1M", "error: count=-1: write a whole number"),
        ("error:errno=SIGINT|null:1M", "errno=SIGINT: write the name of an error"),
        ("error:range=2M-1M|null:1M", "range=2M-1M: ends before it begins"),
        ("error:ops=trim|null:1M", "ops=trim: write some of read, write"),
        ("partition|null:1M", "which partition: write partition:number=N"),
        ("partition:number=0|null:1M", "number=0: write a whole number from 1 on"),
        ("offset|null:1M", "where it begins: write offset:start=SIZE"),
        ("truncate|null:1M", "how small: write truncate"),
    ],
)
def test_what_is_none_is_refused(text: str, why: str) -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError) as caught:
        make(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("offset:start=2M|null:1M", "offset: start=2097152 does not lie on the disk below"),
        ("offset:start=1M|null:1M", "offset: start=1048576 does not lie on the disk below"),
        ("offset:start=4K,size=1M|null:1M", "start=4096,size=1048576 does not lie on the disk"),
        ("offset:start=1|null:1M", "offset: start=1 splits a block: write multiples of 512"),
        ("truncate:size=2M|null:1M", "size=2097152: the disk below has only 1048576 bytes"),
    ],
)
def test_a_part_that_the_disk_below_does_not_have_is_refused(text: str, why: str) -> None:
    """When it is opened, by what was written."""
    calls = Calls(make(text))
    with pytest.raises(VhostBlkError, match=why):
        asyncio.run(run(calls.open))
