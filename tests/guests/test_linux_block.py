"""The block device against Linux's own driver, xen-blkfront, in Debian's unmodified kernel."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.disks import raw, vhd
from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.disks.disk import Disk
from hypervisor.split.block import BlockConfig, BlockDevice
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.xenbus import Backend

MIB = 1 << 20
SIZE = 64 * MIB
SECONDS = 30


class Guest:
    """A Linux and ways to plug disks into it."""

    def __init__(self, linux: Any, threads: DiskThreads) -> None:
        self.linux = linux
        self.run = linux.run
        self._threads = threads
        self.backends: list[Backend] = []

    def plug(self, disk: Disk | None, name: str = "xvdb", wait: bool = True, **options: Any) -> BlockDevice:
        """Hot-plug a disk and wait until the guest has it."""
        device = BlockDevice(self.linux.domain, disk, self._threads.put, BlockConfig(name, **options))
        backend = Backend(self.linux.domain, self.linux.host.xenstore, device, device.number)
        backend.plug()
        self.backends.append(backend)
        if wait:
            self.linux.wait_for(f"[ -b /dev/{name} ]")
        return device

    def unplug(self, force: bool = False) -> None:
        """Take the last disk away and wait until it is gone, on both sides."""
        backend, gone = self.backends.pop(), threading.Event()
        (backend.remove if force else backend.unplug)(gone.set)
        assert gone.wait(SECONDS)
        assert isinstance(backend.device, BlockDevice)
        # The driver's last word is Closed, which must not reach a new device of the same number.
        self.linux.wait_for(f"[ ! -e /sys/devices/vbd-{backend.number} ]")


@pytest.fixture(scope="module")
def booted(make_linux: Callable[[], Any], disk_threads: DiskThreads) -> Guest:
    return Guest(make_linux().boot(), disk_threads)


@pytest.fixture
def guest(booted: Guest) -> Iterator[Guest]:
    """One Linux for all tests here; what a test plugged goes with it."""
    yield booted
    while booted.backends:
        booted.unplug(force=True)


def now() -> int:
    return time.time_ns()


def an_image(kind: str, directory: Path) -> Disk:
    path = directory / f"{kind}.img"
    if kind == "anonymous":
        return AnonymousDisk(SIZE)
    if kind == "raw":
        return raw.create(path, SIZE)
    if kind == "differencing":
        vhd.create(directory / "parent.vhd", SIZE, clock=now)
        parent = vhd.open(directory / "parent.vhd")
        parent.write(0, b"parent" * 100_000)
        parent.close()
        vhd.create(path, parent=directory / "parent.vhd", clock=now)
    else:
        vhd.create(path, SIZE, clock=now)
    return vhd.open(path)


@pytest.fixture(params=["raw", "dynamic", "differencing", "anonymous"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    disk = an_image(request.param, tmp_path)
    yield disk
    disk.close()


def digest(disk: Disk, length: int) -> str:
    return hashlib.md5(disk.read(0, length)).hexdigest()


def test_a_file_system_keeps_its_files(guest: Guest, image: Disk) -> None:
    """Partition, format, mount, write, unmount, mount again, compare."""
    guest.plug(image)
    guest.run(r"printf 'n\np\n1\n\n\nw\n' | fdisk /dev/xvdb; sync")
    guest.linux.wait_for("[ -b /dev/xvdb1 ]")
    guest.run("mke2fs -q /dev/xvdb1; mount -t ext4 /dev/xvdb1 /mnt")
    guest.run("dd if=/dev/urandom of=/mnt/file bs=64k count=200; cp /mnt/file /mnt/copy")
    before = guest.run("md5sum < /mnt/file")
    guest.run("umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/xvdb1 /mnt")
    assert guest.run("md5sum < /mnt/copy") == before
    guest.run("umount /mnt")


def test_what_the_guest_writes_is_what_the_disk_holds(guest: Guest, image: Disk) -> None:
    """Byte for byte, both ways, by requests of all sizes."""
    device = guest.plug(image)
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=8; dd if=/tmp/data of=/dev/xvdb bs=1M oflag=direct")
    assert guest.run("md5sum < /tmp/data").split()[0] == digest(image, 8 * MIB)
    guest.run("dd if=/tmp/data of=/dev/xvdb bs=5k count=500 seek=300 conv=fsync")
    image.write(20 * MIB, b"from outside" * 1000)
    wanted = hashlib.md5(image.read(20 * MIB, 12000)).hexdigest()
    assert guest.run("tail -c +20971521 /dev/xvdb | head -c 12000 | md5sum").split()[0] == wanted
    guest.run("dd if=/dev/xvdb of=/tmp/back bs=1M count=8 iflag=direct")
    assert guest.run("md5sum < /tmp/back; rm /tmp/back /tmp/data").split()[0] == digest(image, 8 * MIB)
    assert device.counters.errors == 0


def test_two_disks_do_not_mix(guest: Guest) -> None:
    """Each request goes to the disk of its ring."""
    first, second = AnonymousDisk(SIZE), AnonymousDisk(SIZE)
    guest.plug(first, "xvdb"), guest.plug(second, "xvdc")
    guest.run("yes first | head -c 1048576 > /dev/xvdb & yes second | head -c 1048576 > /dev/xvdc; wait; sync")
    assert first.read(0, MIB) == (b"first\n" * MIB)[:MIB]
    assert second.read(0, MIB) == (b"second\n" * MIB)[:MIB]


def test_a_read_only_disk_refuses_writes(guest: Guest) -> None:
    """Linux knows, and its attempt fails."""
    disk = AnonymousDisk(SIZE)
    guest.plug(disk, read_only=True)
    assert guest.run("cat /sys/block/xvdb/ro") == "1"
    guest.run("! dd if=/dev/zero of=/dev/xvdb bs=4k count=1")
    assert disk.utilisation == 0


def test_a_disk_comes_and_goes_while_the_guest_runs(guest: Guest) -> None:
    """Hot plug and unplug, again and again, with the guest's consent."""
    for _ in range(3):
        guest.plug(AnonymousDisk(SIZE))
        guest.run("dd if=/dev/zero of=/dev/xvdb bs=64k count=20 oflag=direct")
        guest.unplug()


