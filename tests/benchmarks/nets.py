"""The network rings: packets and bytes of Debian guests' own driver, to and from a station, and between two guests.

Packets are UDP datagrams of guest_load.c, counted where they arrive; bytes are TCP, with segmentation left to the
other side, from busybox's httpd. The limit is the switch alone: frames of one port counted at the other.
"""

from __future__ import annotations

import threading
import time
from ipaddress import IPv4Address, IPv4Interface

from hypervisor.api import NIC
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import EVERY_OFFLOAD, Frame
from hypervisor.network.port import Port
from hypervisor.network.switch import Switch
from hypervisor.network.tcp_connection import Connection
from hypervisor.network.ticker import Ticker
from hypervisor.network.udp import Datagram, UdpSocket
from tests.benchmarks import linux, machine
from tests.benchmarks.figures import Figure, percent
from tests.benchmarks.linux import Linux, NotHere
from tests.benchmarks.machine import Machine
from tests.benchmarks.stage import Stage, say

SECONDS = 3
SMALL = 18
"""Bytes of a datagram in a frame of the least size."""
LARGE = 1472
TRANSFER = 16 << 20
STATION, UDP_PORT = "10.9.0.9", 5001
NETWORK = "bench"
BURST = 64
MOST_WAITING = 256


class Station:
    """A host on the network that is no guest: it counts what it gets, and sends."""

    def __init__(self, made: Machine) -> None:
        self.lock = made.host.lock
        self.ticker = Ticker(self.lock)
        with self.lock:
            switch = made.toolstack.networks.switch(NETWORK)
            interface = IPv4Interface(f"{STATION}/24")
            self.endpoint = Endpoint(switch, time.monotonic_ns, b"\x02\0\0\0\0\x09", interface)
            self.endpoint.udp.bind(self._datagram, UDP_PORT)
            self.socket = self.endpoint.udp.bind(lambda _, __: None)
        self.ticker.add(self.endpoint)
        self.ticker.start()
        self.packets = 0
        self.bytes = 0

    def _datagram(self, socket: UdpSocket, datagram: Datagram) -> None:
        self.packets += 1

    def fetch(self, address: str, path: str) -> None:
        """Fetch what a guest serves by HTTP and count its bytes, the header's too. Raises TimeoutError."""
        ended = threading.Event()

        def prepare(connection: Connection) -> None:
            def opened() -> None:
                connection.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())

            def received(data: bytes) -> None:
                self.bytes += len(data)

            def over() -> None:
                connection.close()
                ended.set()

            connection.opened, connection.received, connection.ended = opened, received, over

        with self.lock:
            self.endpoint.tcp.connect(IPv4Address(address).packed, 80, prepare)
        if not ended.wait(machine.SECONDS):
            raise TimeoutError(f"{self.bytes} bytes have arrived")

    def flood(self, address: str, size: int, seconds: float) -> None:
        """Send datagrams to a guest as fast as it takes them."""
        to, data = IPv4Address(address).packed, bytes(size)
        end = time.monotonic() + seconds
        switch = self.endpoint.port.switch
        assert switch is not None
        while time.monotonic() < end:
            if any(port.queued > MOST_WAITING for port in switch.ports):
                time.sleep(0.0005)
                continue
            with self.lock:
                for _ in range(BURST):
                    self.socket.send(to, UDP_PORT, data)

    def stop(self) -> None:
        """End the thread."""
        self.ticker.stop()


def benchmark(stage: Stage) -> list[Figure]:
    """Measure guest to station, station to guest, guest to guest."""
    try:
        found = linux.files()
        ramdisk = linux.write(stage.directory, "nets.initrd", linux.load_initrd(found))
    except NotHere as error:
        return [Figure(f"network rings: not measured, {error}", "")]
    say("networks of Linux guests")
    with Machine() as made:
        station = Station(made)
        first, second = (_guest(made, Linux(made, found.kernel, ramdisk).boot(), number) for number in (1, 2))
        limits = {size: _switch_rate(size) for size in (SMALL, LARGE)}
        figures = [_packets("guest to station", _to_station(first, station, size), limits[size], size)
                   for size in (SMALL, LARGE)]  # fmt: skip
        _serve(first)
        figures.append(_bytes("guest to station", _tcp_to_station(station)))
        made.toolstack.pause(second.uuid)  # it is not asked, and floods reach it before its address is known
        figures += [_packets("station to guest", _from_station(first, station, size), limits[size], size)
                    for size in (SMALL, LARGE)]  # fmt: skip
        made.toolstack.unpause(second.uuid)
        figures += [_packets("guest to guest", _between(first, second, size), limits[size], size)
                    for size in (SMALL, LARGE)]  # fmt: skip
        figures.append(_bytes("guest to guest", _tcp_between(second)))
        station.stop()
    return figures


