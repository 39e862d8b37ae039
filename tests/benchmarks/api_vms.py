"""VMs through the API over HTTP: the lives of many, starts beside many, drives plugged, and who waits meanwhile.

The daemon is a process of its own; so are the clients. VMs are cloned from the template "Demo guest", and a VM
counts as booted when its guest has told its metrics.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from tests.benchmarks.figures import Figure, median, ms, quantile, times
from tests.benchmarks.machine import SECONDS, Machine, demo_config
from tests.benchmarks.processes import Daemon, run
from tests.benchmarks.stage import Stage, say
from tests.benchmarks.wire import request

MANY = 512
RUNNING = 500
IDLE = 100
CLIENTS = 8
STARTS = 30
DRIVES = 64
SMALL_SECONDS = 6.0
TEMPLATE = "Demo guest"
PHASES = ("clone", "start", "boot", "pause", "hard_shutdown", "destroy")


class Pool:
    """A daemon, a session, and VMs by their references."""

    def __init__(self, stage: Stage) -> None:
        daemon = Daemon(stage.directory / "api-vms")
        stage.enter(daemon)
        self.daemon = daemon
        self.connection, self.session = daemon.login()
        self.template: str = self.call("VM.get_by_name_label", TEMPLATE)[0]
        self._made = 0

    def call(self, method: str, *params: Any) -> Any:
        """Call a message."""
        return self.connection.call(method, self.session, *params)

    def do(self, method: str, *each: tuple[Any, ...], clients: int = 1) -> dict[str, Any]:
        """Have a client process do one call for each set of parameters."""
        calls = [[method, self.session, *params] for params in each]
        given = {"port": self.daemon.port, "clients": clients, "calls": calls}
        found: dict[str, Any] = run("tests.benchmarks.vm_client", given=given)
        return found

    def clone(self, count: int, clients: int = 1) -> dict[str, Any]:
        """Make VMs that can start."""
        first, self._made = self._made, self._made + count
        found = self.do("VM.clone", *((self.template, f"vm-{first + n}") for n in range(count)), clients=clients)
        provisioned = self.do("VM.provision", *((vm,) for vm in found["values"]), clients=clients)
        found["seconds"] += provisioned["seconds"]
        return found

    def start(self, vms: list[str], clients: int = 1) -> dict[str, Any]:
        """Start VMs."""
        return self.do("VM.start", *((vm, False, False) for vm in vms), clients=clients)

    def each(self, message: str, vms: list[str], clients: int = 1) -> dict[str, Any]:
        """Call a message that takes nothing but a VM."""
        return self.do(f"VM.{message}", *((vm,) for vm in vms), clients=clients)

    def booted(self, count: int) -> float:
        """Wait until so many guests have told their metrics; return for how long."""
        begun = time.perf_counter()
        while sum(bool(each["PV_drivers_version"]) for each in self._metrics()) < count:
            if time.perf_counter() - begun > SECONDS:
                raise TimeoutError(f"not all of {count} guests have booted")
            time.sleep(0.1)
        return time.perf_counter() - begun

    def _metrics(self) -> list[dict[str, Any]]:
        return list(self.call("VM_guest_metrics.get_all_records").values())

    def end(self, vms: list[str]) -> None:
        """Shut VMs down and destroy them."""
        self.each("hard_shutdown", vms, CLIENTS)
        self.each("destroy", vms, CLIENTS)

    def type(self, vm: str, text: bytes) -> None:
        """Type into a VM's console, once it has said something."""
        consoles = [self.call("console.get_record", ref) for ref in self.call("VM.get_consoles", vm)]
        uuid = next(console["uuid"] for console in consoles if console["protocol"] == "vt100")
        with socket.create_connection(("127.0.0.1", self.daemon.port), SECONDS) as connection:
            connection.sendall(f"CONNECT /console?uuid={uuid}&session_id={self.session} HTTP/1.0\r\n\r\n".encode())
            heard = b""
            while b"demo> " not in heard:
                part = connection.recv(65536)
                if not part:
                    raise ConnectionError(f"no console: {heard!r}")
                heard += part
            connection.sendall(text)
            while text.strip() not in heard:
                heard += connection.recv(65536)

    def small(self) -> list[float]:
        """Return the latencies of a small call over one connection."""
        small = request("VM.get_power_state", self.session, self.template).decode("latin-1")
        given = {"port": self.daemon.port, "requests": [small], "connections": 1, "seconds": SMALL_SECONDS}
        found: list[float] = run("tests.benchmarks.load", "calls", given=given)["latencies"]
        return found


def benchmark(stage: Stage) -> list[Figure]:
    """Measure all of it on one daemon."""
    pool = Pool(stage)
    say("VM.start through the API")
    limit = _toolstack_start()
    figures = [_starts(pool, 0, limit)]
    for clients in (1, CLIENTS):
        say(f"the lives of {MANY} VMs, {clients} clients")
        figures += _lives(pool, clients)
    figures += _small_calls(pool)
    figures += _beside_many(pool, limit)
    pool.daemon.stop()
    return figures


def _toolstack_start() -> float:
    """Return the median seconds of building a demo guest and letting it run, without the API."""
    taken = []
    with Machine() as machine:
        for _ in range(STARTS):
            begun = time.perf_counter()
            terminal = machine.build(demo_config(16 << 20))
            machine.unpause(terminal)
            taken.append(time.perf_counter() - begun)
            machine.destroy(terminal)
    return median(taken)


