"""What the bench reads: its own command line, fio's report, /proc."""

import json
import os
from pathlib import Path

import pytest

from bench import raw
from bench.__main__ import numbers, parse
from bench.machine import clocks, is_kernel, parse_stat, used_by_others
from bench.resident import parse_status
from bench.sample import Load
from bench.servers import Work, peer, qsd, vhostblk


def test_numbers_have_powers_of_1024() -> None:
    """As sizes are written everywhere else."""
    assert numbers("512,4K,1M") == [512, 4096, 1 << 20]


def test_defaults_are_read_as_what_is_given() -> None:
    """Ten turns, as the rules ask for."""
    args = parse([])
    assert (args.turns, args.depth, args.bytes) == (10, [1, 8, 32, 128], [4096])


def test_peer_is_filled_in_word_by_word() -> None:
    """A socket with a blank stays one word."""
    server = peer("spdk='my server' -S {socket} --disk={path}:{size} -q {queues}")
    work = Work(name="tmpfs", size=1 << 20, path=Path("/a b"), queues=4)
    words = ["my server", "-S", "/run/x y", "--disk=/a b:1048576", "-q", "4"]
    assert server.name == "spdk"
    assert server.command(work, [Path("/run/x y")]) == words


@pytest.mark.parametrize(
    "text", ["", "name", "name=", "=cmd {socket}", "n=cmd", "n=cmd {socket} {disk}", "n='{socket}"]
)
def test_peer_says_what_to_write(text: str) -> None:
    """One line, before anything runs."""
    with pytest.raises(SystemExit, match=r"--peer .*write NAME="):
        peer(text)


def test_peers_serve_the_same_as_we_do() -> None:
    """Cache and zeroes are said to both sides alike."""
    sockets = [Path("/s")]
    null = Work(name="null", size=512)
    assert null.disk == "null:512"
    assert "read-zeroes=on" in " ".join(qsd("none").command(null, sockets))
    bare = Work(name="bare", size=512)
    assert bare.disk == "null:512,zero=off"
    assert "read-zeroes=off" in " ".join(qsd("none").command(bare, sockets))
    direct = Work(name="direct", size=512, path=Path("/f"))
    assert direct.disk == "file:/f,cache=none,locking=off"
    assert "cache.direct=on" in " ".join(qsd("io_uring").command(direct, sockets))
    file = Work(name="file", size=512, path=Path("/f"))
    assert "cache.direct" not in " ".join(qsd("io_uring").command(file, sockets))
    assert "cache.direct=on" in " ".join(qsd("native").command(file, sockets))


def test_many_devices_are_one_process(tmp_path: Path) -> None:
    """A configuration file for ours, an export each for qemu-storage-daemon."""
    sockets = [tmp_path / "a.sock", tmp_path / "b.sock"]
    work = Work(name="null", size=512, devices=2, queues=4)
    words = vhostblk().command(work, sockets)
    config = Path(words[words.index("--config") + 1]).read_text()
    assert config.count("num_queues = 4\n") == 2
    assert all(f'socket_path = "{socket}"' in config for socket in sockets)
    assert qsd("none").command(work, sockets).count("--export") == 2


def test_fio_report_is_read() -> None:
    """Nanoseconds become microseconds; CPU shares become time per request."""
    lat = {"0.010000": 1000, "1.000000": 1100, "50.000000": 2000, "99.900000": 9000}
    job = {
        "read": {"iops": 1000.0, "lat_ns": {"percentile": lat}},
        "usr_cpu": 20.0,
        "sys_cpu": 30.0,
    }
    got = raw.parse("fio: a warning\n" + json.dumps({"jobs": [job]}), "read")
    assert got.iops == 1000.0
    assert got.latency_us == {"0": 1.0, "1": 1.1, "50": 2.0, "99.9": 9.0}
    assert got.client_cpu_us == pytest.approx(500.0)


def test_fio_leaves_the_page_cache_as_it_is() -> None:
    """It would drop a file from it by default, and measure the disk."""
    words = raw.words("psync", Path("/f"), Load(order="seq", op="write"), direct=False)
    assert {"--invalidate=0", "--rw=write", "--direct=0"} <= set(words)


def test_stat_counts_what_processes_use() -> None:
    """User, nice and system, in seconds; interrupts are nobody's; steal is the host's."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = [tick * n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    got = parse_stat("cpu  " + " ".join(map(str, fields)) + "\ncpu0 1 2 3\n")
    assert (got.used, got.stolen) == (7.0, 128.0)


def test_status_gives_numbers_by_name() -> None:
    """Words are left out."""
    text = "Name:\tx\nRssAnon:\t    1024 kB\nvoluntary_ctxt_switches:\t7\nEmpty:\n"
    assert parse_status(text) == {"RssAnon": 1024, "voluntary_ctxt_switches": 7}


def test_others_are_seen_by_their_clocks() -> None:
    """Exactly, however coarse the ticks are; servers and ourselves are no others."""
    pid = os.getpid()
    spent = {pid: 0.5, 1 << 30: 0.25, (1 << 30) + 1: 0.0001}
    assert used_by_others(0.5, 0.0, spent, {pid}) == pytest.approx(0.25)
    assert used_by_others(0.5, 0.0, spent, {pid, 1 << 30}) == 0.0


def test_others_that_came_and_went_are_seen_by_ticks() -> None:
    """Beyond what ticks may be off by; children of ours that have ended are no others."""
    assert used_by_others(1.5, 1.0, {}, ()) == pytest.approx(0.3)
    assert used_by_others(1.1, 1.0, {}, ()) == 0.0


def test_every_process_has_a_clock() -> None:
    """This one, too, and it is none of the kernel's."""
    assert clocks()[os.getpid()] > 0.0
    assert is_kernel(2) == (Path("/proc/2/comm").read_text() == "kthreadd\n")
    assert not is_kernel(os.getpid())
