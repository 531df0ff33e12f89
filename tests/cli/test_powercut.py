"""``vhostblk powercut``: what is asked, what is said, how it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from power_kit.recorder import recording

from vhostblk.cli.main import main
from vhostblk.trace.format import Op, Payload

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Record three writes, the first of them flushed."""
    path = tmp_path / "a.trace"
    with recording(path, SIZE) as writer:
        for number, byte in enumerate((b"a", b"b", b"c")):
            data = byte * 4096
            seq = writer.submit(Op.WRITE, offset=number * 4096, length=4096, payload=data)
            writer.complete(seq)
            if number == 0:
                writer.complete(writer.submit(Op.FLUSH))
    return path


def ended(*words: object) -> int:
    return main(["powercut", *map(str, words)])


def test_the_states_are_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One a line; of one state, what becomes of each request."""
    assert ended(path, "--list", "--lose", "all") == 0
    assert capsys.readouterr().out.splitlines() == [
        "request 1 (write), seed 1: 0 kept, 1 lost, 0 torn",
        "request 3 (write), seed 1: 0 kept, 1 lost, 0 torn",
    ]
    assert ended(path, "--list", "--lose", "all", "--at", "end", "--seed", "7") == 0
    assert capsys.readouterr().out.splitlines() == [
        "request 5 (end), seed 7: 0 kept, 2 lost, 0 torn",
        "  request 3: write of 4096 bytes at 4096 lost",
        "  request 4: write of 4096 bytes at 8192 lost",
    ]


def test_a_state_is_written(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a check: the image that a checker would see."""
    kept = tmp_path / "kept"
    assert ended(path, "--at", "end", "--seed", "1", "--lose", "none", "--keep", kept) == 0
    assert capsys.readouterr().out == (f"{kept}: request 5 (end), seed 1: 2 kept, 0 lost, 0 torn\n")
    assert kept.read_bytes() == b"".join(byte * 4096 for byte in (b"a", b"b", b"c")) + bytes(
        SIZE - 12288
    )


def test_all_good_ends_with_0(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says how many states there were."""
    assert ended(path, "--check", "test -f {}", "--seeds", "2", "-q") == 0
    assert capsys.readouterr().out.endswith(" states of 4 requests, none is bad\n")


def test_all_goes_on(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a bad state; without it, one bad one is told of, the first."""
    words = (path, "--lose", "all", "--check", "echo no {} >&2; exit 5", "--jobs", "2", "-q")
    assert ended(*words) == 3
    out = capsys.readouterr().out
    assert out.count("BAD: ") == 1
    assert out.startswith("BAD: request 1 (write), seed 1: 0 kept, 1 lost, 0 torn\n")
    assert "the check ended with status 5:\n  no /dev/shm/" in out
    assert "again: vhostblk powercut " in out
    assert "--at 1 --seed 1 --lose all --check 'echo no {} >&2; exit 5'\n" in out
    assert ended(*words, "--all") == 3
    assert capsys.readouterr().out.count("BAD: ") == 2
    assert ended(*words, "--ok", "0,5") == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "Give --check COMMAND, or --keep FILE, or --list."),
        (("--at", "0", "--list"), 2, "requests are counted from 1"),
        (("--at", "x", "--list"), 2, "write request numbers, or 'end'"),
        (("--ok", "a", "--list"), 2, "write exit statuses"),
        (("--grain", "1000", "--list"), 2, "write a power of two"),
        (("--at", "9", "--list"), 1, "there is no request 9: the recording has 4, and the end"),
        (("--from", "7", "--list"), 1, "no request is left of the 4"),
        (("--segment", "2", "--list"), 1, "has 1 sessions, not 2"),
        (("--check", "true"), 1, "has no {}: write it where the image's path goes"),
        (("--check", "no-such-thing {}"), 1, "the check cannot be run"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    path: Path,
    words: tuple[str, ...],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what to write instead; no image is left behind."""
    assert ended(path, *words) == status
    assert said in capsys.readouterr().err
    assert not list(Path("/dev/shm").glob("vhostblk-powercut-*/master"))


def test_what_a_state_is_made_of_is_not_written_over(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the recording nor the image from before it."""
    image = tmp_path / "start.img"
    image.write_bytes(b"i" * SIZE)
    before = path.read_bytes()
    for keep in (path, image):
        assert ended(path, "--image", image, "--at", "2", "--keep", keep) == 2
        assert f"{keep} is what it is made of: name another file" in capsys.readouterr().err
    assert (path.read_bytes(), image.read_bytes()) == (before, b"i" * SIZE)


def test_a_recording_without_payloads_says_how_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to build a state of."""
    path = tmp_path / "a.trace"
    with recording(path, SIZE, Payload.DIGEST) as writer:
        writer.complete(writer.submit(Op.WRITE, length=512))
    assert ended(path, "--list") == 1
    assert "record again with payload=full" in capsys.readouterr().err


def test_a_check_that_never_is_content_is_said_to_be_so(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing was lost, it is not the power cut that it does not like."""
    assert ended(path, "--at", "end", "--lose", "none", "--check", "false {}", "-q") == 3
    assert "  nothing: the check does not like the disk without" in capsys.readouterr().out


def test_a_recording_that_was_cut_short_is_swept_as_far_as_it_is_whole(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that was killed has not written its end."""
    path.write_bytes(path.read_bytes()[:-5])
    assert ended(path, "--list") == 0
    assert "what is in front of it is swept" in capsys.readouterr().err


def test_a_disk_that_became_larger_has_its_size_told(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recording says what it was at first only."""
    assert ended(path, "--size", "8K", "--check", "test -f {}", "-q") == 1
    assert "request 4 writes up to byte 12288, the disk has 8192" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(path: Path, tmp_path: Path, number: int) -> None:
    """Checks are ended, images removed, and how far it was is said; status 130."""
    command = [sys.executable, "-m", "vhostblk", "powercut", str(path), "--work", str(tmp_path)]
    command += ["--check", f": {{}}; touch {tmp_path}/begun; sleep 60", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.startswith("interrupted at request 1; 0 states of 4 requests, none is bad")
    assert {file.name for file in tmp_path.iterdir()} == {"a.trace", "begun"}
