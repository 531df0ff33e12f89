import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.errors import VhostBlkError
from vhostblk.server.document import decode, encode, renumber
from vhostblk.server.handover import (
    AreaState,
    ChannelState,
    DeviceState,
    FrontEndState,
    Hello,
    Last,
    Partial,
    RangeState,
    RegionState,
    Rest,
    RingBase,
    RingState,
    ServerState,
    SourceState,
    TranslationState,
)

STATE = ServerState(
    program="1.0",
    control=SourceState(kind="listening", path="/run/ctl", fd=40),
    devices=(
        DeviceState(
            name="vm0",
            source=SourceState(kind="listening", path="/run/vm0", fd=41),
            config="00ff",
            writeback=True,
            served=True,
            locked=True,
            disk=(42, 43),
            spec="memory:1M",
            front_end=FrontEndState(
                fd=44,
                since=1.5,
                phase="NEGOTIATED",
                features=1 << 32,
                protocol_features=0x1A229,
                status=15,
                regions=(RegionState(gpa=0, size=4096, uva=1 << 47, mmap_offset=8, fd=45),),
                rings=(
                    RingState(state="STARTED", num=8, desc=1, avail=2, used=3, kick=46, call=47),
                    RingState(state="STOPPED", err=48, broken="why"),
                ),
                channel=ChannelState(fd=49, waiting=(1, 1), partial=Partial(data="01", fds=(50,))),
                translations=(TranslationState(iova=1, size=2, uaddr=3, perm=1),),
                inflight=AreaState(fd=53, offset=0, size=64, num_queues=1, queue_size=2),
                inflight_asked=True,
                dirty_log=AreaState(fd=54, offset=8, size=16),
                learned=(RangeState(start=0, end=4096),),
                partial=Partial(data="0a", fds=(51, 52)),
            ),
        ),
        DeviceState(
            name="vm1",
            source=SourceState(kind="connecting", path="q"),
            config="",
            writeback=False,
            served=False,
            locked=False,
            disk=None,
            added={"name": "vm1", "disk": "null:1G", "fd": 3, "num_queues": 2, "packed": False},
        ),
    ),
)
FDS = list(range(40, 55))


def test_a_state_is_read_as_it_was_written() -> None:
    """Every field of every value survives the text, nothing else is in it."""
    assert decode(ServerState, encode(STATE)) == STATE
    last = Last(
        since=3,
        devices=(Rest(name="vm0", bases=(RingBase(index=0, base=7),), saved=4), Rest(name="vm1")),
    )
    assert decode(Last, encode(last)) == last


def test_every_descriptor_is_told_and_nothing_else() -> None:
    """A number that is no descriptor keeps its value, whatever that is."""
    told: list[int] = []

    def change(fd: int) -> int:
        told.append(fd)
        return fd + 100

    moved = renumber(STATE, change)
    assert sorted(told) == FDS
    assert renumber(moved, lambda fd: fd - 100) == STATE


def test_an_older_document_is_read() -> None:
    """Fields with a default may be missing: they were added later."""
    text = json.loads(encode(STATE))
    for name in ("learned", "translations", "partial"):
        del text["devices"][0]["front_end"][name]
    front_end = STATE.devices[0].front_end
    assert front_end is not None
    older = replace(front_end, learned=None, translations=(), partial=Partial())
    read = decode(ServerState, json.dumps(text).encode())
    assert read.devices[0].front_end == older


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["more"], 1, "has ServerState.more, which we do not know"),
        (["devices", 0, "disc"], 1, r"ServerState.devices.disc, which we do not know"),
        (["program"], 1, "has 1 for ServerState.program"),
        (["devices"], {}, r"has {} for ServerState.devices"),
        (["devices", 0, "disk"], 3, "has 3 for ServerState.devices.disk"),
        (["devices", 0, "writeback"], 1, "has 1 for ServerState.devices.writeback"),
        (["devices", 0, "source", "kind"], "x", "has 'x' for ServerState.devices.source.kind"),
        (["devices", 0, "source", "fd"], True, "has True for ServerState.devices.source.fd"),
    ],
)
def test_a_document_we_do_not_understand_is_refused(
    path: list[str | int], value: object, line: str
) -> None:
    """Fields of a newer process, and values of the wrong kind, are named and not guessed at."""
    text = json.loads(encode(STATE))
    inside = text
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    with pytest.raises(VhostBlkError, match=line):
        decode(ServerState, json.dumps(text).encode())


def test_a_document_that_lacks_something_is_refused() -> None:
    """What has no default must be there."""
    with pytest.raises(VhostBlkError, match=r"no Hello.versions"):
        decode(Hello, b'{"program": "1"}')


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_noise_is_refused(text: bytes) -> None:
    """Whatever the other process sends, we say what is wrong with it."""
    with pytest.raises(VhostBlkError):
        decode(ServerState, text)
