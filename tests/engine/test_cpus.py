"""CPUs that workers are pinned to, as they are written."""

import pytest

from vhostblk.engine.cpus import MOST, check_cpus, format_cpus, parse_cpus
from vhostblk.errors import VhostBlkError


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        ("3", (3,)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        ("8, 0-1", (8, 0, 1)),
        ("5-5", (5,)),
        (str(MOST - 1), (MOST - 1,)),
    ],
)
def test_list_is_read_in_its_order(text: str, cpus: tuple[int, ...]) -> None:
    """The first is the first worker's."""
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text", ["a", ",", "1,", "-1", "1-", "3-1", "1-2-3", "0x1", str(MOST), "1-99999", "1 2", "٣"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    """One line that shows how it is written."""
    with pytest.raises(VhostBlkError, match="is no list of CPUs: give numbers, like 0-3,8"):
        parse_cpus(text)


def test_no_two_workers_share_one() -> None:
    """Nor has one none, where the others have."""
    with pytest.raises(VhostBlkError, match="names CPU 2 twice"):
        parse_cpus("0-2,2")
    with pytest.raises(VhostBlkError, match="3 workers are more than the CPUs of cpus '0-1'"):
        parse_cpus("0-1", workers=3)
    assert parse_cpus("0-1", workers=1) == (0, 1)
    assert parse_cpus("", workers=3) == ()


def test_what_is_not_there_is_told() -> None:
    """With what is, as it would be written."""
    check_cpus((3, 0), {0, 1, 3})
    with pytest.raises(VhostBlkError, match=r"^CPU 2 is not there, .*may use 0-1,3$"):
        check_cpus((3, 2), {3, 0, 1})


@pytest.mark.parametrize("text", ["", "0", "0-1", "0,2-4,7"])
def test_written_is_what_is_read(text: str) -> None:
    """As short as it goes."""
    assert format_cpus(parse_cpus(text)) == text
