import re
from threading import Event

import pytest

from vhostblk.disk.grammar import parse
from vhostblk.disk.nbd_where import Where, where
from vhostblk.errors import VhostBlkError


def read(text: str) -> Where:
    spec = parse(text)
    return where(spec.scheme, spec.body, spec.options)


@pytest.mark.parametrize(
    ("text", "how", "to", "export"),
    [
        ("nbd:unix:/run/a.sock", "aio_connect_unix", ("/run/a.sock",), ""),
        ("nbd:unix:a,,b:c,export=x=y", "aio_connect_unix", ("a,b:c",), "x=y"),
        ("nbd:host", "aio_connect_tcp", ("host", "10809"), ""),
        ("nbd:host:1234,export=one", "aio_connect_tcp", ("host", "1234"), "one"),
        ("nbd:[::1]", "aio_connect_tcp", ("::1", "10809"), ""),
        ("nbd:[fe80::1%eth0]:99", "aio_connect_tcp", ("fe80::1%eth0", "99"), ""),
        ("nbd://host:1/x", "aio_connect_uri", ("nbd://host:1/x",), None),
        ("nbds://a@host/", "aio_connect_uri", ("nbds://a@host/",), None),
        (
            "nbd+unix:///x,,y?socket=/run/s,timeout=1s",
            "aio_connect_uri",
            ("nbd+unix:///x,y?socket=/run/s",),
            None,
        ),
    ],
)
def test_a_server_is_read(text: str, how: str, to: tuple[str, ...], export: str | None) -> None:
    """Colons are the server's; commas are written twice, as in any disk."""
    found = read(text)
    assert (found.how, found.to, found.export) == (how, to, export)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nbd:unix:", "nbd:unix:: no path: write nbd:unix:PATH"),
        ("nbd:host:0", "nbd:host:0: no server is named so: write nbd:unix:PATH"),
        ("nbd:host:65536", "no server is named so"),
        ("nbd:::1", "no server is named so"),
        ("nbds:host", "nbds:host: not a URI: write nbds://"),
        ("nbd://host/,export=x", "a URI has the export's name in it: leave out export="),
    ],
)
def test_what_is_no_server_is_said_in_one_line(text: str, message: str) -> None:
    """With what to write instead."""
    with pytest.raises(VhostBlkError, match=re.escape(message)):
        read(text)


def test_connect_says_what_the_library_says(tmp_path: object) -> None:
    """Nobody listens there: the system's own reason."""
    with pytest.raises(OSError, match="No such file"):
        read(f"nbd:unix:{tmp_path}/no.sock").connect(1.0, Event())
