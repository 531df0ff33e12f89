import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import running
from upgrading import TAKEN_OVER, Upgraded, served

from vhostblk.cli import main
from vhostblk.guest import Guest

READY = re.compile("ready for a front-end")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Upgraded]:
    """Run a server with a control socket."""
    words = ("--engine", "reference", "--control", "c", "--socket-path", "s", "null:1M")
    server = Upgraded(running.start("-m", "vhostblk", "serve", *words, cwd=tmp_path))
    try:
        server.wait_for(READY)
        yield server
    finally:
        server.kill()


def test_by_the_control_socket(
    server: Upgraded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says who serves now, and for how long guests waited; the socket is the new process's."""
    with Guest.connect(tmp_path / "s") as guest:
        for _ in range(2):
            assert main.main(["upgrade", "--control", str(tmp_path / "c")]) == 0
            said = capsys.readouterr().out
            found = re.fullmatch(
                r"process (\d+) has taken over; guests were paused for [0-9.]+ ms\n", said
            )
            assert found is not None, said
            assert int(found[1]) != server.pid
            server.pid = int(found[1])
            guest.write(0, bytes(512))
    server.end()
    assert not (tmp_path / "c").exists()


def test_devices_that_were_added_go_on_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The file has one device, and operators have added another: three processes serve both.

    The guest's requests are counted through all of them.
    """
    config = tmp_path / "vhostblk.toml"
    config.write_text(
        'control = "c"\nengine = "reference"\n[[device]]\ndisk = "null:1M"\nsocket_path = "s"\n'
    )
    control = ["--control", str(tmp_path / "c")]
    added = ["memory:1M,memfd=on", f"socket_path={tmp_path / 't'}", "num_queues=2"]
    with served("--config", config, cwd=tmp_path) as server:
        assert main.main(["ctl", *control, "add", *added]) == 0
        with Guest.connect(tmp_path / "t", queues=2) as guest:
            guest.write(0, b"x" * 512)
            for _ in range(2):
                behind = len(server.log)
                assert main.main(["upgrade", *control]) == 0
                server.pid = int(server.wait_for(TAKEN_OVER, behind)[1])
                assert guest.read(0, 512, queue=1) == b"x" * 512
            capsys.readouterr()
            assert main.main(["ctl", "--json", *control, "status", "t"]) == 0
            queues = json.loads(capsys.readouterr().out)["queues"]
            assert [one["counters"]["writes"] for one in queues] == [1, 0]
            assert [one["counters"]["reads"] for one in queues] == [0, 2]
            assert queues[1]["latency"]["read"]["count"] == 2
        assert main.main(["ctl", *control, "list"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][1:] == ["s", "t"]
        server.end()


def test_by_its_process(
    server: Upgraded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits until that process has ended; the log tells the rest."""
    assert main.main(["upgrade", "--pid", str(server.pid)]) == 0
    assert capsys.readouterr().out == (
        f"process {server.pid} has handed over, if its log says so\n"
    )
    server.pid = int(server.wait_for(TAKEN_OVER)[1])
    Guest.connect(tmp_path / "s").close()
    server.end()


def test_to_another_program(
    server: Upgraded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--exec starts what it says, with our arguments; one that fails is told by its server."""
    control = ["--control", str(tmp_path / "c")]
    assert main.main(["upgrade", *control, "--exec", "/bin/false"]) == 1
    assert capsys.readouterr().err == "vhostblk: the new process has ended with status 1\n"
    other = tmp_path / "other program"
    other.write_text(
        f"#!/bin/sh\nexec {sys.executable} -m vhostblk serve --control c --socket-path x null:1M\n"
    )
    other.chmod(0o755)
    assert main.main(["upgrade", *control, "--exec", f"'{other}'"]) == 1
    said = capsys.readouterr().err
    assert said == "vhostblk: the new process cannot take over: s would not be served any more\n"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -m vhostblk "$@"\n')
    other.chmod(0o755)
    assert main.main(["upgrade", *control, "--exec", f"'{other}'"]) == 0
    server.pid = int(server.wait_for(TAKEN_OVER)[1])
    assert f"upgrade: starting {other} serve --engine" in server.end()


def test_a_process_that_would_just_die_is_spared(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGUSR2 goes to nobody who does not heed it; who is not there is told."""
    with subprocess.Popen(["sleep", "60"]) as process:
        assert main.main(["upgrade", "--pid", str(process.pid)]) == 1
        assert process.poll() is None
        process.kill()
    assert f"process {process.pid} does not heed SIGUSR2" in capsys.readouterr().err
    assert main.main(["upgrade", "--pid", str(process.pid)]) == 1
    assert f"there is no process {process.pid}" in capsys.readouterr().err


def test_a_process_that_serves_on_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """When the time is up, where to look is said."""
    code = "import signal, time; signal.signal(signal.SIGUSR2, lambda *_: None)\n"
    code += "print('up', flush=True)\nwhile True: time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert main.main(["upgrade", "--timeout", "0.05", "--pid", str(process.pid)]) == 1
        os.kill(process.pid, signal.SIGKILL)
    assert "still serves after 0.05 s: see its log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "Give --control PATH or --pid PID, one of them."),
        (["--pid", "1", "--control", "c"], "Give --control PATH or --pid PID, one of them."),
        (["--pid", "1", "--exec", "x"], "--exec needs --control: a signal carries no command."),
    ],
)
def test_usage(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is asked of anybody before it is clear whom."""
    assert main.main(["upgrade", *words]) == 2
    assert line in capsys.readouterr().err
