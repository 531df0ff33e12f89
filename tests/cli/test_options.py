import grp
import os
import pwd

import click
import pytest

from vhostblk.cli import options


@pytest.mark.parametrize(("text", "bits"), [("660", 0o660), ("0600", 0o600), ("0o777", 0o777)])
def test_mode_is_octal(text: str, bits: int) -> None:
    """Modes are read as chmod reads them."""
    assert options.mode(text) == bits


@pytest.mark.parametrize("text", ["", "rw", "9", "1777", "-1", "66 0"])
def test_mode_refuses_the_rest(text: str) -> None:
    """Anything but three octal digits is refused with an example."""
    with pytest.raises(click.BadParameter, match="give octal digits like 660"):
        options.mode(text)


def test_owner_takes_names_and_numbers() -> None:
    """USER, USER:GROUP and :GROUP work; what is not named stays as it is."""
    user = pwd.getpwuid(os.getuid()).pw_name
    group = grp.getgrgid(os.getgid()).gr_name
    assert options.owner(user) == (os.getuid(), None)
    assert options.owner(f":{group}") == (None, os.getgid())
    assert options.owner("12:34") == (12, 34)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no-such-user", "there is no user 'no-such-user' on this machine"),
        (":no-such-group", "there is no group 'no-such-group' on this machine"),
        (":", "give USER, USER:GROUP or :GROUP"),
    ],
)
def test_owner_names_what_is_missing(text: str, says: str) -> None:
    """An unknown user or group is named."""
    with pytest.raises(click.BadParameter, match=says):
        options.owner(text)
