"""``vhostblk serve``: what it logs, how it ends, and that its options reach the device."""

import json
import os
import signal
from pathlib import Path

import pytest
import running

from vhostblk.guest import BrokenQueueError, DisconnectedError, Guest, StatusError


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_serve_ends_on_sigterm_with_everything_on_the_disk(image: Path, engine: str) -> None:
    """SIGTERM while a guest is connected: status 0, its write is in the file, the socket gone."""
    if engine == "native":
        pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    path = image.with_name("s")
    with running.serving("--engine", engine, image, socket=path) as server:
        with Guest.connect(path) as guest:
            guest.write(2, b"vhostblk" * 64)
            log = running.end(server)
            with pytest.raises(DisconnectedError):
                guest.frontend.get_features()
        assert f"s: {image.stat().st_size} bytes on 1 queue, {engine} engine" in log
        assert not path.exists()
    assert image.read_bytes()[1024:1536] == b"vhostblk" * 64


def test_serve_ends_on_sigint_too(image: Path) -> None:
    """Ctrl-C ends a server as cleanly as SIGTERM, without a traceback."""
    options = ("--engine", "reference")
    with running.serving(*options, image, socket=image.with_name("s")) as server:
        Guest.connect(image.with_name("s")).close()
        log = running.end(server, signal.SIGINT)
    assert all(" INFO " in line for line in log.splitlines())


def test_v_shows_every_message_by_name(image: Path) -> None:
    """-v logs what the front-end sends, with the standard's names."""
    with running.serving("-v", image, socket=image.with_name("s")) as server:
        with Guest.connect(image.with_name("s")) as guest:
            guest.stop()
        log = running.end(server)
    for name in (
        "GET_FEATURES",
        "SET_OWNER",
        "ADD_MEM_REG",
        "SET_VRING_KICK index=0",
        "SET_STATUS",
    ):
        assert any(" DEBUG " in line and name in line for line in log.splitlines()), name


def test_q_leaves_nothing_to_say(image: Path) -> None:
    """-q logs warnings only, and an ordinary life has none."""
    options = ("-q", "--engine", "reference")
    with running.serving(*options, image, socket=image.with_name("s")) as server:
        Guest.connect(image.with_name("s")).close()
        assert running.end(server) == ""


@pytest.mark.parametrize("program", ["vhostblk serve", "vhostblk-backend"])
def test_sigusr1_logs_the_status(image: Path, program: str) -> None:
    """One line of JSON for the device, however quiet the server is, as often as it is asked."""
    path = image.with_name("s")
    backend = program == "vhostblk-backend"
    words = ["-m", "vhostblk.cli.backend"] if backend else ["-m", "vhostblk", "serve"]
    disk = ["--blk-file", image] if backend else [image]
    with running.start(*words, "-q", "--socket-path", path, *disk, cwd=image.parent) as server:
        try:
            running.wait_for_socket(path, server)
            assert server.stderr is not None
            with Guest.connect(path) as guest:
                for requests in (1, 2):
                    guest.read(0, 512)
                    server.send_signal(signal.SIGUSR1)
                    # Without the compiled core a warning says so first.
                    line = next(line for line in server.stderr if " status: " in line)
                    head, _, text = line.partition(" status: ")
                    assert head.endswith(" INFO    s:")
                    status = json.loads(text)
                    assert status["queues"][0]["counters"]["reads"] == requests
                    assert status["front_end_connected"] is True
            assert running.end(server) == ""
        finally:
            server.kill()


def test_options_reach_the_workers(image: Path) -> None:
    """What --poll, --workers and --cpus say is what the status document shows."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    path = image.with_name("s")
    cpu = max(os.sched_getaffinity(0))
    options = ("--poll", "7us", "--workers", "1", "--cpus", str(cpu))
    with running.serving(*options, image, socket=path) as server:
        with Guest.connect(path) as guest:
            guest.read(0, 512)
            server.send_signal(signal.SIGUSR1)
            line = next(line for line in server.stderr or () if " status: " in line)
        shown = json.loads(line.partition(" status: ")[2])["workers"]
        assert [(one["window_us"], one["cpu"]) for one in shown] == [(7, cpu)]
        running.end(server)


def test_options_reach_the_device(image: Path) -> None:
    """Serial, queues, read-only, cache and block size are what the guest finds."""
    path = image.with_name("s")
    options = "--serial abc --num-queues 3 --read-only --cache writethrough --block-size 4096"
    with (
        running.serving(*options.split(), image, socket=path) as server,
        Guest.connect(path, queues=3) as guest,
    ):
        config = guest.config()
        assert guest.get_id() == b"abc"
        assert (guest.agreement.max_queues, config.num_queues) == (3, 3)
        assert (config.blk_size, config.writeback) == (4096, 0)
        with pytest.raises(StatusError):
            guest.write(0, bytes(4096))
        running.end(server)
    assert not any(image.read_bytes())


@pytest.mark.parametrize("program", ["vhostblk serve", "vhostblk-backend"])
def test_confidential_options_reach_the_device(image: Path, program: str) -> None:
    """Bit 33 and the ranges: what lies outside of them fails, without a byte of it touched."""
    path = image.with_name("s")
    backend = program == "vhostblk-backend"
    words: list[str | Path] = (
        ["-m", "vhostblk.cli.backend"] if backend else ["-m", "vhostblk", "serve"]
    )
    disk: list[str | Path] = ["--blk-file", image] if backend else [image]
    options = "--confidential require --shared-ranges 0x100000000+4K --access-platform off"
    words += [*options.split(), "--iommu", "off", "--socket-path", path, *disk]
    with running.start(*words, cwd=image.parent) as server:
        try:
            running.wait_for_socket(path, server)
            with Guest.connect(path) as guest:
                assert not guest.agreement.offered >> 33 & 1
                # Neither data nor table are in the pages of the ring, which are allowed.
                with pytest.raises(BrokenQueueError):
                    guest.write(0, b"\x11" * 65536)
            assert "queue 0 is broken: indirect table" in running.end(server)
        finally:
            server.kill()
    assert not any(image.read_bytes())


def test_serve_refuses_an_image_another_one_has(image: Path) -> None:
    """The second server says who has the image, and what to do."""
    with (
        running.serving(image, socket=image.with_name("s")) as server,
        Guest.connect(image.with_name("s")),
    ):
        words = ("-m", "vhostblk", "serve", "--engine", "reference", "--socket-path", "s2", image)
        status, line = running.outcome(*words, cwd=image.parent)
    assert status == 1
    assert line.startswith(f"vhostblk: {image}: in use: ")
    assert f"(pid {server.pid}) writes to it" in line
    assert line.count("\n") == 1
