import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import running

from vhostblk.cli import confidential, main, qemu_args


def test_qemu_args_prints_one_line_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    """The line holds shared memory, the socket and the device, and nothing else."""
    assert main.main(["qemu-args", "--socket-path", "/run/vm0.sock"]) == 0

    assert capsys.readouterr().out == (
        "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on"
        " -machine memory-backend=mem"
        " -chardev socket,id=vhostblk0,path=/run/vm0.sock"
        " -device vhost-user-blk-pci,chardev=vhostblk0,num-queues=1\n"
    )


def test_qemu_args_takes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Queues, memory, machine type and id end up where QEMU wants them."""
    options = "--num-queues 4 --memory 512m --machine q35 --id data"
    assert main.main(["qemu-args", "--socket-path", "/run/vm0.sock", *options.split()]) == 0

    assert capsys.readouterr().out == (
        "-m 512M -object memory-backend-memfd,id=mem,size=512M,share=on"
        " -machine q35,memory-backend=mem"
        " -chardev socket,id=data,path=/run/vm0.sock"
        " -device vhost-user-blk-pci,chardev=data,num-queues=4\n"
    )


def test_qemu_args_of_a_second_disk_leave_the_memory_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--device-only prints what may come more than once on a command line."""
    options = ["--socket-path", "/run/b.sock", "--id", "b", "--device-only"]
    assert main.main(["qemu-args", *options]) == 0

    assert capsys.readouterr().out == (
        "-chardev socket,id=b,path=/run/b.sock -device vhost-user-blk-pci,chardev=b,num-queues=1\n"
    )


def test_qemu_args_can_have_qemu_connect_again(capsys: pytest.CaptureFixture[str]) -> None:
    """--reconnect-ms goes into the character device, in QEMU's own words."""
    options = ["--socket-path", "/run/b.sock", "--device-only", "--reconnect-ms", "100"]
    assert main.main(["qemu-args", *options]) == 0

    out = capsys.readouterr().out
    assert "-chardev socket,id=vhostblk0,path=/run/b.sock,reconnect-ms=100 -device" in out


def test_qemu_args_quotes_for_shell_and_qemu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A comma is doubled for QEMU, a space quoted for the shell, a relative path made absolute."""
    monkeypatch.chdir(tmp_path)
    assert main.main(["qemu-args", "--device-only", "--socket-path", "a, b.sock"]) == 0

    out = capsys.readouterr().out
    assert f"-chardev 'socket,id=vhostblk0,path={tmp_path}/a,, b.sock' " in out


def test_arguments_are_not_quoted() -> None:
    """Programs that start QEMU themselves get the arguments as they are."""
    attachment = qemu_args.Attachment(socket_path=Path("/a b"), memory=None)
    assert qemu_args.arguments(attachment)[1] == "socket,id=vhostblk0,path=/a b"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--memory", "12"],
            (
                "Invalid value for '--memory': '12' is not a size;"
                " give a whole number and a unit: 512M."
            ),
        ),
        (
            ["--id", "0a"],
            (
                "Invalid value for '--id': '0a' is not an id;"
                " begin with a letter, go on with letters, digits, '-._'."
            ),
        ),
        (
            ["--num-queues", "65"],
            "Invalid value for '--num-queues': 65 is not in the range 1<=x<=64.",
        ),
    ],
)
def test_qemu_args_refuses_what_qemu_would(
    options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value QEMU cannot take is refused here, with what to give instead."""
    assert main.main(["qemu-args", "--socket-path", "/run/vm0.sock", *options]) == 2

    assert capsys.readouterr() == (
        "",
        f"vhostblk qemu-args: {line} See 'vhostblk qemu-args --help'.\n",
    )


GUESTS = [
    (["--sev"], "sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1"),
    (["--sev", "--policy", "0x3"], "sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1,policy=0x3"),
    (["--sev-es"], "sev-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1,policy=0x5"),
    (
        ["--sev-es", "--cbitpos", "47"],
        "sev-guest,id=cgs0,cbitpos=47,reduced-phys-bits=1,policy=0x5",
    ),
    (["--sev-snp"], "sev-snp-guest,id=cgs0,cbitpos=51,reduced-phys-bits=1"),
    (["--tdx"], "tdx-guest,id=cgs0"),
]


@pytest.fixture
def no_cpuid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the host's CPU say nothing."""
    monkeypatch.setattr(confidential, "CPUID", tmp_path / "none")


