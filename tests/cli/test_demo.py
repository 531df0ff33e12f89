import signal
from pathlib import Path

import pytest
import running

from vhostblk.cli import demo, fake_demo, main
from vhostblk.cli.guest_vm import Tools
from vhostblk.errors import VhostBlkError


@pytest.fixture
def no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTBLK_QEMU", "/nowhere/qemu")


def plan(tools: Tools | None = None, engine: str = "auto") -> demo.Demo:
    return demo.Demo(tools=tools, num_queues=2, engine=engine, timeout_s=10)


@pytest.mark.usefixtures("no_qemu")
def test_choose_guest_says_which_and_why() -> None:
    """Where QEMU is missing the fake guest takes its place, and the line says what is missing."""
    told: list[str] = []
    assert demo.choose_guest("auto", told.append) is None
    assert told == [
        (
            "guest    is the built-in fake guest, not a real one:"
            " no /nowhere/qemu for the guest: set VHOSTBLK_QEMU"
        )
    ]


def test_choose_guest_does_as_it_is_told() -> None:
    """--guest fake is not talked out of it by an installed QEMU."""
    told: list[str] = []
    assert demo.choose_guest("fake", told.append) is None
    assert told == ["guest    is the built-in fake guest, as asked for"]


@pytest.mark.usefixtures("no_qemu")
def test_choose_guest_does_not_replace_what_was_asked_for() -> None:
    """--guest qemu without QEMU is an error, not a quiet fake."""
    with pytest.raises(VhostBlkError, match="set VHOSTBLK_QEMU"):
        demo.choose_guest("qemu", lambda _line: None)


def test_choose_guest_finds_a_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is there, the guest is real, and the line says with which QEMU."""
    for name in ("QEMU", "KERNEL", "MODULES", "BUSYBOX"):
        (tmp_path / name).touch()
        monkeypatch.setenv(f"VHOSTBLK_{name}", str(tmp_path / name))
    told: list[str] = []
    tools = demo.choose_guest("auto", told.append)
    assert tools is not None
    assert tools.qemu == tmp_path / "QEMU"
    assert told == [f"guest    is a real one: Linux in QEMU ({tmp_path}/QEMU)"]


def test_demo_with_the_fake_guest_tells_the_whole_story(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each step is a line: server, guest, host; the last one says that all of it worked."""
    assert main.main(["demo", "--guest", "fake"]) == 0

    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "guest    is the built-in fake guest, as asked for"
    assert lines[1].startswith("server   $ vhostblk serve --socket-path ")
    assert "guest    found the disk: 256 MiB, serial vhostblk-demo" in lines
    assert "guest    wrote 8 MiB and flushed" in lines
    assert any("read it back; sha256" in line for line in lines)
    assert "server   ended on SIGTERM with status 0" in lines
    # The document is for programs; who reads this is told where it is described.
    [status] = [line for line in lines if " status: " in line]
    assert status.endswith("vm0.sock: status: {…}, see docs/reference/status.md")
    assert lines[-2].startswith("host     the image holds what the guest wrote; ")
    assert lines[-1].endswith("all of it worked")


def test_served_shows_why_the_server_did_not_start(tmp_path: Path) -> None:
    """A server that ends at once is an error; its own words come before it."""
    told: list[str] = []
    image, socket = tmp_path / "no.img", tmp_path / "s"
    with (
        pytest.raises(VhostBlkError, match="the server ended with status 1"),
        demo.served(plan(), image, socket, told.append),
    ):
        pass
    assert any("no.img" in line for line in told[1:])


def test_served_gets_ready_while_nobody_reads(tmp_path: Path) -> None:
    """``vhostblk demo | head -1`` ends quietly: what the server says goes nowhere then."""
    image, begun = tmp_path / "disk.img", []
    image.write_bytes(bytes(512))

    def tell(line: str) -> None:
        if not line.startswith("server   $") and "ended" not in line:
            begun.append(line)
            raise BrokenPipeError

    with demo.served(plan(), image, tmp_path / "s", tell):
        pass
    assert begun


def test_show_notices_an_image_that_does_not_hold_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host looks into the image itself: a guest that was told lies is found out."""
    monkeypatch.setattr(fake_demo, "run", lambda *_args, **_kwargs: b"never written")
    with pytest.raises(VhostBlkError, match="does not hold what the guest wrote at byte 0"):
        demo.show(plan(), tmp_path, lambda _line: None)


def test_a_demo_that_is_ended_leaves_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the middle ends the server, too, and is told in one line."""
    sockets: list[Path] = []

    def drive(socket_path: Path, **_options: object) -> bytes:
        sockets.append(socket_path)
        assert running.is_listening(socket_path)
        signal.raise_signal(signal.SIGTERM)
        return b""

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(fake_demo, "run", drive)
    assert main.main(["demo", "--guest", "fake"]) == 130
    assert capsys.readouterr().err.strip() == "vhostblk: interrupted"
    assert [running.is_listening(path) for path in sockets] == [False]
    assert signal.getsignal(signal.SIGTERM) == before
