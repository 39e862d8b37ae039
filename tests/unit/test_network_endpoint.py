"""The station inside the process: neighbours, echoes, datagrams, streams."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Interface

import pytest

from hypervisor.network import tcp_segment
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import PLAIN, Frame
from hypervisor.network.ipv4 import MAX_REASSEMBLIES
from hypervisor.network.ipv4 import Reassembly as FragmentReassembly
from hypervisor.network.packets import Ipv4
from hypervisor.network.port import Port
from hypervisor.network.ratelimit import TokenBucket
from hypervisor.network.switch import Switch
from hypervisor.network.tcp import BACKLOG
from hypervisor.network.tcp_connection import LINGER_NS, Connection
from hypervisor.network.tcp_reassembly import MAX_PIECES, Reassembly
from hypervisor.network.tcp_segment import ACK, RST, SYN, Segment
from hypervisor.network.udp import Datagram, UdpSocket

SECOND = 1_000_000_000
ONE, TWO = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")


class Net:
    """A switch with two stations, and a clock that runs as far as it is told."""

    def __init__(self) -> None:
        self.now = SECOND
        self.switch = Switch(self.clock)
        self.one = self.station(1)
        self.two = self.station(2)

    def clock(self) -> int:
        return self.now

    def station(self, number: int) -> Endpoint:
        interface = IPv4Interface(f"10.0.0.{number}/24")
        return Endpoint(self.switch, self.clock, b"\x02\0\0\0\0" + bytes((number,)), interface, secret=bytes(16))

    def run(self, seconds: float) -> None:
        """Jump from deadline to deadline."""
        parts = (self.switch, self.one, self.two)
        end = self.now + int(seconds * SECOND)
        while (due := min((at for part in parts if (at := part.next_deadline()) is not None), default=end)) < end:
            self.now = max(self.now, due)
            for part in parts:
                part.tick(self.now)
        self.now = end


class Stream:
    """What an application sees of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.data = bytearray()
        self.events: list[str] = []
        connection.received = self.data.extend
        connection.ended = lambda: self.events.append("ended")
        connection.closed = lambda reason: self.events.append(f"closed {reason}".strip())
        connection.writable = lambda: self.events.append("writable")


def connected(net: Net) -> tuple[Stream, Stream]:
    accepted: list[Stream] = []
    net.two.tcp.listen(80, lambda connection: accepted.append(Stream(connection)))
    return connect(net, TWO), accepted[0]


def connect(net: Net, address: IPv4Address, port: int = 80) -> Stream:
    streams: list[Stream] = []
    net.one.tcp.connect(address.packed, port, lambda connection: streams.append(Stream(connection)))
    return streams[0]


@pytest.mark.parametrize("size", [0, 56, 1472, 1473, 8000, 60000])
def test_an_echo_of_any_size_comes_back(size: int) -> None:
    """Above the MTU it goes in fragments both ways."""
    net = Net()
    times: list[int | None] = []
    net.one.ping(TWO, times.append, size)
    assert times == [0]


