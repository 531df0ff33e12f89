"""What layers have counted goes on: in another process, and with new code."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from server_kit.serving import Serving, serving
from server_kit.taking_over import taken_over

from vhostblk.disk.grammar import parse
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.make import make
from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest, StatusError
from vhostblk.layers import Cache, Delay, Error, Limit, Stats, Verify, Zeroes
from vhostblk.server import handover as h
from vhostblk.server.document import decode, encode
from vhostblk.server.totals import device_totals, recall_layers, with_layers

Connect = Callable[..., Guest]
MIB = 1 << 20
X = b"x" * 4096


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core, which some of the layers need."""
    with serving("native") as running:
        yield running


def stack() -> object:
    """Return a disk behind every layer that counts, which counts more with each `use`."""
    delayed = Delay(Error(Memory(MIB), ops=["read"], count=1, offset=MIB // 2), all="1us")
    return Stats(Limit(Zeroes(Cache(Verify(delayed)))))


def use(guest: Guest) -> None:
    """Write zeroes and others, and read what fails."""
    guest.write(0, bytes(4096))
    guest.write(8, X)
    with pytest.raises(StatusError):
        guest.read(MIB // 512 - 8, 4096)


def settings(server: Serving, device: str) -> Mapping[str, Mapping[str, Value]]:
    index = int(device[1:]) - 1
    rows = server.run(server.devices[index].backing.layers.look())
    return {row["name"]: row["settings"] for row in rows}


async def told(server: Serving, device: str) -> h.DeviceTotals:
    """Return what a device tells of its layers, by way of its text."""
    service = server.services[device]
    totals = await with_layers(service, device_totals(service))
    return decode(h.Totals, encode(h.Totals(devices=(totals,)))).devices[0]


def test_every_layer_goes_on_counting(server: Serving, vhost_user_guest: Connect) -> None:
    """Sums are those of both."""
    for _ in range(2):
        use(vhost_user_guest(server.add(stack())))
    one = settings(server, "s1")
    server.run(recall_layers(server.services["s2"], server.run(told(server, "s1"))))
    two = settings(server, "s2")
    for layer, keys in {
        "stats": ("read requests", "read errors", "write requests", "write bytes"),
        "zeroes": ("zero_writes", "zero_bytes"),
        "cache": ("hits", "misses"),
        "error": ("matched", "injected"),
        "delay": ("delayed",),
    }.items():
        for key in keys:
            assert two[layer][key] == 2 * int(one[layer][key] or 0), (layer, key)
    assert one["stats"]["write requests"] == 2
    assert one["error"]["injected"] == 1
    assert one["delay"]["delayed"] != 0


def test_layers_that_are_others_by_now_add_nothing(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """An operator may have replaced them before it is told."""
    use(vhost_user_guest(server.add(stack())))
    server.add(Stats(Zeroes(Memory(MIB))))
    server.run(recall_layers(server.services["s2"], server.run(told(server, "s1"))))
    assert settings(server, "s2") == {
        "stats": {"file": None},
        "zeroes": {"unmap": False, "zero_writes": 0, "zero_bytes": 0},
    }


def test_what_a_layer_does_not_know_is_left_out(server: Serving) -> None:
    """Of another version of it: counters that are none here, and values that are no numbers."""
    server.add(Stats(Limit(Zeroes(Memory(MIB)), iops=5)))
    layers = (
        h.LayerTotals(name="stats", counted={"news": 1, "read requests": 2, "read bytes": "many"}),
        h.LayerTotals(name="limit", counted={"waited": 3, "waited_ns": 2_000_000_000, "iops": 9}),
        h.LayerTotals(name="zeroes", counted={"_news": 1, "_writes": 3}),
    )
    odd = h.DeviceTotals(name="s1", guest={}, iommu={}, layers=layers)
    server.run(recall_layers(server.services["s1"], odd))
    two = settings(server, "s1")
    assert (two["stats"]["read requests"], two["stats"]["read bytes"]) == (2, 0)
    assert "news" not in two["stats"]
    limit = two["limit"]
    assert (limit["iops"], limit["waited"], limit["waited_s"]) == (5, 3, 2.0)
    assert two["zeroes"]["zero_writes"] == 3


class Odd(Layer):
    """Cannot say what it has counted."""

    name = "odd"

    def counted(self) -> Mapping[str, int]:
        raise ZeroDivisionError


def upgraded(server: Serving, guest: Guest, text: str) -> None:
    """Write, have another process take over, and write there, then end it all."""
    guest.write(0, X)
    with taken_over(server, "native", f"s1={text}"):
        server.stop()
        guest.write(0, X)
        guest.flush()
        guest.close()


def test_an_upgrade_takes_what_layers_have_counted(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """From when they were reset on."""
    image, counts = tmp_path / "image", tmp_path / "counts"
    image.write_bytes(bytes(MIB))
    text = f"stats:file={counts}|file:{image}"
    guest = vhost_user_guest(server.add_written(text))
    for _ in range(3):
        guest.write(0, X)
    server.run(server.operations.layer("s1", "stats", {}, "reset"))
    upgraded(server, guest, text)
    assert "write requests: 2\nwrite bytes: 8192\n" in counts.read_text()


@pytest.mark.slow
def test_an_upgrade_survives_a_layer_that_raises(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it has counted is lost, and a line says so."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add_from(parse(f"{image}"), Odd(make(f"{image}"))))
    upgraded(server, guest, f"{image}")
    assert "upgrade: s1: what its layers have counted is lost" in caplog.text
    assert image.read_bytes()[:4096] == X


MODULE = """
from server_kit.disks import Ram

class Mine(Ram):
    def write_zeroes(self, offset, length, *, unmap):
        self.discard(offset, length)
"""


def test_new_code_behind_layers_of_the_core(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on counting when they are made anew with the disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine_counted.py").write_text(MODULE)
    text = "stats|zeroes|stats|python:mine_counted:Mine"
    guest = vhost_user_guest(server.add_written(text))
    for times in (1, 2):
        guest.write(0, bytes(4096))
        seen = settings(server, "s1")
        assert seen["stats:1"]["write requests"] == times
        assert seen["zeroes"]["zero_writes"] == times
        assert seen["stats:2"]["write-zeroes requests"] == times
        server.run(server.operations.reload("s1"))
    sys.modules.pop("mine_counted")
