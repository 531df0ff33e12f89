import dataclasses
from typing import get_args

import pytest
from frontend_bytes import some_fds

from vhostblk.protocol.fd import Fd
from vhostblk.protocol.messages import (
    REQUESTS,
    BlockMessage,
    Invalid,
    MemoryRegion,
    Message,
    SetMemTable,
    SetOwner,
    close_fds,
    fds_of,
)
from vhostblk.spec.vhost_user import Request


def test_every_number_has_one_class() -> None:
    """No two classes share a number and none is missing."""
    classes = get_args(Message)
    assert sorted(made.request for made in classes) == sorted(Request)
    assert set(get_args(BlockMessage)) < set(classes)
    assert list(REQUESTS) == list(range(1, 44))


@pytest.mark.parametrize("made", get_args(Message), ids=lambda made: made.__name__)
def test_messages_are_values(made: type) -> None:
    """Frozen, by keyword, each with need_reply, and named as the standard names them."""
    names = [field.name for field in dataclasses.fields(made)]
    assert "need_reply" in names
    message = made(**dict.fromkeys(names))
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.need_reply = True
    assert message.request.name.replace("_", "").lower() == made.__name__.lower()


def test_close_fds_leaves_alone_what_was_taken() -> None:
    """The regions' descriptors are closed, but for the one a handler took."""
    first, second = some_fds(2)
    regions = tuple(
        MemoryRegion(gpa=0, size=0, uva=0, mmap_offset=0, fd=Fd(number))
        for number in (first, second)
    )
    message = SetMemTable(regions=regions)
    taken = fds_of(message)[0].take()
    close_fds(message)
    assert taken == first
    assert not any(fd.owned for fd in fds_of(message))
    Fd(taken).close()


def test_message_without_descriptors_has_none() -> None:
    """Nothing to close."""
    assert fds_of(SetOwner()) == ()
    assert fds_of(Invalid(number=1, errno=1, reason="")) == ()
