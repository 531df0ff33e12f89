"""
``vhostblk libvirt-xml``: what a libvirt domain needs to use a served disk.

Source: libvirt, formatdomain, "Hard drives, floppy disks, CDROMs" (vhostuser, since 7.1.0),
"Memory Backing" and "Virtio-related options".
"""

import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Unpack

import click

from vhostblk.cli import confidential, options
from vhostblk.cli.confidential import Confidential, Said


def disk(
    socket_path: Path, *, num_queues: int, target: str, guest: Confidential | None
) -> ET.Element:
    """
    Make the element of one disk.

    libvirt refuses serial, readonly, cache, discard and the like on it: the back-end decides them.

    Args:
        socket_path: Where the back-end listens.
        num_queues: Virtqueues; QEMU's own default, one per CPU, may be more than there are.
        target: The disk's name in libvirt, such as vda.
        guest: What encrypts the guest; None: nothing does.
    """
    element = ET.Element("disk", type="vhostuser", device="disk", snapshot="no")
    platform = {"iommu": "on"} if guest else {}
    driver = {"name": "qemu", "type": "raw", "queues": str(num_queues), **platform}
    ET.SubElement(element, "driver", driver)
    path = os.path.abspath(socket_path)  # noqa: PTH100 - must not follow links
    ET.SubElement(element, "source", type="unix", path=path)
    ET.SubElement(element, "target", dev=target, bus="virtio")
    return element


def memory_backing(guest: Confidential | None) -> ET.Element:
    """Make the element that has guest memory shared."""
    element = ET.Element("memoryBacking")
    if guest and guest.technology.pins_memory:
        ET.SubElement(element, "locked")
    ET.SubElement(element, "source", type="memfd")
    ET.SubElement(element, "access", mode="shared")
    return element


def domain(device: ET.Element, guest: Confidential | None) -> ET.Element:
    """Put a disk where it belongs, with what else of a domain it depends on."""
    element = ET.Element("domain", type="kvm")
    element.append(memory_backing(guest))
    ET.SubElement(element, "devices").append(device)
    if guest:
        element.append(confidential.launch_security(guest))
    return element


@click.command("libvirt-xml", short_help="Print what libvirt needs to use a served disk.")
@click.option(
    "--socket-path",
    required=True,
    type=click.Path(readable=False, path_type=Path),
    help="The socket `vhostblk serve` listens on; it need not exist yet.",
)
@options.guest_queues
@click.option(
    "--target",
    default="vda",
    show_default=True,
    callback=options.parsed(options.libvirt_target),
    help="The disk's name in libvirt; a second disk needs another.",
)
@click.option(
    "--device-only",
    is_flag=True,
    help="The disk alone, as `virsh attach-device` takes it.",
)
@confidential.options
def libvirt_xml(
    *, socket_path: Path, num_queues: int, target: str, device_only: bool, **said: Unpack[Said]
) -> None:
    """
    Print the parts of a libvirt domain that attach a served disk.

    They are not a whole domain: `virsh edit` it and put each where it belongs.

    \b
    Examples:
      vhostblk libvirt-xml --socket-path /run/vm0.sock
      vhostblk libvirt-xml --socket-path /run/vm0.sock --sev-snp
      vhostblk libvirt-xml --socket-path /run/vm0-b.sock --target vdb --device-only
    """  # noqa: D301 - \b keeps click from joining the lines of the examples
    guest = confidential.chosen(said)
    element = disk(socket_path, num_queues=num_queues, target=target, guest=guest)
    if not device_only:
        element = domain(element, guest)
    ET.indent(element)
    click.echo(ET.tostring(element, encoding="unicode"))