def test_a_disk_torn_out_does_not_hurt_the_guest(guest: Guest) -> None:
    """Forced unplug in the middle of writes: the disk is not touched afterwards, the guest goes on."""
    device = guest.plug(AnonymousDisk(64 * SIZE))
    guest.run("dd if=/dev/zero of=/dev/xvdb bs=64k oflag=direct >/dev/null 2>&1 &")
    deadline = time.monotonic() + SECONDS
    while device.counters.writes < 20 and time.monotonic() < deadline:
        guest.run("true")
    guest.unplug(force=True)
    done = device.counters.writes
    assert done >= 20
    assert guest.run("echo alive") == "alive"
    assert device.counters.writes == done and device.counters.in_flight == 0
    guest.plug(AnonymousDisk(SIZE))


@pytest.mark.parametrize(
    ("option", "slots", "writes"), [("max_ring_page_order=4", 512, 256), ("max_indirect_segments=256", 32, 32)]
)
def test_a_driver_loaded_again_with_larger_limits(guest: Guest, option: str, slots: int, writes: int) -> None:
    """Sixteen pages a ring, or 256 segments a request: 1 MiB at once. Both would take more memory than it has."""
    guest.run(f"rmmod xen_blkfront; insmod /modules/*blkfront.ko {option}")
    device = guest.plug(AnonymousDisk(SIZE))
    guest.run("dd if=/dev/zero of=/dev/xvdb bs=1M count=32 oflag=direct")
    assert (device.ring_slots, device.counters.writes) == (slots, writes)
    assert device.counters.written_bytes == 32 * MIB and device.counters.errors == 0


def test_discard_gives_space_back(guest: Guest) -> None:
    """BLKDISCARD from the guest frees the disk's memory."""
    disk = AnonymousDisk(SIZE)
    guest.plug(disk)
    guest.run("dd if=/dev/urandom of=/dev/xvdb bs=1M count=16 conv=fsync; blkdiscard -o 0 -l 8388608 /dev/xvdb")
    assert disk.utilisation == 8 * MIB


def test_a_disk_grows(guest: Guest, tmp_path: Path) -> None:
    """The guest sees the new size without a reboot."""
    disk = raw.create(tmp_path / "grows.img", SIZE)
    device = guest.plug(disk)
    disk.file.truncate(2 * SIZE)
    disk.size = 2 * SIZE
    device.resized()
    guest.linux.wait_for(f"[ $(cat /sys/block/xvdb/size) = {2 * SIZE // 512} ]")
    guest.unplug()
    disk.close()


def test_a_cd_is_changed(guest: Guest) -> None:
    """Eject and insert: the size tells."""
    first, second = AnonymousDisk(SIZE), AnonymousDisk(2 * SIZE)
    second.write(0, b"second")
    device, freed = guest.plug(first, "xvdd", cdrom=True), threading.Event()
    assert guest.run("cat /sys/block/xvdd/ro /sys/block/xvdd/removable").split() == ["1", "1"]
    device.change_medium(None, "", freed.set)
    assert freed.wait(SECONDS)
    guest.linux.wait_for("[ $(cat /sys/block/xvdd/size) = 0 ]")
    device.change_medium(second, "second.iso", lambda: None)
    guest.linux.wait_for(f"[ $(cat /sys/block/xvdd/size) = {2 * SIZE // 512} ]")
    assert guest.run("head -c 6 /dev/xvdd") == "second"


@pytest.mark.parametrize("kind", ["raw", "dynamic"])
def test_what_was_synced_is_in_the_file_when_the_domain_is_killed(
    kind: str, make_linux: Callable[[], Any], disk_threads: DiskThreads, tmp_path: Path
) -> None:
    """The domain is destroyed in the middle of writes, the image never closed; a copy of it has all that was synced."""
    disk = an_image(kind, tmp_path)
    linux = make_linux().boot()
    guest = Guest(linux, disk_threads)
    guest.plug(disk)
    # Without a journal, Linux writes the last blocks of a sync after its flush: the second one flushes them.
    guest.run("mke2fs -q -I 256 /dev/xvdb; mount -t ext4 /dev/xvdb /mnt; seq 100000 > /mnt/kept; sync; sync")
    wanted = guest.run("md5sum < /mnt/kept")
    linux.start("while :; do dd if=/dev/zero of=/mnt/lost bs=64k count=400; done")
    linux.toolstack.destroy(linux.uuid)
    assert guest.backends[0].gone
    shutil.copyfile(tmp_path / f"{kind}.img", tmp_path / "copy.img")
    disk.close()
    copy = raw.open(tmp_path / "copy.img") if kind == "raw" else vhd.open(tmp_path / "copy.img")
    again = Guest(make_linux().boot(), disk_threads)
    again.plug(copy)
    again.run("mount -t ext4 /dev/xvdb /mnt")
    assert again.run("md5sum < /mnt/kept") == wanted
    again.linux.toolstack.destroy(again.linux.uuid)
    copy.close()
