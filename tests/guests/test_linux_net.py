"""The network device against Linux's own driver, xen-netfront, in Debian's unmodified kernel."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from hypervisor.host import Host
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import EVERY_OFFLOAD, PLAIN, Frame, Offloads
from hypervisor.network.packets import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP
from hypervisor.network.port import Port
from hypervisor.network.services import AddressService
from hypervisor.network.switch import Switch
from hypervisor.network.tcp_connection import Connection
from hypervisor.network.ticker import Ticker
from hypervisor.split.net import NetConfig, NetDevice
from hypervisor.split.xenbus import Backend
from hypervisor.toolstack.toolstack import Toolstack
from tests.unit.net_front import is_whole

MIB = 1 << 20
SECONDS = 30
SIZE = 4 * MIB
STATION = IPv4Address("169.254.0.9")
PATTERN = random.Random(1).randbytes(SIZE)


def is_tcp(frame: Frame) -> bool:
    return frame.data[12:14] == ETHERTYPE_IPV4 and frame.data[23] == PROTOCOL_TCP


class Net:
    """A network with an address service; it notes what comes into its switch, by the port."""

    def __init__(self, host: Host, ticker: Ticker) -> None:
        self.host = host
        self.ticker = ticker
        self.switch = Switch(time.monotonic_ns)
        self.service = AddressService(self.switch, time.monotonic_ns)
        self.crossed: list[tuple[Port, Frame]] = []
        ingress = self.switch.ingress

        def note(port: Port, frame: Frame) -> bool:
            self.crossed.append((port, frame))
            return ingress(port, frame)

        self.switch.ingress = note  # type: ignore[method-assign]
        for part in (self.switch, self.service):
            ticker.add(part)

    def station(self, offloads: Offloads = EVERY_OFFLOAD, mtu: int = 1500) -> Station:
        made = Station(self, offloads, mtu)
        self.ticker.add(made.endpoint)
        return made

    def close(self) -> None:
        with self.host.lock:
            self.service.close()
        for part in (self.switch, self.service):
            self.ticker.remove(part)


class Station:
    """A host on the network that is no guest. It notes the frames that it gets."""

    def __init__(self, net: Net, offloads: Offloads, mtu: int) -> None:
        self.net = net
        self.got: list[Frame] = []
        interface = IPv4Interface(f"{STATION}/16")
        with net.host.lock:
            self.endpoint = Endpoint(
                net.switch, time.monotonic_ns, b"\x02\0\0\0\0\x09", interface, offloads=offloads, mtu=mtu
            )
            receive = self.endpoint.port.receive

            def note(frame: Frame) -> bool:
                self.got.append(frame)
                return receive(frame)

            self.endpoint.port.receive = note

    def serve(self, data: bytes, port: int = 80) -> None:
        """Answer every connection by HTTP with the same."""

        def accepted(connection: Connection) -> None:
            left = [memoryview(b"HTTP/1.0 200 OK\r\n\r\n" + data)]

            def more() -> None:
                left[0] = left[0][connection.send(bytes(left[0])) :]
                if not left[0]:
                    connection.close()

            def begin(_: bytes) -> None:
                connection.writable = more
                connection.received = lambda _: None
                more()

            connection.received = begin

        with self.net.host.lock:
            self.endpoint.tcp.listen(port, accepted)

    def fetch(self, address: str, path: str) -> bytes:
        """Return what a guest's server answers by HTTP."""
        got, ended = bytearray(), threading.Event()

        def prepare(connection: Connection) -> None:
            def opened() -> None:
                connection.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())

            def no_more() -> None:
                connection.close()
                ended.set()

            connection.opened = opened
            connection.received = got.extend
            connection.ended = no_more
            connection.closed = lambda _: ended.set()

        with self.net.host.lock:
            self.endpoint.tcp.connect(IPv4Address(address).packed, 80, prepare)
        assert ended.wait(SECONDS)
        return bytes(got.partition(b"\r\n\r\n")[2])

    def ping(self, address: str, size: int = 56) -> bool:
        """Tell whether a guest answers an echo."""
        answered: list[int | None] = []
        came = threading.Event()

        def answer(taken: int | None) -> None:
            answered.append(taken)
            came.set()

        with self.net.host.lock:
            self.endpoint.ping(IPv4Address(address), answer, size)
        assert came.wait(SECONDS)
        return answered != [None]

    def close(self) -> None:
        self.net.ticker.remove(self.endpoint)
        with self.net.host.lock:
            self.endpoint.close()


