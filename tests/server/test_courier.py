import os
import socket
import threading
from collections.abc import Iterator

import pytest
from server_kit.left import open_fds

from vhostblk.errors import VhostBlkError
from vhostblk.server.courier import BATCH, Courier, Gone
from vhostblk.server.handover import Answer, Hello, Partial

SECONDS = 5.0
HELLO = Hello(versions=(1,), program="x")


@pytest.fixture
def ends() -> Iterator[tuple[Courier, Courier]]:
    """Return both ends, with nothing left of them afterwards."""
    before = open_fds()
    ours, theirs = Courier.pair()
    other = Courier(theirs)
    yield ours, other
    ours.hang_up()
    other.hang_up()
    assert open_fds() == before


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 3 * BATCH])
def test_any_number_of_descriptors_arrives_in_order(
    ends: tuple[Courier, Courier], count: int
) -> None:
    """
    More than the kernel takes at once come in batches; ours stay ours, theirs close at exec.

    Source: Linux, include/net/scm.h, SCM_MAX_FD.
    """
    ours, theirs = ends
    fds = [os.memfd_create(f"{at}") for at in range(count)]
    for at, fd in enumerate(fds):
        os.write(fd, b"%d" % at)
    sender = threading.Thread(
        target=lambda: ours.send(Partial(data="ab", fds=tuple(fds)), seconds=SECONDS)
    )
    sender.start()
    got = theirs.receive(Partial, seconds=SECONDS)
    sender.join()
    assert got.data == "ab"
    assert [os.pread(fd, 9, 0) for fd in got.fds] == [b"%d" % at for at in range(count)]
    assert not any(os.get_inheritable(fd) for fd in got.fds)
    for fd in (*fds, *got.fds):
        os.close(fd)


def test_documents_come_one_after_the_other(ends: tuple[Courier, Courier]) -> None:
    """What was sent together is received apart, descriptors with their own document."""
    ours, theirs = ends
    read, write = os.pipe()
    ours.send(HELLO, seconds=SECONDS)
    ours.send(Partial(fds=(read,)), seconds=SECONDS)
    ours.send(Answer(), seconds=SECONDS)
    assert theirs.receive(Hello, seconds=SECONDS) == HELLO
    (fd,) = theirs.receive(Partial, seconds=SECONDS).fds
    os.write(write, b"x")
    assert os.read(fd, 9) == b"x"
    assert theirs.receive(Answer, seconds=SECONDS) == Answer()
    for one in (fd, read, write):
        os.close(one)


def test_who_hangs_up_is_noticed_at_once(ends: tuple[Courier, Courier]) -> None:
    """Between documents and within one, before and after descriptors."""
    ours, theirs = ends
    theirs.hang_up()
    with pytest.raises(Gone):
        ours.receive(Hello, seconds=SECONDS)
    with pytest.raises(Gone):
        ours.send(HELLO, seconds=SECONDS)


def test_who_is_silent_is_not_waited_for(ends: tuple[Courier, Courier]) -> None:
    """The bound is one for the whole document, however slowly its bytes come."""
    ours, _ = ends
    with pytest.raises(TimeoutError):
        ours.receive(Hello, seconds=0.01)
    with pytest.raises(TimeoutError):
        ours.receive(Hello, seconds=0)


def test_a_document_that_is_another_closes_what_came_with_it(
    ends: tuple[Courier, Courier],
) -> None:
    """Nothing is left of a document that is refused."""
    ours, theirs = ends
    with open(os.devnull) as file:  # noqa: PTH123 - a descriptor
        ours.send(Partial(fds=(file.fileno(),)), seconds=SECONDS)
    with pytest.raises(VhostBlkError, match="which we do not know"):
        theirs.receive(Hello, seconds=SECONDS)


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (b"\xff" * 8, "a state document of 4294967295 bytes"),
        (b"\x0c\0\0\0\1\0\0\0" + b'{"fds": [0]}' + b".", "were lost on the way"),
        (b"\x0c\0\0\0\0\0\0\0" + b'{"fds": [5]}', "names descriptor 5 of 0"),
    ],
)
def test_noise_is_refused(sent: bytes, line: str) -> None:
    """Lengths beyond all sense, descriptors that were promised or are named and are not there."""
    courier, sock = Courier.pair()
    with socket.socket(fileno=sock.detach()) as raw:
        raw.send(sent)
        with pytest.raises(VhostBlkError, match=line):
            courier.receive(Partial, seconds=SECONDS)
    courier.hang_up()
