import pytest

from vhostblk.engine.poll import AUTO_CAP_US, Poll, PollMode
from vhostblk.errors import VhostBlkError


@pytest.mark.parametrize(
    ("text", "poll"),
    [
        ("auto", Poll(PollMode.AUTO, AUTO_CAP_US)),
        ("always", Poll(PollMode.ALWAYS, 0)),
        ("0", Poll(PollMode.FIXED, 0)),
        ("50us", Poll(PollMode.FIXED, 50)),
        ("1000000us", Poll(PollMode.FIXED, 1_000_000)),
    ],
)
def test_poll_is_read_as_it_is_written(text: str, poll: Poll) -> None:
    """Each form means one thing, and is written as it was read."""
    assert Poll.parse(text) == poll
    assert str(poll) == text


@pytest.mark.parametrize("text", ["", "50", "1000001us", "-1us", "1.5us", "50 us", "never", "٣us"])
def test_poll_refuses_the_rest(text: str) -> None:
    """A number without its unit is refused, as is what is too long; the line says what to give."""
    with pytest.raises(VhostBlkError, match="give auto, always, 0, or microseconds up to 1000000"):
        Poll.parse(text)