def _starts(pool: Pool, running: int, limit: float) -> Figure:
    """Time some starts, one after the other."""
    vms = pool.clone(STARTS)["values"]
    taken = []
    for vm in vms:
        taken += pool.start([vm])["taken"]
        pool.each("hard_shutdown", [vm])
    pool.each("destroy", vms)
    p50 = median(taken)
    return Figure(f"VM.start with {running} running: p50 (p90 {ms(quantile(taken, 0.9))}); "
                  "limit: Toolstack.build and unpause", ms(p50), ms(limit), times(p50 / limit))  # fmt: skip


def _lives(pool: Pool, clients: int) -> list[Figure]:
    """Time many VMs through their lives, phase after phase."""
    pool.daemon.turns()
    cpu = pool.daemon.cpu
    seconds = {}
    made = pool.clone(MANY, clients)
    vms, seconds["clone"] = made["values"], made["seconds"]
    seconds["start"] = pool.start(vms, clients)["seconds"]
    seconds["boot"] = pool.booted(MANY)
    memory = pool.daemon.memory()
    for phase in PHASES[3:]:
        seconds[phase] = pool.each(phase, vms, clients)["seconds"]
    cpu, total = pool.daemon.cpu - cpu, sum(seconds.values())
    turns = pool.daemon.turns()
    parts = ", ".join(f"{phase} {seconds[phase]:.1f}" for phase in PHASES)
    who = "1 client" if clients == 1 else f"{clients} clients"
    return [
        Figure(f"{MANY} demo guests through the API, {who}: {parts} s ({cpu:.1f} s of the daemon's CPU, "
               f"{memory / 1e6:,.0f} MB)", f"{total:.1f} s", goal="<= 60 s", judged=total),
        Figure(f"longest reactor turn meanwhile, {who} ({turns['long']} of {turns['count']:,} over 10 ms; "
               f"most CPU {ms(turns['longest_cpu'])})", ms(turns["longest"])),
    ]  # fmt: skip


def _small_calls(pool: Pool) -> list[Figure]:
    """Time a small call alone, beside two guests that compute, and beside many that do nothing."""
    say("small calls beside guests")
    alone = pool.small()
    vms = pool.clone(2)["values"]
    pool.start(vms)
    pool.booted(2)
    for vm in vms:
        pool.type(vm, b"spin 600\r")
    cpu = pool.daemon.cpu
    spinning = pool.small()
    if pool.daemon.cpu - cpu < SMALL_SECONDS / 4:
        raise RuntimeError("the guests do not spin")
    pool.end(vms)
    vms = pool.clone(IDLE, CLIENTS)["values"]
    pool.start(vms, CLIENTS)
    pool.booted(IDLE)
    time.sleep(1)
    idle = pool.small()
    pool.end(vms)
    return [
        Figure(f"VM.get_power_state beside {name}: p50 {ms(quantile(found, 0.5))}, max {ms(max(found))}; p99",
               ms(quantile(found, 0.99)), ms(quantile(alone, 0.99)), goal="<= 20 ms",
               judged=quantile(found, 0.99) * 1000, note="The limit is the same call with no guest running.")
        for name, found in (("two guests that spin", spinning), (f"{IDLE} idle guests", idle))
    ]  # fmt: skip


def _beside_many(pool: Pool, limit: float) -> list[Figure]:
    """Start VMs and plug drives while many run."""
    say(f"starts and plugs beside {RUNNING} running VMs")
    vms = pool.clone(RUNNING, CLIENTS)["values"]
    pool.start(vms, CLIENTS)
    pool.booted(RUNNING)
    figures = [_starts(pool, RUNNING, limit), *_plugs(pool, vms)]
    pool.end(vms)
    return figures


def _plugs(pool: Pool, vms: list[str]) -> list[Figure]:
    """Plug a drive into each of some guests and take it out again; the guests' drivers take part."""
    srs = pool.call("SR.get_all_records")
    storage = next(ref for ref, record in srs.items() if record["type"] == "ext")
    described: dict[str, Any] = {
        "name_label": "disk",
        "name_description": "",
        "SR": storage,
        "virtual_size": str(8 << 20),
    }
    described |= {"type": "user", "sharable": False, "read_only": False, "other_config": {}, "sm_config": {}}
    disks = pool.do("VDI.create", *((described,) for _ in range(DRIVES)), clients=CLIENTS)
    drives = [{"VM": vm, "VDI": vdi, "userdevice": "autodetect", "empty": False, "bootable": False, "type": "Disk",
               "mode": "RW", "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
              for vm, vdi in zip(vms, disks["values"])]  # fmt: skip
    vbds = pool.do("VBD.create", *((drive,) for drive in drives), clients=CLIENTS)["values"]
    rate = DRIVES / disks["seconds"]
    figures = [Figure(f"VDI.create a second, {CLIENTS} clients (VHD files)", f"{rate:,.0f}")]
    for clients in (1, CLIENTS):
        for message in ("plug", "unplug"):
            found = pool.do(f"VBD.{message}", *((vbd,) for vbd in vbds), clients=clients)
            p50 = ms(median(found["taken"]))
            who = "1 client" if clients == 1 else f"{clients} clients"
            figures.append(Figure(f"VBD.{message} a second, {who}, {len(vms)} VMs running (p50 {p50})",
                                  f"{DRIVES / found['seconds']:,.0f}"))  # fmt: skip
    pool.do("VBD.destroy", *((vbd,) for vbd in vbds), clients=CLIENTS)
    pool.do("VDI.destroy", *((vdi,) for vdi in disks["values"]), clients=CLIENTS)
    return figures
