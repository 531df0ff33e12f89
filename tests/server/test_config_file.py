"""The configuration file: what is right, and in which words it is told what is not."""

from pathlib import Path

import pytest

from vhostblk.engine.poll import Poll
from vhostblk.errors import VhostBlkError
from vhostblk.server.config_file import Config, read_config
from vhostblk.server.policy import Confidential, IommuMode

ONE = '[[device]]\ndisk = "memory:1M"\nsocket_path = "/run/a.sock"\n'
TWO = '[[device]]\ndisk = "memory:1M"\nsocket_path = "/run/b/a.sock"\n'


def read(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "f.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_config(path)


def test_every_key_reaches_its_device(tmp_path: Path) -> None:
    """Numbers may be whole where fractions are taken; what is not said has its default."""
    config = read(
        tmp_path,
        'control = "c"\nengine = "reference"\nworkers = 3\ncpus = "4,0-1"\n'
        'poll = "5us"\n[[device]]\n'
        'name = "n"\ndisk = "file:a,,b"\nsocket_path = "s"\nsocket_mode = "660"\n'
        'socket_owner = "7:8"\nserial = "S"\nnum_queues = 2\nqueue_size = 64\npacked = false\n'
        "ring_reset = true\nread_only = true\n"
        'cache = "none"\nlock = "while-running"\nblock_size = 4096\ndrain_timeout = 5\n'
        "slow_request = 0\n"
        'on_error = "stop"\nconfidential = "require"\nshared_ranges = "0x1000+4K"\n'
        'on_violation = "break"\niommu = "off"\naccess_platform = false\n' + ONE,
    )
    assert (str(config.control), config.engine, config.workers) == ("c", "reference", 3)
    assert config.cpus == (4, 0, 1)
    assert config.poll == Poll.parse("5us")
    full, plain = config.devices
    options = full.options
    assert str(full.source) == "file:a,,b,cache=none,lock=while-running,read-only=on"
    assert (full.place.listen_on, full.place.connect_to) == (Path("s"), None)
    assert (full.socket.mode, full.socket.uid, full.socket.gid) == (0o660, 7, 8)
    assert (full.name, options.serial, options.num_queues) == ("n", "S", 2)
    assert (options.queue_size, options.packed, options.ring_reset) == (64, False, True)
    assert (options.read_only, options.block_size) == (True, 4096)
    assert (options.drain_seconds, str(options.on_error)) == (5.0, "stop")
    assert options.slow_request == 0
    assert (options.confidential, options.iommu) == (Confidential.REQUIRE, IommuMode.OFF)
    assert options.shared_ranges
    assert (str(options.on_violation), options.access_platform) == ("break", False)
    assert (plain.name, plain.options.num_queues) == ("a.sock", 1)


def test_no_device_is_a_file_too(tmp_path: Path) -> None:
    """Devices can be added later."""
    assert read(tmp_path, "").devices == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "not TOML"),
        (b"\xff", "not TOML"),
        (
            "x = 1",
            "there is no key 'x' above the devices; there are control, engine, workers, cpus,",
        ),
        ('disk = "a"', "what is about one device stands in its [[device]]"),
        ("device = 1", "device is a list of tables: write [[device]] above each"),
        ("[device]", "device is a list of tables"),
        ('engine = "fast"', "engine is one of auto, native, reference, not 'fast'"),
        ("poll = '5'", "poll '5': give auto, always, 0, or microseconds"),
        ("workers = 0", "workers is 1 to 256, not 0"),
        ('cpus = "a"', "cpus 'a' is no list of CPUs"),
        ('workers = 3\ncpus = "0-1"', "3 workers are more than the CPUs of cpus '0-1'"),
        ("workers = true", "workers is a whole number, not True"),
        ("control = 1", "control is a text, not 1"),
        ("[[device]]", "device 1: disk is missing"),
        (ONE + TWO, "two devices are called 'a.sock': give one of them a name"),
        (ONE + ONE + 'name = "b"', "a.sock and b have one socket: /run/a.sock"),
        (ONE + 'nmae = "b"', "device 1: there is no key 'nmae'; there are name, disk,"),
        (
            ONE + 'name = "b"\nnum_queues = "4"',
            "device 1 (b): num_queues is a whole number, not '4'",
        ),
        (ONE + "num_queues = 65", "device 1: num_queues is 1 to 64, not 65"),
        (ONE + "read_only = 1", "read_only is true or false, not 1"),
        (ONE + "drain_timeout = 0", "drain_seconds is more than 0, not 0"),
        (ONE + 'cache = "fast"', "cache is one of writeback, none, writethrough, directsync, not"),
        (ONE + 'cache = "none"', "cache is for files: a memory: disk has no host cache"),
        (
            ONE + 'connect = "b"',
            "give one of socket_path, connect, fd and systemd, not socket_path and",
        ),
        (
            '[[device]]\ndisk = "memory:1M"',
            "give one of socket_path, connect, fd and systemd, not none",
        ),
        (ONE + 'socket_mode = "9"', "socket_mode: '9' is not a mode; give octal digits like 660"),
        (ONE + 'socket_owner = "no-such-one"', "there is no user 'no-such-one' on this machine"),
        (ONE + 'serial = "123456789012345678901"', "is longer than 20 bytes"),
        (ONE + 'shared_ranges = "x"', "device 1: "),
        (ONE + 'confidential = "require"', "needs to know what the guest shares"),
        (ONE + 'on_error = "stop"', "a.sock: on_error stop stops the guest's disk until"),
        (ONE + 'name = "a\\nb"', "cannot be printed"),
        ('[[device]]\ndisk = "a,b|c"\nfd = 3', "'a,b' in front of a bar is not a layer"),
    ],
)
def test_what_is_wrong_is_told(text: str | bytes, says: str, tmp_path: Path) -> None:
    """In one line: the file, the table, the key, and what is allowed."""
    with pytest.raises(VhostBlkError) as error:
        read(tmp_path, text)
    line = str(error.value)
    assert line.startswith(f"{tmp_path}/f.toml: ")
    assert says in line
    assert "\n" not in line


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(VhostBlkError, match=r"f\.toml: No such file"):
        read_config(tmp_path / "f.toml")
