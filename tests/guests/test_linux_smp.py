"""Debian's unmodified kernel with several vCPUs, which it starts by INIT and startup IPIs: busy, unplugged, saved."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hypervisor.api import Change
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.conftest import Linux
from tests.guests.resumed import leave
from tests.guests.test_linux_suspend import Suspendable

SPIN = "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); done"
WORRIES = "dmesg | grep -E -c 'BUG|Oops|WARNING|rcu.*stall|soft lockup|hung task|Spurious' || true"
STRESS = """
before() { [ $(cut -d. -f1 /proc/uptime) -lt $end ]; }
end=$(($(cut -d. -f1 /proc/uptime)+8))
( while before; do seq 1 300 | sort -rn | head -1; done | sort -u >/tmp/sorted ) &
( while before; do for n in 1 2 3 4 5 6; do /bin/true & done; wait; done ) &
( while before; do gzip -1 </bin/busybox | gunzip | cmp - /bin/busybox; done >/tmp/differs 2>&1 ) &
( while before; do rmmod xen_netfront; insmod /modules/01-xen-netfront.ko; done 2>/tmp/modules ) &
( n=0; while before; do usleep 2000; n=$((n+1)); done; echo $n >/tmp/sleeps ) &
wait
cat /tmp/sorted /tmp/differs /tmp/modules; [ $(cat /tmp/sleeps) -gt 10 ]
"""
"""Pipes, processes, compressed data, modules (code that one vCPU writes and all run), timers: on all vCPUs at once."""


@pytest.fixture(scope="module")
def two(make_linux: Callable[..., Linux]) -> Linux:
    """A guest with two vCPUs."""
    return make_linux(vcpus=2).boot()


@pytest.fixture(scope="module")
def four(make_linux: Callable[..., Linux]) -> Linux:
    """A guest with four."""
    return make_linux(vcpus=4).boot()


def handled(linux: Linux, name: str) -> list[int]:
    """Return how many interrupts of a kind each vCPU has had."""
    return [int(word) for word in linux.run(f"grep {name} /proc/interrupts").split() if word.isdigit()]


def test_all_vcpus_are_online(two: Linux, four: Linux, toolstack: Toolstack) -> None:
    """In the guest, which has them as cores of one socket, and in what the toolstack tells."""
    for linux, count in ((two, 2), (four, 4)):
        assert linux.run("nproc") == str(count)
        cores = linux.run("cat /sys/devices/system/cpu/cpu*/topology/core_id").split()
        assert len(set(cores)) == count and linux.run("grep -c 'siblings.*: '$(nproc) /proc/cpuinfo") == str(count)
        state = toolstack.state(linux.uuid).state
        assert state is not None and state.vcpus == len(state.cpu_time) == count


def test_linux_knows_that_nothing_is_speculated(two: Linux) -> None:
    """So that it takes no measures, none of which is free: it finds the CPU in no way vulnerable."""
    assert two.run("grep -L 'Not affected' /sys/devices/system/cpu/vulnerabilities/* || true") == ""


def test_a_task_runs_where_it_is_pinned(four: Linux) -> None:
    """Field 39 of its stat is the CPU."""
    for number in range(4):
        assert four.run(f"taskset -c {number} cut -d' ' -f39 /proc/self/stat") == str(number)


def test_busy_loops_share_the_thread(two: Linux, toolstack: Toolstack) -> None:
    """One on each vCPU: both get the same time, and what one has the other calls stolen."""
    domain = two.domain
    before = [domain.time.runstate_times(number) for number in (0, 1)]
    stolen = int(two.run("grep '^cpu ' /proc/stat").split()[8])
    two.run(f"taskset -c 0 sh -c '{SPIN}' & taskset -c 1 sh -c '{SPIN}' & wait")
    after = [domain.time.runstate_times(number) for number in (0, 1)]
    ran, waited = ([b[at] - a[at] for a, b in zip(before, after)] for at in (0, 1))
    assert min(ran) > 0.6 * max(ran), (ran, waited)
    assert min(waited) > 0.5 * min(ran), (ran, waited)
    assert int(two.run("grep '^cpu ' /proc/stat").split()[8]) > stolen


def test_work_on_all_vcpus_at_once(four: Linux) -> None:
    """Nothing is computed wrong, no wake-up is lost, and the kernel has nothing to complain of."""
    before = handled(four, "CAL:")
    assert four.run(STRESS).split() == ["300"]
    assert all(now > then for then, now in zip(before, handled(four, "CAL:")))
    assert four.run(WORRIES) == "0"


def test_a_vcpu_goes_and_comes_back(two: Linux, toolstack: Toolstack) -> None:
    """By the guest's own choice, or since it is asked to; the toolstack sees it."""

    def online() -> int:
        state = toolstack.state(two.uuid).state
        assert state is not None
        return state.vcpus

    two.run("echo 0 >/sys/devices/system/cpu/cpu1/online")
    assert (two.run("nproc"), online()) == ("1", 1)
    two.run("echo 1 >/sys/devices/system/cpu/cpu1/online")
    assert (two.run("nproc"), online()) == ("2", 2)
    directory = "/sys/devices/system/cpu/cpu1"
    for then, count in (("true", 1), (f"echo 1 >{directory}/online", 2)):
        toolstack.adjust(two.uuid, Change(vcpus=count), lambda: None)
        two.wait_for(f"[ {'!' if count == 1 else ''} -e {directory}/online ]")
        two.run(then)  # as udev does, when the kernel says that there is another CPU
        assert (two.run("nproc"), online()) == (str(count), count)
    assert two.run(WORRIES) == "0"


def test_goes_on_with_both_vcpus_as_another_domain(two: Linux) -> None:
    """Saved and restored: the counter, the vCPUs and their interrupts go on, while both are busy."""
    guest = Suspendable(two)
    two.run(f"( while :; do {SPIN}; done ) & ( while :; do {SPIN}; done ) &")
    before = guest.count()
    guest.suspend()
    guest.restore(guest.image())
    assert guest.count() > before and two.run("nproc") == "2"
    for number in (0, 1):
        assert two.run(f"taskset -c {number} sh -c 'usleep 5000; cut -d\" \" -f39 /proc/self/stat'") == str(number)
    assert [vcpu.up for vcpu in guest.domain.vcpus] == [True, True]
    assert two.run(WORRIES) == "0"
    leave(guest.host, guest.domain)