class Guest:
    """A Linux and ways to plug NICs into it."""

    def __init__(self, linux: Any, number: int) -> None:
        self.linux = linux
        self.run = linux.run
        self.mac = f"00:16:3e:00:00:{number:02x}"
        self.backends: list[Backend] = []

    def plug(self, net: Net, number: int = 0, **options: Any) -> NetDevice:
        """Hot-plug a NIC and wait until the guest has it."""
        mac = f"{self.mac[:-4]}{number}{self.mac[-3:]}"
        device = NetDevice(self.linux.domain, net.switch, NetConfig(mac, number, "net", **options))
        backend = Backend(self.linux.domain, self.linux.host.xenstore, device, number)
        backend.plug()
        self.backends.append(backend)
        self.linux.wait_for(f"[ -e /sys/class/net/eth{number} ]")
        return device

    def dhcp(self, number: int = 0) -> str:
        """Get an address and return it."""
        self.run(f"ip link set eth{number} up; udhcpc -i eth{number} -s /etc/udhcpc -n -q -t 10 -T 1")
        return str(self.run(f"ip -o -4 addr show eth{number}")).split("inet ")[1].split("/")[0]

    def serve(self) -> None:
        """Run a web server, whose file `f` is random, and tell its sum."""
        self.run("mkdir -p /tmp/www; [ -e /tmp/www/f ] || dd if=/dev/urandom of=/tmp/www/f bs=1M count=4")
        self.run("pidof httpd || httpd -p 80 -h /tmp/www")

    def unplug(self, force: bool = False) -> None:
        """Take the last NIC away and wait until it is gone, on both sides."""
        backend, gone = self.backends.pop(), threading.Event()
        (backend.remove if force else backend.unplug)(gone.set)
        assert gone.wait(SECONDS)
        self.linux.wait_for(f"[ ! -e /sys/devices/vif-{backend.number} ]")


@pytest.fixture(scope="module")
def ticker(toolstack: Toolstack) -> Iterator[Ticker]:
    made = Ticker(toolstack.host.lock)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def net(toolstack: Toolstack, ticker: Ticker) -> Iterator[Net]:
    made = Net(toolstack.host, ticker)
    yield made
    made.close()


@pytest.fixture
def station(net: Net) -> Iterator[Station]:
    made = net.station()
    yield made
    made.close()


@pytest.fixture(scope="module")
def booted(make_linux: Callable[[], Any]) -> list[Guest]:
    return [Guest(make_linux().boot(), number) for number in (1, 2)]


@pytest.fixture
def guests(booted: list[Guest]) -> Iterator[list[Guest]]:
    """Two Linuxes for all tests here; what a test plugged goes with it."""
    yield booted
    for guest in booted:
        while guest.backends:
            guest.unplug(force=True)


@pytest.fixture
def guest(guests: list[Guest]) -> Guest:
    return guests[0]


def test_gets_an_address_a_name_and_answers(guest: Guest, net: Net, station: Station) -> None:
    """DHCP, DNS and echoes of every size, both ways."""
    device = guest.plug(net)
    address = guest.dhcp()
    assert [str(lease.address) for lease in net.service.leases()] == [address]
    assert "169.254.0.1" in guest.run("nslookup host.internal")
    for size in (0, 56, 1472, 1473, 9000):
        guest.run(f"ping -c 1 -s {size} {STATION}")
        assert station.ping(address, size)
    line = guest.run("ip link set eth0 down; grep eth0 /proc/net/dev").split(":")[1].split()
    counters = device.counters
    assert (counters.rx_errors, counters.tx_errors, counters.rx_dropped) == (0, 0, 0)
    assert (counters.rx_packets, counters.tx_packets) == (int(line[1]), int(line[9]))
    # Linux counts what it receives without the Ethernet header.
    assert (counters.rx_bytes - 14 * counters.rx_packets, counters.tx_bytes) == (int(line[0]), int(line[8]))


@pytest.mark.parametrize("offloads", [EVERY_OFFLOAD, PLAIN], ids=["able", "plain"])
def test_a_file_is_fetched_both_ways(guest: Guest, net: Net, offloads: Offloads) -> None:
    """4 MiB with checksums. The far side gets large segments if it takes them, else small ones, complete."""
    station = net.station(offloads)
    guest.plug(net)
    address = guest.dhcp()
    guest.serve()
    station.serve(PATTERN)
    sums = guest.run(f"wget -q -O - http://{STATION}/ | md5sum; md5sum < /tmp/www/f").split()
    assert sums[0] == hashlib.md5(PATTERN).hexdigest()
    assert hashlib.md5(station.fetch(address, "/f")).hexdigest() == sums[2]
    segments = [frame for frame in station.got if is_tcp(frame)]
    sent = [frame for port, frame in net.crossed if port is not station.endpoint.port and is_tcp(frame)]
    assert max(len(frame.data) for frame in sent) > 10_000  # the guest leaves the cutting to us
    if offloads is EVERY_OFFLOAD:
        assert any(frame.gso_size for frame in segments)
    else:
        assert all(len(frame.data) <= 1514 and not frame.csum_start for frame in segments)
        assert len(segments) > SIZE // 1448 and all(is_whole(frame.data) for frame in segments)
    station.close()


