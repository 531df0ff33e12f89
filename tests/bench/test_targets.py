"""Every line of the table of targets is measured by something."""

from pathlib import Path

import pytest

from bench import targets, works
from bench.sample import Load
from bench.servers import Work


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> targets.Plan:
    monkeypatch.setattr(works, "filled", lambda path, **_: path)
    return targets.plan(Load(), tmp_path, tmp_path)


def test_every_target_names_a_line_that_is_measured(plan: targets.Plan) -> None:
    """And all lines have names of their own."""
    names = [line.name for line in plan.lines]
    assert len(set(names)) == len(names)
    assert {target.line for target in plan.targets} <= set(names)


def test_every_kind_of_target_is_there(plan: targets.Plan) -> None:
    """By disk, with what it is held against."""
    found = {(target.line.split()[0], target.against) for target in plan.targets}
    assert found == {
        ("null", "qsd null-co"),
        ("bare", "responder"),
        ("bare", "responder+status"),
        ("bare", "-"),
        ("memory", "null + 1.1 memcpy"),
        ("memory", "bare + 1.1 memcpy"),
        ("python", "nbdkit + qsd"),
        ("tmpfs", "qsd, best aio"),
        ("tmpfs", "fio psync"),
        ("tmpfs", "1.2 qsd or 95 % raw"),
        ("file", "qsd, best aio"),
        ("file", "1.2 qsd or 95 % raw"),
        ("direct", "fio io_uring"),
        ("direct", "fio io_uring + wake"),
        ("direct", "1.2 qsd or 95 % raw"),
    }


def test_ours_takes_two_turns_in_every_line(plan: targets.Plan) -> None:
    """Without the A/A run nobody knows what a difference means."""
    for line in plan.lines:
        assert [entry.name for entry in line.entries[:2]] == ["vhostblk", "vhostblk again"]


def test_a_part_has_its_own_targets_only(plan: targets.Plan) -> None:
    """What is not measured is not judged."""
    part = plan.only("memory randread")
    assert [line.name for line in part.lines] == [target.line for target in part.targets]
    assert plan.only("nothing of the kind").lines == []


def test_ten_turns_of_a_second_fit_in_half_an_hour(plan: targets.Plan) -> None:
    """A run costs its seconds, a tenth to warm up, and some 0.2 s around it."""
    runs = sum(line.runs(10) for line in plan.lines)
    assert runs * 1.3 <= 30 * 60


def test_the_whole_matrix_is_what_the_rules_ask_for() -> None:
    """Depths and sizes on every disk; queues and devices; no line twice."""
    found = list(works.whole(Load()))
    assert len(set(found)) == len(found)
    for work in works.MATRIX:
        mine = [shape for shape in found if shape.work == work and shape.devices == 1]
        assert {shape.load.op for shape in mine} == {"read", "write"}
        assert {s.load.depth for s in mine if s.load.order == "rand"} == {1, 8, 32, 128}
        sizes = {s.load.bytes for s in mine if s.load.order == "seq"}
        assert sizes == {64 << 10, 128 << 10, 1 << 20}
    assert {(s.devices, s.load.queues) for s in found} == {
        (devices, queues) for devices in (1, 8, 64) for queues in (1, 4)
    }


def test_memory_is_shared_among_devices() -> None:
    """64 of them must not need 64 GiB."""
    memory = works.shaped(Work(name="memory", size=1 << 30), queues=4, devices=64)
    assert (memory.size, memory.devices, memory.queues) == (16 << 20, 64, 4)
