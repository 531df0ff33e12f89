"""What became of a queue, checked and said."""

from engine.driver import Lane


def broken(lane: Lane) -> tuple[str, int]:
    """Return why a lane is broken, which it must be, and was told once."""
    fault = lane.queue.fault()
    assert fault is not None
    assert lane.broken == [fault]
    assert lane.rings(lane.err) == 1
    return fault.reason, fault.value
