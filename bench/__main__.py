"""
Measure vhostblk against its peers: one client, alternating, one run, ratios.

Each line is one load on one disk.  Those who serve it take turns (A B C, A B C, …), pinned to one
CPU, the client to another; vhostblk takes two, in two processes (A/A), which says what chance does.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from bench import load, machine, report, resident, servers, targets, verdicts, works
from bench.progress import Progress
from bench.sample import Load, Unable
from bench.targets import Plan
from bench.turns import Measured, Tools, measure
from bench.verdicts import Verdict
from bench.works import Shape

SERVER_CORE, CLIENT_CORE = 0, 1


def numbers(text: str) -> list[int]:
    """Read numbers with commas between them; K and M are powers of 1024."""
    shift = {"K": 10, "M": 20}
    return [int(word.rstrip("KM")) << shift.get(word[-1:], 0) for word in text.split(",")]


def words(text: str) -> list[str]:
    """Read words with commas between them."""
    return text.split(",")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=form,
        description="Measure vhostblk against its peers, alternating, in one run.",
    )
    add = parser.add_argument
    add("--targets", action="store_true", help="what the project promises, and whether it is met")
    add("--only", default="", metavar="TEXT", help="lines with TEXT in their name; else all")
    add("--whole", action="store_true", help="all disks, loads and shapes there are: above an hour")
    add("--work", type=words, default="null", help="disks: " + ", ".join(works.WORKS))
    add("--op", type=words, default="read,write", help="read, write; of --targets the first counts")
    add("--depth", type=numbers, default="1,8,32,128", help="requests under way on each queue")
    add("--bytes", type=numbers, default="4K", help="of a request")
    add("--order", choices=("rand", "seq"), default="rand", help="of requests")
    add("--wait", choices=("block", "poll"), default="block", help="the client sleeps, or polls")
    add("--queues", type=numbers, default="1", help="of each device")
    add("--devices", type=numbers, default="1", help="of one server process")
    add("--seconds", type=float, default=1.0, help="of one run")
    add("--turns", type=int, default=10, help="alternations")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another server, by its command with {socket}, {path}, {size}, {queues}",
    )
    add(
        "--directory",
        type=Path,
        default=Path(".cache/bench"),
        help="on a disk file system, for the files",
    )
    add("--json", type=Path, metavar="FILE", help="write all samples there, too")
    return parser.parse_args(arguments)


def shapes(args: argparse.Namespace) -> Iterator[Shape]:
    """Yield what the options multiply to."""
    many = product(args.work, args.devices, args.queues, args.op, args.bytes, args.depth)
    for work, devices, queues, op, size, depth in many:
        load = Load(
            op=op,
            bytes=size,
            depth=depth,
            queues=queues,
            seconds=args.seconds,
            wait=args.wait,
            order=args.order,
        )
        yield Shape(work, load, devices)


def planned(args: argparse.Namespace, shm: Path) -> Plan:
    """Return what is measured: the targets, the whole matrix, or the lines asked for."""
    base = Load(op=args.op[0], seconds=args.seconds)
    if args.targets:
        return targets.plan(base, args.directory, shm).only(args.only)
    asked = list(works.whole(base) if args.whole else shapes(args))
    found = works.make_works({shape.work for shape in asked}, args.directory, shm)
    peers = [servers.peer(text) for text in args.peer]
    lines = [works.line(found[shape.work], shape, peers) for shape in asked]
    return Plan(lines, ()).only(args.only)


def main() -> None:
    """Run what is asked for; print each line when it is done."""
    args = parse()
    args.directory.mkdir(parents=True, exist_ok=True)
    resident.allow_many_files()
    with (
        tempfile.TemporaryDirectory(prefix="vhb-") as scratch,
        tempfile.TemporaryDirectory(prefix="vhb-", dir="/dev/shm") as shm,
    ):
        run(args, Path(scratch), Path(shm))


def run(args: argparse.Namespace, scratch: Path, shm: Path) -> None:
    """Build the tools, measure, print, keep."""
    client, probe = load.build(scratch), machine.build(scratch)
    plan = planned(args, shm)
    progress = Progress(sum(line.runs(args.turns) for line in plan.lines))
    tools = Tools(client, probe, scratch, SERVER_CORE, CLIENT_CORE, progress)
    about = report.about()
    before = machine.describe(probe, (SERVER_CORE, CLIENT_CORE))
    for key, value in {**about, "before": before}.items():
        print(f"{key}: {value}")
    print(f"cpu, client: CPU us per request of server and client\n\n{report.HEAD}", flush=True)
    content: dict[str, object] = {"about": about, "before": before}
    measured: list[Measured] = []
    for line in plan.lines:
        progress.line(line.name)
        try:
            one = measure(line, tools, args.turns)
        except Unable as error:
            progress.clear()
            print(f"{line.name}  [not measured: {error}]", flush=True)
            continue
        measured.append(one)
        progress.clear()
        print(report.block(one), flush=True)
        content["lines"] = [report.document(each) for each in measured]
        keep(args, content)  # at once: a long run may be cut short
    if args.targets:
        content["targets"] = [asdict(one) for one in judged(args, plan, measured, tools)]
    content["after"] = machine.describe(probe, (SERVER_CORE, CLIENT_CORE))
    print(f"\nafter: {content['after']}")
    keep(args, content)


def judged(
    args: argparse.Namespace, plan: Plan, measured: Sequence[Measured], tools: Tools
) -> list[Verdict]:
    """Hold the lines against the targets, and print the verdicts."""
    samples = {one.line.name: one.samples for one in measured}
    found = [verdicts.verdict(target, samples.get(target.line)) for target in plan.targets]
    if not args.only:
        tools.report.line("idle device, memory")
        found += verdicts.resting(tools)
    tools.report.clear()
    print("\n~: by less than a server differs from itself (A/A)")
    print("\n".join(map(str, found)))
    return found


def keep(args: argparse.Namespace, content: dict[str, object]) -> None:
    """Write what there is so far."""
    if args.json:
        report.write(args.json, content)


if __name__ == "__main__":
    main()