@pytest.mark.usefixtures("no_cpuid")
@pytest.mark.parametrize(("options", "guest"), GUESTS)
def test_qemu_args_of_a_confidential_guest(
    options: list[str], guest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The guest's object is named by the machine, and the device gets what QEMU insists on.

    Source: QEMU 10.0, docs/system/confidential-guest-support.rst; hw/core/machine.c.
    """
    assert main.main(["qemu-args", "--socket-path", "/run/vm0.sock", *options]) == 0

    assert capsys.readouterr().out == (
        "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on"
        f" -object {guest}"
        " -machine q35,confidential-guest-support=cgs0,memory-backend=mem"
        " -chardev socket,id=vhostblk0,path=/run/vm0.sock"
        " -device vhost-user-blk-pci,chardev=vhostblk0,num-queues=1"
        ",iommu_platform=on,disable-legacy=on\n"
    )


def test_second_disk_of_a_confidential_guest_is_shared_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each disk has the device's part; what encrypts the guest comes once."""
    options = ["--socket-path", "/run/b.sock", "--id", "b", "--device-only", "--sev-snp"]
    assert main.main(["qemu-args", *options]) == 0

    assert capsys.readouterr().out == (
        "-chardev socket,id=b,path=/run/b.sock"
        " -device vhost-user-blk-pci,chardev=b,num-queues=1,iommu_platform=on,disable-legacy=on\n"
    )


@pytest.mark.guest
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--sev"], "accelerator does not support confidential guest sev-guest"),
        (["--sev-es"], "failed to locate and/or save reset vector"),
        (["--sev-snp"], "cannot set up private guest memory for sev-snp-guest: KVM required"),
    ],
    ids=["sev", "sev-es", "sev-snp"],
)
def test_qemu_understands_a_confidential_guest(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    QEMU takes every word of the line, up to what only the hardware (or firmware) can give.

    The controls: a property that is not there, and a link to no object, are complained
    of before that.
    """
    arguments = ["qemu-args", "--socket-path", "/nowhere", "--memory", "64M"]
    assert main.main([*arguments, *options]) == 0
    line = capsys.readouterr().out.split(" -chardev")[0]

    assert why in complaint(line)
    assert "Invalid parameter 'cbitpoz'" in complaint(line.replace("cbitpos", "cbitpoz"))
    assert "Device 'cgs1' not found" in complaint(line.replace("support=cgs0", "support=cgs1"))


def complaint(line: str) -> str:
    """Start QEMU with *line*, which must fail, and return what it says."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
    command = [qemu, "-accel", "tcg", "-display", "none", "-nodefaults", *shlex.split(line)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 1
    return run.stderr


@pytest.mark.guest
def test_qemu_takes_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QEMU starts with what is printed, and finds a device with the queues asked for."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
    path = tmp_path / "a, b.sock"
    with running.serving("--num-queues", "2", "memory:8M", socket=path) as server:
        words = ["--socket-path", str(path), "--num-queues", "2", "--memory", "64M"]
        assert main.main(["qemu-args", *words]) == 0
        line = capsys.readouterr().out
        command = f"{qemu} -accel tcg -S -display none -nodefaults -monitor stdio {line}"
        run = subprocess.run(
            ["sh", "-c", command],
            input="info qtree\nquit\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert (run.returncode, run.stderr) == (0, "")
        assert "dev: vhost-user-blk, id" in run.stdout
        assert "a front-end has connected" in running.end(server)


def test_qemu_args_has_qemu_listen(capsys: pytest.CaptureFixture[str]) -> None:
    """--connect is for `vhostblk serve --connect`: QEMU makes the socket."""
    assert main.main(["qemu-args", "--device-only", "--connect", "/run/q.sock"]) == 0
    assert "-chardev socket,id=vhostblk0,path=/run/q.sock,server=on " in capsys.readouterr().out


def test_qemu_that_listens_does_not_reconnect(capsys: pytest.CaptureFixture[str]) -> None:
    """QEMU would refuse to start with both: it is said here."""
    assert main.main(["qemu-args", "--connect", "a", "--reconnect-ms", "5"]) == 2
    assert "with --connect it is vhostblk that does" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--connect", "a", "--socket-path", "b"]])
def test_qemu_args_wants_one_path(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Neither and both are usage errors."""
    assert main.main(["qemu-args", *words]) == 2
    assert "Give --socket-path PATH or --connect PATH, one of them." in capsys.readouterr().err
