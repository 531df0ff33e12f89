"""In which order a successor of the core takes what was taken, wherever it died."""

import pytest
from engine.conftest import ENGINES
from engine.crashing import Crashing
from engine.tracked import Moment, Tracked


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_death_at_taking_what_was_used_before(
    crashing: Crashing, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    """
    What its entry says of long ago does not put a chain in front of those taken before it.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    monkeypatch.setitem(ENGINES, "crashing", crashing.make)
    tracked = Tracked("crashing", packed=packed)
    tracked.use_every_entry()
    tracked.lane.read(8)
    tracked.rig.step()
    tracked.lane.read(16)
    moments: list[Moment] = []
    with crashing.everywhere(lambda _: moments.append(tracked.moment())):
        tracked.rig.step()
    assert len(moments) >= 3  # before its counter, behind that, and when it is in flight
    for moment in moments:
        tracked.take_over("reference", *moment)
        offsets = [job.offset for job in tracked.rig.take(tracked.lane)]
        for job in list(tracked.rig.jobs):
            tracked.rig.finish(tracked.lane, job)
        assert offsets == [4096, 8192]
    tracked.close()
