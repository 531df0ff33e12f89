import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostblk.cli import qmp
from vhostblk.errors import VhostBlkError


@contextmanager
def qemu(monitor: Path, *answers: object) -> Iterator[list[object]]:
    """Greet, answer each command with one of *answers*; yields the commands seen."""
    seen: list[object] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(monitor))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            print(json.dumps({"QMP": {}}), file=stream, flush=True)
            for answer in answers:
                seen.append(json.loads(stream.readline()))
                print(json.dumps({"event": "RESET"}), file=stream)
                print(json.dumps(answer), file=stream, flush=True)

    thread = threading.Thread(target=serve)
    thread.start()
    yield seen
    thread.join()
    listener.close()


def test_run_returns_past_events(tmp_path: Path) -> None:
    """Events between a command and its answer are not taken for the answer."""
    with qemu(tmp_path / "qmp", {"return": {}}, {"return": 7}) as seen:
        assert qmp.run(tmp_path / "qmp", "object_add", qom_type="iothread") == 7

    assert seen == [
        {"execute": "qmp_capabilities", "arguments": {}},
        {"execute": "object_add", "arguments": {"qom-type": "iothread"}},
    ]


def test_run_raises_what_qemu_refused(tmp_path: Path) -> None:
    """QEMU's reason for a refusal reaches the caller."""
    refusal = {"error": {"class": "GenericError", "desc": "no such device"}}
    with (
        qemu(tmp_path / "qmp", {"return": {}}, refusal),
        pytest.raises(VhostBlkError, match="no such device"),
    ):
        qmp.run(tmp_path / "qmp", "device_del", id="x")


def test_run_notices_a_hang_up(tmp_path: Path) -> None:
    """A QEMU that ends in the middle of a command is an error, not an empty answer."""
    with (
        qemu(tmp_path / "qmp", {"return": {}}),
        pytest.raises(VhostBlkError, match="monitor"),
    ):
        qmp.run(tmp_path / "qmp", "quit")
