"""What hypothesis makes for the fake guest, on real virtqueues."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_kit.serving import Serving, serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest
from vhostblk.guest.blk import RANGE, Framing, Request
from vhostblk.guest.hostile import Case, Outcome, attempt
from vhostblk.guest.strategies import Limits, chains, hostile_rings, requests
from vhostblk.spec.virtio_blk import SECTOR_SIZE, RequestType

Connect = Callable[..., Guest]
SECTORS = 256
RELAXED = partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["native", "reference"])
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """Run a server with each data plane."""
    with serving(request.param) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def guest(request: pytest.FixtureRequest, server: Serving, vhost_user_guest: Connect) -> Guest:
    """Connect a guest with rings of each format to a disk in memory."""
    return vhost_user_guest(server.add(Memory(SECTORS * SECTOR_SIZE)), packed=request.param)


class Model:
    """A disk that is an array of bytes."""

    def __init__(self) -> None:
        self.data = bytearray(SECTORS * SECTOR_SIZE)

    def expected(self, request: Request) -> bytes | None:
        """Do a request; return what a read brings, None for anything else."""
        at = request.sector * SECTOR_SIZE
        match request.type:
            case RequestType.IN:
                return bytes(self.data[at : at + request.in_length])
            case RequestType.OUT:
                self.data[at : at + len(request.out)] = request.out
            case RequestType.DISCARD | RequestType.WRITE_ZEROES:
                sector, sectors, _ = RANGE.unpack(request.out)
                begin, length = sector * SECTOR_SIZE, sectors * SECTOR_SIZE
                self.data[begin : begin + length] = bytes(length)
        return None


def test_requests_in_any_framing_do_what_they_say(guest: Guest) -> None:
    """A disk in memory is an array of bytes, however requests are cut."""
    model, limits = Model(), Limits.of(guest)

    @RELAXED(max_examples=60)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        request = data.draw(requests(limits))
        framing: Framing = data.draw(chains(request))
        done = guest.run(request, framing=framing)
        assert done.status == 0
        expected = model.expected(request)
        assert expected is None or done.data == expected

    run()
    whole = SECTORS // 2
    assert guest.read(0, whole * 512) + guest.read(whole, whole * 512) == model.data


@pytest.mark.slow
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_hostile_rings_are_survived(ring: str, server: Serving, vhost_user_guest: Connect) -> None:
    """Each ends as this project has decided, and the next guest is served."""
    packed = ring == "packed"
    path = server.add(Memory(SECTORS * SECTOR_SIZE))

    @RELAXED(max_examples=80)
    @given(case=hostile_rings(packed=packed))
    def run(case: Case) -> None:
        with vhost_user_guest(path, packed=packed) as guest:
            found = attempt(guest.queues[0], case)
        assert found not in {Outcome.SILENT, Outcome.DISCONNECTED}
        assert case.expected in {None, found}
        with vhost_user_guest(path) as guest:
            assert len(guest.read(0, 512)) == 512

    run()


def test_limits_are_those_of_the_device(guest: Guest) -> None:
    """As its config space and its features say."""
    limits = Limits.of(guest)
    assert (limits.sectors, limits.block, limits.writable) == (SECTORS, 512, True)
    assert limits.discard > 0
    assert limits.write_zeroes > 0
