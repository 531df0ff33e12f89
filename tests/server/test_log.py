"""How often a guest may make us log something."""

from vhostblk.server.log import Allowance


def test_allowance_is_a_few_at_once_then_one_now_and_then() -> None:
    """It comes back with time, never to more than it was."""
    now = [100.0]
    allowance = Allowance(burst=3, seconds=10.0, clock=lambda: now[0])
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
    now[0] += 9.0
    assert not allowance.take()
    now[0] += 1.5
    assert [allowance.take() for _ in range(2)] == [True, False]
    now[0] += 1e6
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
