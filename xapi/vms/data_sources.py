"""What is measured of VMs and hosts, under the names, units and limits of xapi's data sources.

A rate needs two looks at a domain: it is nan until the second, and again after the domain is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hypervisor.api import NIC, DeviceState, disk_name
from xapi.datamodel.lexical import parse_number

if TYPE_CHECKING:
    from hypervisor.api import DomainState

MIB = 2**20


class Source(NamedTuple):
    """One thing measured. `standard` ones are recorded unless somebody says otherwise."""

    name: str
    description: str
    units: str
    value: float
    minimum: float = 0.0
    maximum: float = math.inf
    standard: bool = True

    def record(self, *, enabled: bool) -> dict[str, object]:
        """Return it as the API tells it, which leaves the value to query_data_source."""
        return {
            "name_label": self.name,
            "name_description": self.description,
            "enabled": enabled,
            "standard": self.standard,
            "units": self.units,
            "min": self.minimum,
            "max": self.maximum,
            "value": 0.0,
        }


class Look(NamedTuple):
    """What was true of a domain, and when, in seconds of the injected clock."""

    seconds: float
    state: DomainState


Rate = Callable[[float, float], float]


def rate(before: Look | None, now: Look) -> Rate:
    """Return what makes rates a second of two readings, the older first."""
    passed = 0.0 if before is None else now.seconds - before.seconds
    if before is None or passed <= 0 or before.state.domid != now.state.domid:
        return lambda older, newer: math.nan
    return lambda older, newer: max(0.0, (newer - older) / passed)


def shares(before: Look | None, now: Look) -> list[float]:
    """Return the share of a core that each vCPU has used since the last look; 0 while there is no other."""
    per_second = rate(before, now)
    older = now.state.cpu_time if before is None else before.state.cpu_time
    found = [per_second(a, b) for a, b in zip(older, now.state.cpu_time, strict=False)]
    return [0.0 if math.isnan(share) else min(1.0, share) for share in found]


def of_domain(before: Look | None, now: Look) -> Iterator[Source]:
    """Measure a domain."""
    per_second = rate(before, now)
    state = now.state
    old = state if before is None else before.state

    def fraction(older: float, newer: float) -> float:
        share = per_second(older, newer)
        return share if math.isnan(share) else min(1.0, share)

    for number, newer in enumerate(state.cpu_time):
        older = old.cpu_time[number] if number < len(old.cpu_time) else newer
        yield Source(f"cpu{number}", f"CPU{number} usage", "(fraction)", fraction(older, newer), maximum=1.0)
    online = max(1, state.vcpus)
    used = fraction(sum(old.cpu_time) / online, sum(state.cpu_time) / online)
    yield Source("cpu_usage", "Domain CPU usage", "(fraction)", used, maximum=1.0)
    if state.vcpus == 1:
        yield from _run_states(fraction, old.run_times, state.run_times, len(state.cpu_time))
    yield from _memory(state)
    known = {(type(each.device), each.device.number): each.counters for each in old.devices}
    for each in state.devices:
        counters = known.get((type(each.device), each.device.number), each.counters)
        yield from (_card if isinstance(each.device, NIC) else _drive)(per_second, counters, each)


def _memory(state: DomainState) -> Iterator[Source]:
    yield Source("memory", "Memory currently allocated to VM", "B", state.memory_actual)
    yield Source("memory_target", "Target of VM balloon driver", "B", state.memory_target)
    free = parse_number(state.guest.get("data/meminfo_free", ""))
    if free is not None:
        text = "Memory used as reported by the guest agent"
        yield Source("memory_internal_free", text, "KiB", free)


_RUN_STATES = {
    "runstate_fullrun": ("Fraction of time that all vCPUs are running", ("running",)),
    "runstate_full_contention": ("Fraction of time that all vCPUs are runnable (i.e., waiting for CPU)", ("runnable",)),
    "runstate_blocked": ("Fraction of time that all vCPUs are blocked or offline", ("blocked",)),
    "runnable_any": ("Fraction of time that at least one vCPU is runnable in the domain", ("runnable",)),
    "runnable_vcpus": ("Fraction of time that vCPUs of the domain are runnable", ("runnable",)),
}
"""What can be said of them for a domain with a single vCPU online."""


def _run_states(fraction: Rate, old: Mapping[str, float], new: Mapping[str, float], vcpus: int) -> Iterator[Source]:
    """Measure the one vCPU that is online by averages over so many."""
    for name, (description, parts) in _RUN_STATES.items():
        older, newer = (vcpus * sum(times.get(part, 0.0) for part in parts) for times in (old, new))
        yield Source(name, description, "(fraction)", fraction(older, newer), maximum=1.0, standard=False)


def _drive(per_second: Rate, old: Mapping[str, int], now: DeviceState) -> Iterator[Source]:
    device = disk_name(now.device.number)
    since = {key: per_second(old.get(key, 0), value) for key, value in now.counters.items()}
    done = {key: value - old.get(key, 0) for key, value in now.counters.items()}
    read, written = since.get("read_bytes", math.nan), since.get("written_bytes", math.nan)
    reads, writes = since.get("reads", math.nan), since.get("writes", math.nan)
    waited = since.get("wait_ns", math.nan) / 1e9
    requests = done.get("reads", 0) + done.get("writes", 0)
    latency = done.get("wait_ns", 0) / requests / 1e3 if requests else 0.0
    for name, description, units, value in (
        ("read", f"Reads from device {device}, in B/s", "B/s", read),
        ("write", f"Writes from device {device}, in B/s", "B/s", written),
        ("io_throughput_read", f"Data read from the {device}, in MiB/s", "MiB/s", read / MIB),
        ("io_throughput_write", f"Data written to the {device}, in MiB/s", "MiB/s", written / MIB),
        ("io_throughput_total", f"All {device} I/O, in MiB/s", "MiB/s", (read + written) / MIB),
        ("iops_read", "Read requests per second", "requests/s", reads),
        ("iops_write", "Write requests per second", "requests/s", writes),
        ("iops_total", "I/O Requests per second", "requests/s", reads + writes),
        ("iowait", "Total I/O wait time (all requests) per second", "s/s", waited),
        ("inflight", "Number of I/O requests currently in flight", "requests", now.counters.get("in_flight", 0)),
        ("latency", "Average I/O latency", "us", latency),
        ("avgqu_sz", "Average I/O queue size", "requests", waited),
    ):
        yield Source(f"vbd_{device}_{name}", description, units, value)


def _card(per_second: Rate, old: Mapping[str, int], now: DeviceState) -> Iterator[Source]:
    number = now.device.number
    for end, verb, noun in (("rx", "received", "Receive"), ("tx", "transmitted", "Transmit")):
        bytes_, failed = (
            per_second(old.get(f"{end}_{what}", 0), now.counters.get(f"{end}_{what}", 0))
            for what in ("bytes", "errors")
        )
        where = f"on virtual interface number '{number}'"
        yield Source(f"vif_{number}_{end}", f"Bytes per second {verb} {where}", "B/s", bytes_)
        text = f"{noun} errors per second {where}"
        yield Source(f"vif_{number}_{end}_errors", text, "err/s", failed, standard=False)


def of_host(total: int, free: int, domains: int, busy: float, load: float) -> Iterator[Source]:
    """Measure a host: bytes of memory, domains that run, share of its processors, load of its control domain."""
    yield Source("memory_total_kib", "Total amount of memory in the host", "KiB", total // 1024)
    yield Source("memory_free_kib", "Total amount of free memory", "KiB", free // 1024)
    yield Source("cpu_avg", "Average physical cpu usage", "(fraction)", busy, maximum=1.0)
    yield Source("running_domains", "The total number of running domains per host", "count", domains)
    yield Source("loadavg", "Domain0 loadavg", "(fraction)", load, minimum=-math.inf)
