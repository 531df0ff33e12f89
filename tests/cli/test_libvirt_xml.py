import copy
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vhostblk.cli import confidential, main

WHOLE = """\
<domain type="kvm">
  <name>vm0</name>
  <memory unit="GiB">1</memory>
  <os><type arch="x86_64" machine="q35">hvm</type></os>
</domain>"""


@pytest.fixture(autouse=True)
def _no_cpuid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the host's CPU say nothing."""
    monkeypatch.setattr(confidential, "CPUID", tmp_path / "none")


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main.main(["libvirt-xml", "--socket-path", "/run/vm0.sock", *options]) == 0
    return capsys.readouterr().out


def test_libvirt_xml_of_an_ordinary_guest(capsys: pytest.CaptureFixture[str]) -> None:
    """Shared memory and the disk, and no more than is needed."""
    assert printed(capsys, "--num-queues", "4") == (
        """\
<domain type="kvm">
  <memoryBacking>
    <source type="memfd" />
    <access mode="shared" />
  </memoryBacking>
  <devices>
    <disk type="vhostuser" device="disk" snapshot="no">
      <driver name="qemu" type="raw" queues="4" />
      <source type="unix" path="/run/vm0.sock" />
      <target dev="vda" bus="virtio" />
    </disk>
  </devices>
</domain>
"""
    )


@pytest.mark.parametrize(
    ("options", "security"),
    [
        (["--sev"], ["sev", "51", "1", "0x0001"]),
        (["--sev", "--policy", "3", "--cbitpos", "47"], ["sev", "47", "1", "0x0003"]),
        (["--sev-es"], ["sev", "51", "1", "0x0005"]),
        (["--sev-snp"], ["sev-snp", "51", "1", "0x30000"]),
        (["--tdx"], ["tdx"]),
    ],
)
def test_libvirt_xml_of_a_confidential_guest(
    options: list[str], security: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk asks for the DMA API; SEV's memory is locked, SNP's and TDX's need not be."""
    domain = ET.fromstring(printed(capsys, *options))

    driver = domain.find("devices/disk/driver")
    launch = domain.find("launchSecurity")
    assert driver is not None
    assert launch is not None
    assert driver.get("iommu") == "on"
    assert [launch.get("type"), *(child.text for child in launch)] == security
    locked = domain.find("memoryBacking/locked") is not None
    assert locked is (security[0] == "sev")


def test_libvirt_xml_of_a_disk_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """What `virsh attach-device` takes; any path is quoted."""
    options = ["--device-only", "--target", "vdb", "--socket-path", '/run/a&b".sock']
    disk = ET.fromstring(printed(capsys, *options))

    assert disk.tag == "disk"
    assert [(child.tag, dict(child.attrib)) for child in disk] == [
        ("driver", {"name": "qemu", "type": "raw", "queues": "1"}),
        ("source", {"type": "unix", "path": '/run/a&b".sock'}),
        ("target", {"dev": "vdb", "bus": "virtio"}),
    ]


def test_libvirt_xml_refuses_a_target_of_another_bus(capsys: pytest.CaptureFixture[str]) -> None:
    """A name like sda would promise a bus the disk is not on."""
    options = ["libvirt-xml", "--socket-path", "/s", "--target", "sda"]
    assert main.main(options) == 2
    assert "'sda' is not a virtio disk's name; give vda, vdb or so." in capsys.readouterr().err


def schemas() -> Path:
    """Return where libvirt's schemas are."""
    prefix = Path(os.environ.get("VHOSTBLK_LIBVIRT", "/usr"))
    path = prefix / "share/libvirt/schemas"
    if not path.exists():
        pytest.skip("libvirt's schemas are missing; `.ci/setup all` unpacks them")
    return path


def is_valid(domain: ET.Element, directory: Path) -> bool:
    """Let libvirt's schema judge a domain that is whole but for what *domain* adds."""
    xmllint = shutil.which("xmllint")
    if xmllint is None:
        pytest.skip("xmllint is not installed (Debian: libxml2-utils)")
    whole = ET.fromstring(WHOLE)
    whole.extend(domain)
    file = directory / "domain.xml"
    file.write_bytes(ET.tostring(whole))
    command = [xmllint, "--noout", "--relaxng", str(schemas() / "domain.rng"), str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("technology", ["", "--sev", "--sev-es", "--sev-snp", "--tdx"])
def test_libvirts_schema_takes_what_is_printed(
    technology: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Valid by libvirt's own RELAX NG schema; not, where an attribute is misspelt.

    The schemas of libvirt 11.3 know no TDX: all but that element is judged then.
    """
    domain = ET.fromstring(printed(capsys, *technology.split(), "--num-queues", "4"))
    launch = domain.find("launchSecurity")
    known = (schemas() / "domaincommon.rng").read_text()
    if launch is not None and f"<value>{launch.get('type')}</value>" not in known:
        assert technology == "--tdx"
        assert not is_valid(domain, tmp_path)
        domain.remove(launch)
    assert is_valid(domain, tmp_path)

    for path, attribute in (("devices/disk/driver", "iomu"), ("memoryBacking/access", "mod")):
        broken = copy.deepcopy(domain)
        element = broken.find(path)
        assert element is not None
        element.set(attribute, "on")
        assert not is_valid(broken, tmp_path)