@pytest.mark.parametrize("version", [4, 6])
def test_two_guests_leave_each_others_segments_whole(guests: list[Guest], net: Net, version: int) -> None:
    """Between two that can, nothing is cut and no checksum made, in IPv4 and IPv6."""
    for number, each in enumerate(guests):
        each.plug(net)
        each.dhcp()
        each.run("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")
        each.run(f"ip -6 addr add fd00::{number + 1}/64 dev eth0")
    one, two = guests
    one.serve()
    address = "[fd00::1]" if version == 6 else one.dhcp()
    port = next(backend.device.port for backend in one.backends if isinstance(backend.device, NetDevice))
    assert two.run(f"wget -q -O - http://{address}/f | md5sum") == one.run("md5sum < /tmp/www/f")
    kind = ETHERTYPE_IPV6 if version == 6 else ETHERTYPE_IPV4
    large = [frame for origin, frame in net.crossed if origin is port and frame.data[12:14] == kind and frame.gso_size]
    assert sum(len(frame.data) for frame in large) > SIZE // 2
    for each in guests:
        device = each.backends[0].device
        assert isinstance(device, NetDevice)
        counters = device.counters
        assert counters.rx_errors == counters.tx_errors == counters.rx_dropped == 0
    received = guests[1].backends[0].device.counters  # type: ignore[attr-defined]
    assert received.rx_bytes > SIZE and received.rx_bytes / received.rx_packets > 3000


def test_nics_come_and_go_while_the_guest_runs(guest: Guest, net: Net, station: Station) -> None:
    """Hot plug, unplug with consent and without, a second NIC beside the first."""
    for force in (False, True, False):
        guest.plug(net, 0)
        guest.plug(net, 1)
        assert guest.dhcp(0) != guest.dhcp(1)
        guest.unplug(force)
        assert guest.run("ls /sys/class/net").split() == ["eth0", "lo"]
        guest.run(f"ping -c 1 {STATION}")
        guest.unplug(force)
        assert "eth" not in guest.run("ls /sys/class/net")
    assert len(net.switch.ports) == 2


def test_a_nic_torn_out_in_the_middle_of_traffic(guest: Guest, net: Net, station: Station) -> None:
    """The guest goes on, and another one works."""
    device = guest.plug(net)
    guest.dhcp()
    station.serve(PATTERN)
    guest.run(f"(while wget -q -O /dev/null http://{STATION}/; do :; done) >/dev/null 2>&1 &")
    deadline = time.monotonic() + SECONDS
    while device.counters.rx_bytes < MIB and time.monotonic() < deadline:
        guest.run("true")
    guest.unplug(force=True)
    guest.run("killall wget")
    assert device.port.switch is None and device.counters.rx_bytes >= MIB
    guest.plug(net)
    guest.dhcp()
    guest.run(f"ping -c 1 {STATION}")


def test_a_driver_that_comes_back_connects_again(guest: Guest, net: Net, station: Station) -> None:
    """As after kexec: Closed, Initialising, new rings."""
    device = guest.plug(net)
    guest.dhcp()
    guest.run("echo vif-0 > /sys/bus/xen/drivers/vif/unbind")
    assert not device.connected and device.port.switch is None
    guest.run("echo vif-0 > /sys/bus/xen/drivers/vif/bind")
    guest.linux.wait_for("[ -e /sys/class/net/eth0 ]")
    guest.dhcp()
    guest.run(f"ping -c 1 {STATION}")


def test_a_rate_limit_holds_and_loses_nothing(guest: Guest, net: Net, station: Station) -> None:
    """4 MiB at 2 MiB/s take two seconds, less the credit saved up; what was asked for comes whole."""
    device = guest.plug(net)
    address = guest.dhcp()
    guest.serve()
    device.change(replace(device.config, kbps=2048))
    began = time.monotonic()
    data = station.fetch(address, "/f")
    assert 1.7 < time.monotonic() - began < 30
    assert hashlib.md5(data).hexdigest() == guest.run("md5sum < /tmp/www/f").split()[0]
    assert device.counters.throttled > 0 and device.counters.tx_dropped == 0


def test_jumbo_frames(guest: Guest, net: Net) -> None:
    """Of 9000 bytes, in several slots, not cut and not fragmented."""
    station = net.station(PLAIN, 9000)
    guest.plug(net, mtu=9000)
    address = guest.dhcp()
    guest.run("ip link set mtu 9000 dev eth0")
    guest.run(f"ping -c 1 -s 8972 {STATION}")
    assert station.ping(address, 8972)
    assert max(len(frame.data) for frame in station.got) == 9014
    station.close()


def test_a_guest_greets_its_neighbours_when_it_is_moved(
    guest: Guest, net: Net, toolstack: Toolstack, ticker: Ticker
) -> None:
    """Its address is announced on the new network, where it goes on."""
    device = guest.plug(net)
    address = guest.dhcp()
    other = Net(toolstack.host, ticker)
    station = other.station()
    device.change(replace(device.config, network="other"), other.switch)
    assert station.ping(address)
    own, deadline = IPv4Address(address).packed, time.monotonic() + SECONDS
    while not any(
        port is device.port and frame.data[12:14] == ETHERTYPE_ARP and frame.data[28:32] == own == frame.data[38:42]
        for port, frame in list(other.crossed)
    ):
        assert time.monotonic() < deadline
        guest.run("true")
    station.close()
    other.close()
