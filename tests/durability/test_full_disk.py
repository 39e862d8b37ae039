"""A file system that disks of guests share with the database, filled by a guest and by others."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from hypervisor.disks import raw, room
from hypervisor.disks.disk import DiskError, Kind
from tests.durability.test_failures import on_a_file_system
from tests.unit.block_front import Front, request
from tests.unit.test_split_block import ERROR, OKAY, WRITE

MIB = 1 << 20


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the file system of the test's directory says is free on it; 8 MiB of it are kept back."""
    said = {"free": 100 * MIB, "looks": 0}

    def statvfs(path: object) -> SimpleNamespace:
        said["looks"] += 1
        return SimpleNamespace(f_blocks=1 << 20, f_frsize=4096, f_bavail=said["free"] // 4096)

    monkeypatch.setattr(room, "_kept", {})
    room.keep_back(tmp_path, 8 * MIB)
    monkeypatch.setattr(os, "fstatvfs", statvfs)
    return said


def test_a_disk_meets_no_space_before_the_file_system_is_full(tmp_path: Path, free: dict[str, int]) -> None:
    """At what is kept back, and for what takes room only: what is there may be written over."""
    disk = raw.create(tmp_path / "disk", 64 * MIB)
    disk.write(0, b"x" * MIB)
    free["free"] = 8 * MIB
    with pytest.raises(DiskError) as caught:
        for at in range(1, 9):
            disk.write(at * MIB, b"x" * MIB)
    assert caught.value.kind is Kind.NO_SPACE
    disk.write(4096, b"y" * 4096)
    with pytest.raises(DiskError):
        disk.write(32 * MIB, b"z" * 512)
    assert (disk.read(4096, 4096), disk.read(32 * MIB, 512)) == (b"y" * 4096, bytes(512))
    free["free"] = 100 * MIB
    disk.write(32 * MIB, b"z" * 512)
    disk.close()


def test_the_guest_sees_an_io_error_for_that_write_alone(tmp_path: Path, free: dict[str, int]) -> None:
    """Its disk goes on: what is there is read and written over, and new sectors too when there is room again."""
    front = Front(raw.create(tmp_path / "disk", MIB)).connect()
    old, new = (request(WRITE, sector, [(front.grant(ref, 300), 0, 7)]) for ref, sector in ((40, 0), (41, 1024)))
    assert front.do(old) == [OKAY]
    free["free"] = 8 * MIB
    kept = room.room_of(tmp_path.stat().st_dev)
    assert kept is not None
    kept.take(-1, 2 * MIB)  # the part that was granted at the first write
    assert [front.do(each) for each in (new, old)] == [[ERROR], [OKAY]]
    free["free"] = 100 * MIB
    assert front.do(new) == [OKAY]


def test_the_file_system_is_seldom_asked(tmp_path: Path, free: dict[str, int]) -> None:
    """Once for a quarter of what is kept back, so the loss by others' writing meanwhile is less than that."""
    disk = raw.create(tmp_path / "disk", 64 * MIB)
    for at in range(0, 16 * MIB, 4096):
        disk.write(at, b"x" * 4096)
    assert free["looks"] == 8
    disk.close()


def test_nothing_is_kept_back_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where somebody asked for it."""
    monkeypatch.setattr(room, "_kept", {})
    room.keep_back(tmp_path, 0)
    assert room.room_of(tmp_path.stat().st_dev) is None


_A_GUEST_FILLS_IT = """
import os, sys, time
from pathlib import Path
from hypervisor.disks import room
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.repository import FileRepository
from tests.durability.harness import Opened
MIB = 1 << 20
place = Path(sys.argv[1])
free = lambda: os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
with Opened(f"sqlite:///{place}/xapi.db") as opened:
    room.keep_back(place, 3 * MIB)
    repository = FileRepository(place / "sr", clock=time.time_ns)
    repository.create()
    repository.attach()
    made = repository.create_volume(64 * MIB)
    disk = repository.open(made.uuid)
    at = 0
    try:
        while True:
            disk.write(at, b"x" * 65536)
            at += 65536
    except DiskError as error:
        assert error.kind is Kind.NO_SPACE, error
    assert at > 8 * MIB and free() >= 2 * MIB, (at, free())
    assert repository.space().physical_size - repository.space().physical_utilisation < MIB
    disk.flush()
    disk.write(0, b"y" * 65536)
    disk.flush()
    assert disk.read(0, 65536) == b"y" * 65536 and disk.read(at - 65536, 65536) == b"x" * 65536
    try:
        for number in range(200):
            repository.create_volume(64 * MIB)
        raise SystemExit("volumes were made")
    except StorageError as error:
        assert error.code is Code.SRNoSpace, error
    for number in range(100):  # a megabyte of the three
        opened.store.secret.create(value=f"{number} " + "x" * 10_000)
        assert opened.flush() is None
    disk.close()
    repository.delete(made.uuid)
    assert opened.flush() is None
    disk = repository.open(repository.create_volume(64 * MIB).uuid)
    disk.write(0, b"x" * MIB)
    disk.close()
print("survived")
"""

_OTHERS_FILL_IT = """
import os, sys
from pathlib import Path
from tests.durability.harness import Opened
from xapi.datamodel.errors import Fault
from xapi.store.ballast import Ballast
place = Path(sys.argv[1])
ballast = Ballast(place / "xapi.db-reserve", 8 << 20)
with Opened(f"sqlite:///{place}/xapi.db", ballast=ballast) as opened:
    store = opened.store
    vms = [store.VM.create(name_label=str(number), name_description="x" * 20_000) for number in range(50)]
    assert opened.flush() is None
    opened.loop.until(lambda: ballast.held)
    with open(place / "others", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    for number in range(2000):
        try:
            store.secret.create(value="x" * 20_000)
        except Fault as fault:
            assert fault.description == ["OUT_OF_SPACE", "the database"], fault
            break
        assert opened.flush() is None, "a change was lost"
    assert store.shortage is not None and store.refusal is None and not ballast.held
    for refused in (lambda: store.VM.create(), lambda: setattr(vms[0], "name_label", "new")):
        try:
            refused()
        except Fault as fault:
            assert fault.code == "OUT_OF_SPACE"
        else:
            raise SystemExit("something new was made")
    vms[0].power_state = "Running"
    assert opened.flush() is None
    for vm in vms[1:]:
        store.VM.delete(vm._ref)
        assert opened.flush() is None
    os.remove(place / "others")
    opened.loop.until(lambda: store.shortage is None)
    assert ballast.held
    store.VM.create(name_label="new")
    assert opened.flush() is None
again = Opened(f"sqlite:///{place}/xapi.db")
again.database.close()
assert sorted((vm.name_label, vm.power_state) for vm in again.store.VM) == [("0", "Running"), ("new", "Halted")]
print("survived")
"""

_CALLS_OF_CLIENTS = """
import os, sys, time, xmlrpc.client
from pathlib import Path
from tests.clients.daemon import Daemon
place = Path(sys.argv[1])
daemon = Daemon(place / "state").ready()
try:
    api = xmlrpc.client.ServerProxy(daemon.http)
    def call(name, *parameters):
        answer = getattr(api, name)(session, *parameters)
        if answer["Status"] != "Success":
            raise RuntimeError(answer["ErrorDescription"])
        return answer.get("Value")
    session = api.session.login_with_password("root", "xenroot")["Value"]
    (sr,) = call("SR.get_by_name_label", "Local storage")
    (iso,) = call("SR.get_by_name_label", "ISO library")
    def disk(label):
        return call("VDI.create", {"name_label": label, "SR": sr, "virtual_size": str(64 << 20), "type": "user",
                                   "sharable": False, "read_only": False, "other_config": {}})
    vdis = [disk(str(number)) for number in range(4)]
    (template,) = call("VM.get_by_name_label", "Other install media")
    vm = call("VM.clone", template, "to go")
    call("VM.set_is_a_template", vm, False)
    with open(place / "others", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    try:
        for number in range(2000):
            call("secret.create", {"value": "x" * 50_000, "other_config": {}})
        raise SystemExit("never out of space")
    except RuntimeError as error:
        assert error.args[0] == ["OUT_OF_SPACE", "the database"], error
    try:
        disk("one more")
        raise SystemExit("a disk was made")
    except RuntimeError as error:
        assert error.args[0][0] in ("SR_BACKEND_FAILURE_44", "OUT_OF_SPACE"), error
    for vdi in vdis:
        call("VDI.destroy", vdi)
    call("VM.destroy", vm)
    for pbd in call("SR.get_PBDs", iso):
        call("PBD.unplug", pbd)
    call("SR.forget", iso)
    assert iso not in call("SR.get_all") and vm not in call("VM.get_all")
    assert not set(vdis) & set(call("VDI.get_all"))
    os.remove(place / "others")
    end = time.monotonic() + 60
    while True:
        try:
            made = disk("after")
            break
        except RuntimeError as error:
            assert time.monotonic() < end, error
            time.sleep(0.2)
    daemon.stop()
    print("survived")
finally:
    if daemon.process.poll() is None:
        daemon.kill()
"""


def test_a_guest_that_fills_the_disk_leaves_the_database_its_room(tmp_path: Path) -> None:
    """On a real file system: an error for the guest's write, none for its later ones, and changes go on."""
    assert on_a_file_system(tmp_path, 'mount -t tmpfs -o size=24m none "$2"', _A_GUEST_FILLS_IT) == "survived\n"


def test_what_frees_is_let_through_when_others_have_filled_the_disk(tmp_path: Path) -> None:
    """No change is lost on the way; what is new is refused until there is room."""
    assert on_a_file_system(tmp_path, 'mount -t tmpfs -o size=64m none "$2"', _OTHERS_FILL_IT) == "survived\n"


def test_disks_vms_and_srs_can_go_from_a_full_disk(tmp_path: Path) -> None:
    """The calls that clients make to free room, to the real daemon."""
    assert on_a_file_system(tmp_path, 'mount -t tmpfs -o size=128m none "$2"', _CALLS_OF_CLIENTS) == "survived\n"