def test_fragments_that_reach_beyond_a_packet_or_never_end_are_dropped() -> None:
    """The ping of death, and crumbs without an end."""
    pieces = FragmentReassembly()
    packet = Ipv4(ONE.packed, TWO.packed, 1, 7, 65_512, False, bytes(100))
    assert pieces.add(packet, 0) is None
    assert len(pieces) == 0
    for number in range(5000):
        crumb = packet._replace(identification=number % 50, fragment_offset=8 * (number // 50), more_fragments=True)
        assert pieces.add(crumb._replace(payload=bytes(8)), 0) is None
    assert len(pieces) <= MAX_REASSEMBLIES


def test_nobody_answers_for_an_address_that_is_not_there() -> None:
    net = Net()
    times: list[int | None] = []
    net.one.ping(IPv4Address("10.0.0.9"), times.append)
    net.run(10)
    assert (times, net.one.next_deadline()) == ([None], None)


def test_other_networks_are_reached_by_the_gateway_or_not_at_all() -> None:
    net = Net()
    socket = net.one.udp.bind(lambda _socket, _datagram: None)
    assert not socket.send(IPv4Address("192.0.2.1").packed, 9, b"")


def test_datagrams_go_both_ways() -> None:
    net = Net()
    got: list[Datagram] = []

    def answer(socket: UdpSocket, datagram: Datagram) -> None:
        socket.send(datagram.source, datagram.port, datagram.data.upper())

    net.two.udp.bind(answer, 7)
    net.one.udp.bind(lambda _socket, datagram: got.append(datagram)).send(TWO.packed, 7, b"hello" * 1000)
    assert [datagram.data for datagram in got] == [b"HELLO" * 1000]


def test_a_closed_udp_port_is_told_so() -> None:
    """ICMP type 3, code 3, with the header that caused it."""
    net = Net()
    seen: list[Ipv4] = []
    net.one.ip.protocols[1] = lambda packet, _mac, _verified: seen.append(packet)
    net.one.udp.bind(lambda _socket, _datagram: None, 1234).send(TWO.packed, 9, b"x")
    assert seen[0].payload[:2] == b"\x03\x03"
    assert seen[0].payload[28:32] == (1234).to_bytes(2, "big") + b"\x00\x09"


def test_a_datagram_with_a_wrong_checksum_is_dropped() -> None:
    net = Net()
    got: list[Datagram] = []
    net.two.udp.bind(lambda _socket, datagram: got.append(datagram), 7)
    frames: list[bytes] = []

    def keep(frame: Frame) -> bool:
        frames.append(frame.data)
        return True

    tapped = net.switch.attach(Port(keep))
    net.one.udp.bind(lambda _socket, _datagram: None).send(b"\x0a\0\0\xff", 7, b"data")
    net.switch.detach(tapped)
    broken = frames[-1][:-1] + b"!"
    net.two.port.receive(Frame(broken))
    assert [datagram.data for datagram in got] == [b"data"]


def test_a_stream_arrives_whole_and_both_sides_close_in_order() -> None:
    net = Net()
    client, server = connected(net)
    client.connection.send(b"GET")
    server.connection.send(b"answer")
    server.connection.close()
    client.connection.close()
    assert (bytes(server.data), bytes(client.data)) == (b"GET", b"answer")
    assert (client.events, server.events) == (["ended", "closed"], ["ended"])
    net.run(LINGER_NS / SECOND + 1)
    assert server.events == ["ended", "closed"]
    assert (net.one.tcp.connections, net.two.tcp.connections) == ((), ())


@pytest.mark.parametrize("plain", [False, True], ids=["offloads", "plain"])
def test_a_large_stream_arrives_intact_without_waiting(plain: bool) -> None:
    """More than all buffers and windows; no time passes, so no timer helped."""
    net = Net()
    if plain:
        net.one.port.offloads = net.two.port.offloads = PLAIN
    data = hashlib.shake_128(b"stream").digest(3 << 20)
    client, server = connected(net)
    sent = 0

    def feed() -> None:
        nonlocal sent
        while sent < len(data) and (taken := client.connection.send(data[sent : sent + 100_000])):
            sent += taken

    client.connection.writable = feed
    feed()
    client.connection.close()
    net.switch.tick(net.now)
    assert hashlib.sha256(server.data).digest() == hashlib.sha256(data).digest()
    assert server.events == ["ended"]


def test_a_stream_through_a_rate_limit_takes_its_time() -> None:
    net = Net()
    net.one.port.limit_rate(TokenBucket(1000, now=net.now))
    client, server = connected(net)
    client.connection.send(bytes(1_000_000))
    net.run(0.5)
    half = len(server.data)
    net.run(1)
    assert 300_000 < half < 700_000
    assert len(server.data) == 1_000_000


def test_a_port_where_nobody_listens_refuses() -> None:
    net = Net()
    client = connect(net, TWO, 81)
    assert client.events == ["closed refused"]


def test_a_peer_that_is_not_there_times_out() -> None:
    net = Net()
    client = connect(net, IPv4Address("10.0.0.9"))
    net.run(120)
    assert (client.events, net.one.tcp.connections) == (["closed timed out"], ())


def test_a_peer_that_vanishes_is_given_up() -> None:
    net = Net()
    client, _server = connected(net)
    net.two.close()
    client.connection.send(b"hello?")
    net.run(600)
    assert client.events == ["closed timed out"]


def test_an_abort_is_a_reset_for_the_peer() -> None:
    net = Net()
    client, server = connected(net)
    client.connection.abort()
    assert (server.events, client.events) == (["closed reset"], [])


def test_a_reset_with_another_number_than_the_next_does_nothing() -> None:
    """RFC 5961: a blind guess within the window only gets an acknowledgement."""
    net = Net()
    client, server = connected(net)
    connection = server.connection
    connection.receive(Segment(connection.peer_port, 80, connection._expected + 100, 0, RST, 0))
    client.connection.send(b"still here")
    assert (bytes(server.data), server.events) == (b"still here", [])


def test_a_flood_of_handshakes_keeps_the_newest_only() -> None:
    net = Net()
    net.two.tcp.listen(80, lambda connection: None)
    for number in range(BACKLOG + 50):
        segment = tcp_segment.build(Segment(1000 + number, 80, 5, 0, SYN, 1000), 0)
        net.two.tcp.receive(Ipv4(b"\x0a\0\0\x63", TWO.packed, 6, 0, 0, False, segment), bytes(6), True)
    assert len(net.two.tcp.connections) == BACKLOG


def test_a_window_that_was_closed_is_probed_until_it_opens() -> None:
    net = Net()
    client, server = connected(net)
    sender = client.connection._sender
    una = sender.una
    client.connection.receive(Segment(80, client.connection.port, client.connection._expected, una, ACK, 0))
    client.connection.send(b"patience")
    stuck = bytes(server.data)
    net.run(5)
    assert (stuck, bytes(server.data)) == (b"", b"patience")


def test_early_pieces_of_a_stream_are_bounded() -> None:
    pieces = Reassembly(1000)
    for number in range(MAX_PIECES + 10):
        pieces.add(10 + 2 * number, b"x")
    pieces.add(5, bytes(2000))
    assert len(pieces) == MAX_PIECES
    pieces.add(0, b"")
    assert pieces.take(10) == [b"x"]


def test_sending_after_close_is_refused() -> None:
    net = Net()
    client, _server = connected(net)
    client.connection.close()
    with pytest.raises(ValueError, match="does not send"):
        client.connection.send(b"more")
