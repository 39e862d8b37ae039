"""The command line of `python -m hypervisor`: what is asked for, and what cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hypervisor.api import NIC, DirectBoot, Disk, DomainConfig
from hypervisor.command.options import MOST_DEVICES, OptionError, domain_config, mac, parser
from hypervisor.disks import raw, vhd
from hypervisor.guests import DEMO_KERNEL, DEMO_MEMORY

MIB = 1 << 20


def config(*arguments: str) -> DomainConfig:
    return domain_config(parser().parse_args(["boot", *arguments]))


def refused(*arguments: str) -> str:
    with pytest.raises(OptionError) as caught:
        config(*arguments)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.create(tmp_path / "raw.img", MIB).close()
    vhd.create(tmp_path / "dynamic.vhd", MIB, clock=lambda: 0)
    (tmp_path / "fixed.vhd").write_bytes(bytes(MIB) + (tmp_path / "dynamic.vhd").read_bytes()[:512])
    (tmp_path / "kernel").write_bytes(b"x")
    return tmp_path


def test_the_demo_guest_needs_no_files() -> None:
    """Its kernel and its memory are known; one vCPU, no devices."""
    made = config("--demo")
    assert isinstance(made.boot, DirectBoot)
    assert (made.boot.kernel, made.memory_max, made.vcpus) == (str(DEMO_KERNEL), DEMO_MEMORY, 1)
    assert made.disks == () and made.nics == () and made.boot.kind == "pvh"


def test_all_options_arrive(folder: Path) -> None:
    """Kernel, initrd, command line, memory, vCPUs and kind."""
    kernel = str(folder / "kernel")
    made = config(
        *("--kernel", kernel, "--initrd", kernel, "--append", "quiet", "--memory", "1G"),
        *("--vcpus", "4", "--kind", "pv", "--name", "web"),
    )
    boot = made.boot
    assert isinstance(boot, DirectBoot)
    assert (boot.kernel, boot.ramdisk, boot.command_line, boot.kind) == (kernel, kernel, "quiet", "pv")
    assert (made.memory_max, made.memory_target, made.vcpus, made.name) == (1 << 30, 1 << 30, 4, "web")


@pytest.mark.parametrize(("text", "expected"), [("4M", 4 << 20), ("1g", 1 << 30), ("8192", 8192), ("64MiB", 64 << 20)])
def test_sizes_have_units(text: str, expected: int) -> None:
    """With or without, of any case."""
    assert config("--demo", "--memory", text).memory_max == expected


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--kernel", "x", "--demo"],
        *[["--demo", "--memory", text] for text in ("0", "-1", "1.5G", "5000", "17T", "many", "9" * 30, "")],
        *[["--demo", "--vcpus", text] for text in ("0", "65", "-1", "x", "9" * 30)],
        *[["--demo", "--net", text] for text in ("", "a b", "../x", "x" * 61)],
        ["--demo", "--kind", "hvm"],
        ["--demo", "--disks", "x"],
    ],
    ids=str,
)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2, as of other commands, and a line that says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        config(*arguments)
    assert caught.value.code == 2 and "error: " in capsys.readouterr().err


def test_disks_are_told_apart_by_their_content(folder: Path) -> None:
    """Raw, VHD with its footer at either end, and in which order they come."""
    names = ("raw.img", "dynamic.vhd", "fixed.vhd")
    made = config("--demo", *(item for name in names for item in ("--disk", str(folder / name))))
    assert made.disks == tuple(
        Disk(number, str(folder / name), "vhd" if "vhd" in name else "raw") for number, name in enumerate(names)
    )


def test_a_disk_can_be_read_only_and_its_format_said(folder: Path) -> None:
    """A raw disk may hold what a guest made look like a VHD; a file's name may end like an option."""
    image = str(folder / "dynamic.vhd")
    for text, expected in (
        (f"{image}:ro", Disk(0, image, "vhd", True)),
        (f"{image}:raw", Disk(0, image, "raw")),
        (f"{image}:raw:ro", Disk(0, image, "raw", True)),
        (f"{image}:ro:vhd", Disk(0, image, "vhd", True)),
    ):
        assert config("--demo", "--disk", text).disks == (expected,)
    odd = folder / "odd:ro"
    raw.create(odd, MIB).close()
    assert config("--demo", "--disk", str(odd)).disks == (Disk(0, str(odd), "raw"),)
    assert config("--demo", "--disk", f"{odd}:ro").disks == (Disk(0, str(odd), "raw", True),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"QFI\xfb" + bytes(1020), "qcow2 image; make it raw with: qemu-img convert"),
        (b"vhdxfile" + bytes(1016), "VHDX"),
        (b"KDMV" + bytes(508), "VMDK"),
        (b"", "0 bytes"),
        (bytes(700), "700 bytes, which are not whole sectors"),
    ],
)
def test_disks_that_cannot_be_served_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    """With what they are, and what to do."""
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert expected in refused("--demo", "--disk", str(path))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """Missing ones, directories, and no name at all; for kernels, initrds and disks."""
    missing, kernel = str(tmp_path / "missing"), str(DEMO_KERNEL)
    assert "No such file" in refused("--kernel", missing)
    assert "No such file" in refused("--demo", "--disk", missing)
    assert "No such file" in refused("--demo", "--disk", f"{missing}:ro")
    assert "No such file" in refused("--kernel", kernel, "--initrd", missing)
    assert "Is a directory" in refused("--kernel", str(tmp_path))
    assert "neither a file nor" in refused("--demo", "--disk", str(tmp_path))
    assert "is no file" in refused("--kernel", "/dev/null")
    assert "neither a file nor" in refused("--demo", "--disk", "/dev/null")
    assert "names no disk" in refused("--demo", "--disk", "")
    assert "names no disk" in refused("--demo", "--disk", f"{missing}:raw:vhd")


def test_files_without_permission_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that may only be read needs :ro; what may not be read at all is of no use."""
    image = str(folder / "raw.img")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may do everything
    assert "write " + image + ":ro" in refused("--demo", "--disk", image)
    assert config("--demo", "--disk", f"{image}:ro").disks[0].read_only


def test_cards_have_local_addresses_that_stay() -> None:
    """The same for the same name and number, others for others."""
    made = config("--demo", "--net", "one", "--net", "two", "--name", "web").nics
    assert made == config("--demo", "--net", "one", "--net", "two", "--name", "web").nics
    assert made == (NIC(0, mac("web", 0), "one"), NIC(1, mac("web", 1), "two"))
    addresses = {mac(name, number) for name in ("web", "guest", "web1") for number in range(20)}
    assert len(addresses) == 60
    assert all(int(address[:2], 16) & 3 == 2 and len(address) == 17 for address in addresses)


@pytest.mark.parametrize(("option", "value"), [("--net", "one"), ("--disk", "raw.img")])
def test_there_are_not_too_many_devices(folder: Path, option: str, value: str) -> None:
    """One more than there may be."""
    value = str(folder / value) if option == "--disk" else value
    assert config("--demo", *[option, value] * MOST_DEVICES)
    assert "at most" in refused("--demo", *[option, value] * (MOST_DEVICES + 1))
