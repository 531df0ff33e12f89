"""Whether a history of one sector can be put in order, by trying all orders."""

from collections.abc import Sequence

from vhostblk.guest.history.register import Step


def possible(writes: Sequence[Step], reads: Sequence[Step]) -> bool:
    """Tell whether *reads* follow from *writes* in any order that time allows."""
    steps = [(step, True) for step in writes] + [(step, False) for step in reads]
    dead: set[tuple[frozenset[int], bytes | None]] = set()

    def search(left: frozenset[int], value: bytes | None) -> bool:
        if all(steps[i][1] and not steps[i][0].sure for i in left):
            return True
        if (left, value) in dead:
            return False
        # The next one begins before any that is left, and must happen, ends.
        soonest = min(steps[i][0].end for i in left if steps[i][0].sure)
        for i in left:
            step, is_write = steps[i]
            if step.begin <= soonest and (is_write or step.value == value):
                rest = left - {i}
                if search(rest, step.value if is_write else value):
                    return True
        dead.add((left, value))
        return False

    return search(frozenset(range(len(steps))), None)
