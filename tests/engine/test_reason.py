from vhostblk.engine.reason import Reason


def test_every_reason_has_its_own_words() -> None:
    """A log line names each way a ring can break, and no two alike."""
    assert len({reason.text for reason in Reason}) == len(Reason)
