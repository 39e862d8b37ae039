"""The command line of `python -m hypervisor`, and the domain that it describes."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import stat
import uuid

from hypervisor.api import NIC, DirectBoot, Disk, DomainConfig
from hypervisor.guests import DEMO_KERNEL, DEMO_MEMORY

MEMORY = 256 << 20
"""Bytes for a guest if nobody says otherwise."""
MOST_MEMORY = 1 << 44
MOST_DEVICES = 16
MOST_VCPUS = 64
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECTOR = 512
_VHD = b"conectix"
_FOREIGN = {b"QFI\xfb": "qcow2", b"vhdxfile": "VHDX", b"KDMV": "VMDK", b"# Disk D": "VMDK", b"<<< Orac": "VDI"}
"""First bytes of image formats that would be taken for raw disks."""


class OptionError(Exception):
    """What the options name cannot be used."""


def size(text: str) -> int:
    """Read a size such as 256M. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:I?B)?", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is no size; write 256M or 1G")
    number = int(match.group(1)) * _UNITS[match.group(2)]
    if not number or number > MOST_MEMORY or number % 4096:
        raise argparse.ArgumentTypeError(f"{text} is no size of memory; write whole pages of 4K, up to 16T")
    return number


def vcpu_count(text: str) -> int:
    """Read how many vCPUs there are. Raises ArgumentTypeError."""
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_VCPUS:
        raise argparse.ArgumentTypeError(f"{text} is no number of vCPUs; they are 1 to {MOST_VCPUS}")
    return int(text)


def name(text: str) -> str:
    """Read the name of a guest or network. Raises ArgumentTypeError."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name; letters, digits and _ . - are allowed")
    return text


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    commands = argparse.ArgumentParser(prog="python -m hypervisor", description="Emulated Xen: run a guest.")
    boot = commands.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "boot", help="boot one guest", description="Boot one guest with its console on the terminal; Ctrl-] leaves."
    )
    what = boot.add_mutually_exclusive_group(required=True)
    what.add_argument("--kernel", metavar="FILE", help="a bzImage, or an ELF file with a PVH or PV entry")
    what.add_argument("--demo", action="store_true", help="boot our own small guest; type help at its prompt")
    boot.add_argument("--initrd", metavar="FILE", default="", help="an initial RAM disk")
    boot.add_argument("--append", metavar="TEXT", default="console=hvc0", help="the command line (%(default)s)")
    boot.add_argument("--memory", type=size, metavar="SIZE", help="such as 1G (256M; with --demo 4M)")
    boot.add_argument("--vcpus", type=vcpu_count, default=1, metavar="N", help="virtual CPUs (%(default)s)")
    boot.add_argument("--kind", choices=("pvh", "pv"), default="pvh", help="how the kernel is entered (%(default)s)")
    boot.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="FILE[:ro]",
        help="a raw or VHD image as the next of xvda, xvdb, …; :raw or :vhd says which it is",
    )
    boot.add_argument("--net", type=name, action="append", default=[], metavar="NETWORK", help="a card on a network")
    boot.add_argument("--name", type=name, default="guest", help="from which addresses of cards are made (%(default)s)")
    boot.add_argument(
        "--console", action=argparse.BooleanOptionalAction, default=True, help="join the console to the terminal"
    )
    return commands


def domain_config(options: argparse.Namespace) -> DomainConfig:
    """Return the domain that the options describe. Raises OptionError for files that cannot be used."""
    memory = options.memory or (DEMO_MEMORY if options.demo else MEMORY)
    kernel = str(DEMO_KERNEL) if options.demo else readable(options.kernel, "kernel")
    ramdisk = readable(options.initrd, "initial RAM disk") if options.initrd else ""
    if max(len(options.disk), len(options.net)) > MOST_DEVICES:
        raise OptionError(f"a guest has at most {MOST_DEVICES} disks and {MOST_DEVICES} cards")
    return DomainConfig(
        uuid=str(uuid.uuid4()),
        name=options.name,
        memory_max=memory,
        memory_target=memory,
        vcpus=options.vcpus,
        boot=DirectBoot(kernel, ramdisk, options.append, options.kind),
        disks=tuple(disk(number, text) for number, text in enumerate(options.disk)),
        nics=tuple(NIC(number, mac(options.name, number), network) for number, network in enumerate(options.net)),
    )


def mac(guest: str, number: int) -> str:
    """Return the address of a guest's card: locally administered, the same each time for the same name and number."""
    octets = bytearray(hashlib.sha256(f"{guest}/{number}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def readable(path: str, what: str) -> str:
    """Return the absolute path of a file that can be read. Raises OptionError."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OptionError(f"the {what} {path} is no file")
    except OSError as error:
        raise OptionError(f"the {what} {path} cannot be read: {error.strerror}") from error
    return os.path.abspath(path)


def disk(number: int, text: str) -> Disk:
    """Return the disk that FILE[:ro][:raw|:vhd] names. Raises OptionError for one that cannot be used."""
    path, words = text, set[str]()
    while not os.path.lexists(path) and (match := re.fullmatch(r"(.+):(ro|raw|vhd)", path, re.DOTALL)):
        path = match.group(1)
        words.add(match.group(2))
    if not path or {"raw", "vhd"} <= words:
        raise OptionError(f"{text!r} names no disk")
    form = _format(path)
    read_only = "ro" in words
    if not read_only and not os.access(path, os.W_OK):
        raise OptionError(f"the disk {path} cannot be written; write {path}:ro to read it")
    return Disk(number, os.path.abspath(path), next(iter(words & {"raw", "vhd"}), form), read_only)


def _format(path: str) -> str:
    """Tell by its content whether a file is a raw disk or a VHD. Raises OptionError."""
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISBLK(mode):
            raise OptionError(f"the disk {path} is neither a file nor a block device")
        with open(path, "rb") as file:
            head = file.read(_SECTOR)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _SECTOR))
            tail = file.read(_SECTOR)
    except OSError as error:
        raise OptionError(f"the disk {path} cannot be read: {error.strerror}") from error
    for first, kind in _FOREIGN.items():
        if head.startswith(first):
            raise OptionError(
                f"the disk {path} is a {kind} image; make it raw with: qemu-img convert -O raw {path} NEW"
            )
    if head.startswith(_VHD) or tail.startswith(_VHD):
        return "vhd"
    if not length or length % _SECTOR:
        raise OptionError(f"the disk {path} has {length} bytes, which are not whole sectors of {_SECTOR}")
    return "raw"