def _packets(way: str, rate: float, limit: float, size: int) -> Figure:
    frame = size + 42
    return Figure(f"network ring, {way}: UDP frames of {frame} bytes a second ({rate * frame / 1e6:,.1f} MB/s); "
                  "limit: the switch", f"{rate:,.0f}", f"{limit:,.0f}", percent(rate / limit))  # fmt: skip


def _bytes(way: str, rate: float) -> Figure:
    return Figure(f"network ring, {way}: TCP, MB/s", f"{rate / 1e6:,.0f}")


def _guest(made: Machine, guest: Linux, number: int) -> Linux:
    """Give a guest a card and an address."""
    made.toolstack.plug(guest.uuid, NIC(0, f"02:00:00:00:01:{number:02x}", NETWORK))
    guest.wait_for("[ -e /sys/class/net/eth0 ]")
    guest.run(f"ip addr add 10.9.0.{number}/24 dev eth0; ip link set eth0 up")
    guest.wait_for(f"ping -c 1 -W 1 {STATION} >/dev/null")
    return guest


def _to_station(guest: Linux, station: Station, size: int) -> float:
    """Return datagrams a second that arrive."""
    before, begun = station.packets, time.monotonic()
    guest.run(f"load send {STATION} {UDP_PORT} {size} {SECONDS}")
    return (station.packets - before) / (time.monotonic() - begun)


def _from_station(guest: Linux, station: Station, size: int) -> float:
    guest.start(f"load take {UDP_PORT} {SECONDS}")
    guest.terminal.expect(b"ready: 1")
    station.flood("10.9.0.1", size, SECONDS + 2)
    return _taken(guest)


def _between(sender: Linux, taker: Linux, size: int) -> float:
    taker.start(f"load take {UDP_PORT} {SECONDS}")
    taker.terminal.expect(b"ready: 1")
    sender.run(f"load send 10.9.0.2 {UDP_PORT} {size} {SECONDS + 1}")
    return _taken(taker)


def _taken(guest: Linux) -> float:
    found = linux.read_numbers(guest.finish())
    return found["packets"] / found["ns"] * 1e9


def _serve(guest: Linux) -> None:
    """Have a guest serve a file that it keeps in memory, by HTTP."""
    guest.run(f"dd if=/dev/zero of=/tmp/file bs=65536 count={TRANSFER >> 16} 2>/dev/null; httpd -h /tmp")


def _tcp_to_station(station: Station) -> float:
    """Return bytes a second of a file that the station fetches from the first guest."""
    begun = time.monotonic()
    station.fetch("10.9.0.1", "/file")
    if station.bytes < TRANSFER:
        raise RuntimeError(f"{station.bytes} bytes have arrived")
    return station.bytes / (time.monotonic() - begun)


def _tcp_between(client: Linux) -> float:
    """Return bytes a second of the same file, fetched by the second guest into its memory."""
    begun = time.monotonic()
    client.run("wget -q -O /tmp/got http://10.9.0.1/file")
    taken = time.monotonic() - begun
    if int(client.run("wc -c </tmp/got").split()[-1]) != TRANSFER:
        raise RuntimeError("not all bytes have arrived")
    return TRANSFER / taken


def _switch_rate(size: int) -> float:
    """Return frames a second from one port of a switch to another."""
    switch = Switch(time.monotonic_ns)
    count = 0

    def receive(frame: Frame) -> bool:
        nonlocal count
        count += 1
        return True

    source = switch.attach(Port(lambda _: True, offloads=EVERY_OFFLOAD))
    switch.attach(Port(receive, offloads=EVERY_OFFLOAD))
    head = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0"
    frame = Frame(head + bytes(size + 28))
    begun = time.monotonic()
    while (taken := time.monotonic() - begun) < SECONDS / 3:
        for _ in range(BURST):
            source.send(frame)
    return count / taken
