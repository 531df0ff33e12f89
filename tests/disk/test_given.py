"""What a program gives a layer is looked at when the layer is made."""

import math

import pytest

from vhostblk.disk.cut_options import At
from vhostblk.disk.grammar import MAX_SIZE
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError
from vhostblk.layers import (
    Cache,
    Cow,
    Cut,
    Delay,
    Error,
    Limit,
    Log,
    Offset,
    Partition,
    Pause,
    Record,
    Stats,
    Truncate,
    Verify,
    Zeroes,
)

SIZE = 1 << 20
NUMBER, SWITCH, NAME = "write a whole number", "write True or False", "write the name of a file"

WRONG = [
    (Cache, {"mode": "writearound"}, "write mode="),
    (Cache, {"size": -1}, "write 1M or more"),
    (Cache, {"size": math.inf}, NUMBER),
    (Cache, {"block": 4096.0}, NUMBER),
    (Cache, {"block": -512}, "write a power of two"),
    (Cow, {"block": 4096.0}, NUMBER),
    (Cow, {"block": -4096}, "write a power of two"),
    (Cow, {"scratch": "a\0b"}, NAME),
    (Cut, {"seed": -1}, NUMBER),
    (Cut, {"at": "0"}, "write a number from 1"),
    (Cut, {"at": At(0)}, "write a number from 1"),
    (Cut, {"at": At(1, "trim")}, "write a number from 1"),
    (Cut, {"lose": "some"}, "write lose="),
    (Cut, {"tear": "off"}, SWITCH),
    (Cut, {"grain": 1000}, "write a power of two"),
    (Cut, {"limit": -1}, NUMBER),
    (Cut, {"then": "burn"}, "write then="),
    (Cut, {"power": 1}, SWITCH),
    (Delay, {"read": "5ms..1ms"}, r"write 1ms\.\.5ms"),
    (Delay, {"read": "-1ms"}, "write 0, 50us"),
    (Delay, {"read": math.nan}, "write 0, 50us"),
    (Delay, {"seed": -1}, NUMBER),
    (Error, {"rate": math.nan}, "write a share"),
    (Error, {"rate": math.inf}, "write a share"),
    (Error, {"rate": -0.1}, "write a share"),
    (Error, {"rate": "all"}, "write a share"),
    (Error, {"count": -1}, NUMBER),
    (Error, {"count": True}, NUMBER),
    (Error, {"after": -1}, NUMBER),
    (Error, {"offset": -512}, NUMBER),
    (Error, {"offset": 4096, "end": 512}, "write its first byte and its end"),
    (Error, {"end": MAX_SIZE + 1}, NUMBER),
    (Error, {"error": 0}, NUMBER),
    (Error, {"error": 4096}, NUMBER),
    (Error, {"seed": -1}, NUMBER),
    (Error, {"ops": ()}, "write some of"),
    (Error, {"ops": ("trim",)}, "write some of"),
    (Error, {"on": "off"}, SWITCH),
    (Error, {"file": "a\0b"}, NAME),
    (Error, {"file": "a" * 4096}, NAME),
    (Limit, {"iops": math.nan}, "write a number"),
    (Limit, {"bps": math.inf}, "write a number"),
    (Limit, {"iops": -1}, "write a number"),
    (Limit, {"iops": 0.5}, "write 1 a second or more"),
    (Limit, {"burst": 5}, "write 0, 50us"),
    (Log, {"on": "off"}, SWITCH),
    (Log, {"file": "a\0b"}, NAME),
    (Offset, {"start": -512}, NUMBER),
    (Offset, {"start": 512.0}, NUMBER),
    (Offset, {"start": 0, "size": 0}, NUMBER),
    (Offset, {"start": 0, "size": -512}, NUMBER),
    (Partition, {"number": 0}, NUMBER),
    (Partition, {"number": 1 << 20}, NUMBER),
    (Pause, {"paused": "off"}, SWITCH),
    (Pause, {"ops": ("trim",)}, "write some of"),
    (Pause, {"file": "a\0b"}, NAME),
    (Record, {"path": ""}, NAME),
    (Record, {"path": "a\0b"}, NAME),
    (Record, {"path": "t", "payload": "half"}, "write payload="),
    (Stats, {"file": "a\0b"}, NAME),
    (Truncate, {"size": 0}, NUMBER),
    (Truncate, {"size": -4096}, NUMBER),
    (Truncate, {"round_down": -4096}, NUMBER),
    (Verify, {"on_mismatch": "panic"}, "write on-mismatch="),
    (Verify, {"file": "a\0b"}, NAME),
    (Zeroes, {"unmap": "off"}, SWITCH),
]


@pytest.mark.parametrize(
    ("layer", "given", "advice"), WRONG, ids=lambda one: getattr(one, "name", None)
)
def test_a_wrong_value_is_refused_when_a_layer_is_made(
    layer: type, given: dict[str, object], advice: str
) -> None:
    """By one line that names it and says what to write."""
    with pytest.raises(VhostBlkError, match=advice) as refused:
        layer(Null(SIZE), **given)
    assert "\n" not in str(refused.value)
    assert any(key.partition("_")[0] in str(refused.value) for key in ("range", *given))
