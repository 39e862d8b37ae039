"""The demo guest, by PVH and by PV, suspended: saved and restored, resumed in place, copied while it runs, cloned."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration import live, resume
from hypervisor.migration.clone import Template
from hypervisor.migration.dirty import ComparingTracker, ProtectingTracker
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.records import ImageError
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from hypervisor.split.block_queue import DiskThreads
from tests.guests.demo_guest import MIB, DemoGuest
from tests.guests.resumed import ResumedDemo, held, join, leave, tidy


@pytest.fixture(params=["pvh", "pv"])
def guest(host: Host, request: pytest.FixtureRequest) -> DemoGuest:
    """A demo guest at its prompt, with a counter running and a MiB of known content."""
    guest = DemoGuest(host, kind=request.param).boot()
    guest.run("counter")
    guest.run("touch 1")
    return guest


def suspend(guest: DemoGuest) -> None:
    assert guest.ended("suspend") is Reason.SUSPEND


def image_of(guest: DemoGuest) -> bytes:
    file = io.BytesIO()
    save(guest.host, guest.domain, file, b"config")
    return file.getvalue()


def restored(host: Host, image: bytes) -> ResumedDemo:
    return ResumedDemo(host, Image(io.BytesIO(image)).build(host)).go_on()


def is_well(guest: DemoGuest, resumes: int) -> None:
    """See that a guest has gone on: its memory, its console, its home in xenstore, its timer."""
    values = guest.run("info")
    assert (values["resumes"], values["domid"]) == (str(resumes), str(guest.domain.domid))
    assert guest.run("touched") == {"touched-kib": "1024", "bad-frames": "0"}
    count = int(guest.run("counter")["counter"])
    guest.wait_for(lambda: int(guest.run("counter")["counter"]) > count + 1)
    assert guest.read("attr/PVAddons/Installed") == "1"


def test_goes_on_as_another_domain(host: Host, guest: DemoGuest) -> None:
    """After a save, the end of the old domain, and a restore; more than once."""
    look = tidy(host)
    uptime, count = int(guest.run("info")["uptime-ms"]), int(guest.run("counter")["counter"])
    before = look()
    for resumes in (1, 2):
        suspend(guest)
        image, old = image_of(guest), guest.domain.domid
        if resumes == 1:
            guest.toolstack.destroy(guest.config.uuid)
        else:
            leave(host, guest.domain)
        guest = restored(host, image)
        assert guest.domain.domid != old and "suspended: resumed" in guest.output()
        is_well(guest, resumes)
    assert int(guest.run("counter")["counter"]) > count
    assert uptime < int(guest.run("info")["uptime-ms"]) < uptime + 20_000
    assert look()[:2] == before[:2]
    guest.write("control/shutdown", "poweroff")
    assert guest.ended() is Reason.POWEROFF


def test_goes_on_in_another_process_much_later(guest: DemoGuest, tmp_path: Path) -> None:
    """The image is all that a restore needs; the wall clock is that of the time, system time goes on."""
    uptime, at = int(guest.run("info")["uptime-ms"]), int(guest.run("info")["time-s"])
    suspend(guest)
    path = tmp_path / "image"
    path.write_bytes(image_of(guest))
    command = [sys.executable, "-m", "tests.guests.go_on", str(path), "demo", "86400", "touched", "info", "counter"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    domid, touched, info, counter = (json.loads(line) for line in said)
    assert touched == {"touched-kib": "1024", "bad-frames": "0"}
    assert (info["resumes"], info["domid"]) == ("1", str(domid)) and domid != guest.domain.domid
    assert uptime <= int(info["uptime-ms"]) < uptime + 20_000
    assert 86400 <= int(info["time-s"]) - at < 86400 + 60
    assert "counter" in counter


def test_a_checkpoint_leaves_the_guest_where_it_was(host: Host, guest: DemoGuest) -> None:
    """It is told that its suspend was cancelled; the image is as good as any."""
    suspend(guest)
    image = image_of(guest)
    resume.cancel(host, guest.domain)
    assert "suspended: cancelled" in guest.finish()
    is_well(guest, 0)
    is_well(restored(host, image), 1)
    is_well(guest, 0)


def test_a_guest_resumes_in_place_as_if_in_a_new_domain(host: Host, guest: DemoGuest, threads: DiskThreads) -> None:
    """For guests that know no cancelled suspend: ports, rings and devices are connected anew, in the same domain."""
    disk = AnonymousDisk(MIB)
    backend = guest.plug_disk(disk, threads)
    guest.run("write xvda 0 65536 5")
    suspend(guest)
    image = image_of(guest)
    backend.restart()
    guest.wait_for(lambda: backend.state.value == 2)
    resume.renew(host, guest.domain)
    again = ResumedDemo(host, guest.domain).go_on()
    is_well(again, 1)
    assert again.run("verify xvda 0 65536 5")["verify"] == "ok"
    is_well(restored(host, image), 1)


def test_frames_given_to_the_host_stay_given(host: Host, guest: DemoGuest) -> None:
    """The restored domain holds as little, and may take them back."""
    guest.write("memory/target", "5000")
    guest.wait_for(lambda: guest.run("mem")["held-kib"] == "5000")
    suspend(guest)
    image = image_of(guest)
    guest.toolstack.destroy(guest.config.uuid)
    other = ResumedDemo(host, Image(io.BytesIO(image)).build(host))
    assert held(other.domain) == 5000
    other.go_on()
    assert other.run("mem")["held-kib"] == "5000"
    other.write("memory/target", "8192")
    other.wait_for(lambda: other.run("mem")["held-kib"] == "8192")
    assert held(other.domain) == 8192
    is_well(other, 1)


def test_only_a_suspended_guest_is_saved(guest: DemoGuest) -> None:
    """One that runs goes on running."""
    with pytest.raises(NotSuspended):
        image_of(guest)
    is_well(guest, 0)


def test_a_damaged_image_leaves_nothing(host: Host, guest: DemoGuest) -> None:
    """No domain, no memory, no home in xenstore."""
    suspend(guest)
    image, look = bytearray(image_of(guest)), tidy(host)
    image[-20] ^= 1
    before = look()
    for damaged in (bytes(image), bytes(image[:-1])):
        with pytest.raises(ImageError):
            restored(host, damaged)
    assert look() == before


# Live


@pytest.mark.parametrize("tracker", [ProtectingTracker, ComparingTracker])
def test_a_running_guest_is_copied(
    host: Host, guest: DemoGuest, tracker: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it writes, gives memory away and takes it back; the stop has little left to do."""
    monkeypatch.setattr(live, "track", tracker)
    file = io.BytesIO()
    with live.LiveCopy(host, guest.domain, file, b"config") as copy:
        first = copy.round()
        guest.run("touch 2")
        guest.write("memory/target", "6000")
        guest.wait_for(lambda: guest.run("mem")["held-kib"] == "6000")
        assert copy.round().frames > 0
        guest.write("memory/target", "8192")
        guest.wait_for(lambda: guest.run("mem")["held-kib"] == "8192")
        guest.run("touch 1")
        copy.round()
        idle = copy.round()
        with pytest.raises(NotSuspended):
            copy.finish()
        suspend(guest)
        copy.finish()
    assert idle.frames < first.frames / 4
    file.seek(0)
    domain = Image(file).build(host)
    rings = {domain.params[1], domain.params[17]}
    for frame in range(domain.ranges[-1][1] // PAGE):
        if frame not in rings:
            assert domain.memory.read(frame * PAGE, PAGE) == guest.domain.memory.read(frame * PAGE, PAGE), frame
    is_well(ResumedDemo(host, domain).go_on(), 1)
    resume.cancel(host, guest.domain)
    guest.finish()
    is_well(guest, 0)


def test_a_copy_given_up_leaves_no_trace(host: Host, guest: DemoGuest) -> None:
    """What was written is refused, and another copy can begin."""
    file = io.BytesIO()
    with live.LiveCopy(host, guest.domain, file) as copy:
        copy.rounds()
        with pytest.raises(ValueError, match="already"):
            live.LiveCopy(host, guest.domain, io.BytesIO())
    file.seek(0)
    with pytest.raises(ImageError):
        Image(file).build(host)
    with live.LiveCopy(host, guest.domain, io.BytesIO()) as copy:
        assert copy.rounds(3) <= 3
    is_well(guest, 0)


@pytest.mark.parametrize("guest", ["pvh"], indirect=True)
def test_rounds_end_when_the_guest_writes_faster(host: Host, guest: DemoGuest) -> None:
    """By a clock on which each round takes a second, they stop when one is hardly smaller than the last."""
    now = iter(range(0, 10**12, 10**9))
    with live.LiveCopy(host, guest.domain, io.BytesIO(), clock=lambda: next(now)) as copy:
        guest.start("spin 2")
        assert copy.rounds(50, downtime=0.5) < 50
        assert all(round.duration == 10**9 for round in copy.done)
        guest.finish()


# Clones


def test_clones_go_on_by_themselves(host: Host, guest: DemoGuest) -> None:
    """Five of one guest, and the guest itself: each has its own memory from here on."""
    suspend(guest)
    with Template(host, guest.domain) as template:
        clones = [ResumedDemo(host, template.clone(host)) for _ in range(5)]
    resume.cancel(host, guest.domain)
    guest.finish()
    for clone in clones:
        clone.go_on()
    for clone in clones[:2]:
        assert clone.run("touch 3")["touched-kib"] == "3072"
    guest.run("touch 2")
    for clone in clones[2:]:
        is_well(clone, 1)
    assert clones[0].run("touched")["bad-frames"] == guest.run("touched")["bad-frames"] == "0"
    assert len({clone.run("info")["domid"] for clone in clones} | {guest.run("info")["domid"]}) == 6


def test_a_clone_is_cloned_saved_and_copied(host: Host, guest: DemoGuest) -> None:
    """What it shares and what it wrote, alike; when its origins are long gone."""
    suspend(guest)
    with Template(host, guest.domain) as template:
        clone = ResumedDemo(host, template.clone(host)).go_on()
    guest.toolstack.destroy(guest.config.uuid)
    clone.run("touch 2")
    clone.run("touch 1")
    copied = io.BytesIO()
    with live.LiveCopy(host, clone.domain, copied) as copy:
        copy.rounds()
        suspend(clone)
        copy.finish()
    image = image_of(clone)
    with Template(host, clone.domain) as template:
        second = ResumedDemo(host, template.clone(host))
    leave(host, clone.domain)
    is_well(second.go_on(), 2)
    is_well(restored(host, image), 2)
    is_well(restored(host, copied.getvalue()), 2)


def test_a_clone_gives_memory_away_and_takes_it_back(host: Host) -> None:
    """Frames of the frozen file cannot go, but the clone does not see them any more."""
    guest = DemoGuest(host, 32 * MIB).boot()
    guest.run("touch 20")
    guest.run("touch 1")
    suspend(guest)
    with Template(host, guest.domain) as template:
        clone = ResumedDemo(host, template.clone(host)).go_on()
    for target in (9000, 32768):
        clone.write("memory/target", str(target))
        clone.wait_for(lambda: clone.run("mem")["held-kib"] == str(target))  # noqa: B023
    assert clone.run("touch 25")["touched-kib"] == "25600"
    assert clone.run("touched")["bad-frames"] == "0"
    resume.cancel(host, guest.domain)
    guest.finish()
    assert guest.run("touched")["bad-frames"] == "0"


def own_memory(domains: list[Domain]) -> int:
    """Return bytes of the process that are the domains' own copies of pages."""
    total = 0
    wanted = {domain.memory.address for domain in domains}
    counting = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0] in "0123456789abcdef":
            counting = int(line.partition("-")[0], 16) in wanted
        elif counting and line.startswith("Private_Dirty:"):
            total += int(line.split()[1]) * 1024
    return total


def test_clones_are_made_in_milliseconds_and_cost_what_they_write(host: Host, guest: DemoGuest) -> None:
    """Twenty of them, on a loaded machine; each has less than a MiB of memory of its own when it has its prompt."""
    suspend(guest)
    with Template(host, guest.domain) as template:
        began = time.perf_counter()
        domains = [template.clone(host) for _ in range(20)]
        took = time.perf_counter() - began
    clones = [ResumedDemo(host, domain).go_on() for domain in domains]
    assert took / 20 < 0.1
    assert own_memory(domains) / 20 < MIB
    assert all(clone.domain.life.state is State.RUNNING for clone in clones)


def test_a_suspended_guest_keeps_its_home_until_it_is_destroyed(host: Host, guest: DemoGuest) -> None:
    """Joining a restored domain does not touch the old one's."""
    suspend(guest)
    other = join(host, Image(io.BytesIO(image_of(guest))).build(host))
    with host.lock:
        assert host.xenstore.exists(other.path) and host.xenstore.exists(guest.guest.path)
    leave(host, other.domain)
    with host.lock:
        assert not host.xenstore.exists(other.path) and host.xenstore.exists(guest.guest.path)
