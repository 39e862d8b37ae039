"""The address service of a network: DHCP, DNS, and that it is there to be pinged."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from hypervisor.network import dhcp, dns
from hypervisor.network.dhcp import Message
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import Frame
from hypervisor.network.leases import QUARANTINE_NS
from hypervisor.network.packets import BROADCAST_MAC, ipv4_header, parse_ipv4
from hypervisor.network.port import Port
from hypervisor.network.services import HOST_INTERNAL, AddressPlan, AddressService
from hypervisor.network.switch import Switch

SECOND = 1_000_000_000
SERVER = HOST_INTERNAL.address.packed
ANY = bytes(4)


class Net:
    """A service and a bare port from which a DHCP client speaks."""

    def __init__(self, plan: AddressPlan = HOST_INTERNAL) -> None:
        self.now = 10 * SECOND
        self.switch = Switch(lambda: self.now)
        self.service = AddressService(self.switch, lambda: self.now, plan)
        self.frames: list[bytes] = []
        self.port = self.switch.attach(Port(self._receive))

    def _receive(self, frame: Frame) -> bool:
        self.frames.append(frame.data)
        return True

    def ask(
        self, kind: int, mac: bytes, client: bytes = ANY, sender: bytes | None = None, **options: bytes
    ) -> Message | None:
        """Send a DHCP message and return the answer."""
        numbers = {getattr(dhcp, f"OPTION_{name.upper()}"): value for name, value in options.items()}
        message = Message(1, 7, 0, client, ANY, ANY, mac, {dhcp.OPTION_TYPE: bytes((kind,)), **numbers})
        data = dhcp.build(message)
        segment = struct.pack("!HHHH", 68, 67, 8 + len(data), 0) + data
        packet = ipv4_header(client, b"\xff" * 4, 17, len(segment)) + segment
        self.frames.clear()
        self.port.send(Frame(BROADCAST_MAC + (sender or mac) + b"\x08\x00" + packet))
        replies = [found for data in self.frames if (found := parse_ipv4(data, 14)) and found.protocol == 17]
        return dhcp.parse(replies[0].payload[8:]) if replies else None

    def lease(self, mac: bytes, **options: bytes) -> IPv4Address:
        """Go through discover and request as a client does."""
        offer = self.ask(dhcp.DISCOVER, mac)
        assert offer is not None and offer.kind == dhcp.OFFER
        given = self.ask(dhcp.REQUEST, mac, requested=offer.yours, server=self.service.plan.address.packed, **options)
        assert given is not None and given.kind == dhcp.ACK and given.yours == offer.yours
        return IPv4Address(given.yours)

    def resolve(self, name: str, kind: int = dns.TYPE_A) -> tuple[int, bytes]:
        """Return the code and the last four bytes of the answer to a question."""
        raw = dns.encode_name(tuple(name.split("."))) + struct.pack("!HH", kind, 1)
        reply = self.service._names.answer(struct.pack("!HHHHHH", 9, 0x0100, 1, 0, 0, 0) + raw)
        assert reply is not None and reply[:2] == b"\0\x09"
        return reply[3] & 15, reply[12 + len(raw) :][12:]


def mac(number: int) -> bytes:
    return b"\x00\x16\x3e\0" + number.to_bytes(2, "big")


def small(hosts: int) -> AddressPlan:
    network = IPv4Network("10.0.0.0/24")
    return AddressPlan(network, network[1], network[1], network[hosts + 1], router=network[1], mtu=1400)


def test_a_client_gets_an_address_and_what_goes_with_it() -> None:
    net = Net(small(100))
    offer = net.ask(dhcp.DISCOVER, mac(1))
    assert offer is not None
    assert IPv4Address(offer.yours) in IPv4Network("10.0.0.0/24")
    options = {number: offer.options[number] for number in (1, 3, 6, 15, 26, 28, 51, 54)}
    gateway = b"\x0a\0\0\x01"
    assert options == {
        1: b"\xff\xff\xff\0",
        3: gateway,
        6: gateway,
        15: b"internal",
        26: b"\x05\x78",
        28: b"\x0a\0\0\xff",
        51: (3600).to_bytes(4, "big"),
        54: gateway,
    }


def test_the_host_internal_network_names_no_router() -> None:
    offer = Net().ask(dhcp.DISCOVER, mac(1))
    assert offer is not None
    assert dhcp.OPTION_ROUTER not in offer.options


def test_addresses_are_the_same_after_a_restart() -> None:
    before = Net()
    given = [before.lease(mac(number)) for number in range(50)]
    after = Net()
    assert [after.lease(mac(number)) for number in reversed(range(50))] == given[::-1]


def test_a_rebooted_client_keeps_its_address_with_a_server_that_forgot_it() -> None:
    wanted = IPv4Address("169.254.77.7").packed
    reply = Net().ask(dhcp.REQUEST, mac(1), requested=wanted)
    assert reply is not None
    assert (reply.kind, reply.yours) == (dhcp.ACK, wanted)


def test_a_client_of_another_network_is_told_so() -> None:
    reply = Net().ask(dhcp.REQUEST, mac(1), requested=b"\x0a\0\0\x05")
    assert reply is not None
    assert (reply.kind, reply.yours) == (dhcp.NAK, ANY)


def test_an_address_of_another_client_is_refused() -> None:
    net = Net()
    taken = net.lease(mac(1)).packed
    reply = net.ask(dhcp.REQUEST, mac(2), requested=taken)
    assert reply is not None
    assert reply.kind == dhcp.NAK


def test_a_full_range_gives_nothing_until_somebody_leaves() -> None:
    net = Net(small(2))
    given = {net.lease(mac(1)), net.lease(mac(2))}
    refused = net.ask(dhcp.DISCOVER, mac(3))
    lease = net.service._leases.of(mac(1))
    assert lease is not None
    net.ask(dhcp.RELEASE, mac(1), client=lease.address.packed, server=b"\x0a\0\0\x01")
    assert refused is None
    assert net.lease(mac(3)) in given


def test_a_lease_ends_and_an_offer_sooner() -> None:
    net = Net(small(1))
    net.ask(dhcp.DISCOVER, mac(1))
    net.now += 61 * SECOND
    address = net.lease(mac(2))
    net.now += 3601 * SECOND
    assert net.lease(mac(3)) == address


def test_a_renewal_goes_on_with_the_lease() -> None:
    net = Net(small(1))
    address = net.lease(mac(1)).packed
    net.now += 3000 * SECOND
    reply = net.ask(dhcp.REQUEST, mac(1), client=address)
    net.now += 3000 * SECOND
    assert reply is not None
    assert (reply.kind, reply.yours, net.ask(dhcp.DISCOVER, mac(2))) == (dhcp.ACK, address, None)


def test_a_declined_address_rests() -> None:
    net = Net(small(1))
    address = net.lease(mac(1)).packed
    net.ask(dhcp.DECLINE, mac(1), requested=address, server=b"\x0a\0\0\x01")
    rests = net.ask(dhcp.DISCOVER, mac(1))
    net.now += QUARANTINE_NS + SECOND
    assert rests is None
    assert net.lease(mac(1)).packed == address


def test_inform_gives_options_without_an_address() -> None:
    reply = Net().ask(dhcp.INFORM, mac(1), client=IPv4Address("169.254.3.3").packed)
    assert reply is not None
    assert (reply.kind, reply.yours, dhcp.OPTION_LEASE in reply.options) == (dhcp.ACK, ANY, False)


def test_an_offer_that_was_not_taken_is_free_again() -> None:
    net = Net(small(1))
    net.ask(dhcp.DISCOVER, mac(1))
    net.ask(dhcp.REQUEST, mac(1), requested=b"\x0a\0\0\x63", server=b"\x0a\0\0\x63")
    assert net.lease(mac(2)) == IPv4Address("10.0.0.2")


def test_a_client_that_speaks_for_another_is_ignored() -> None:
    net = Net()
    assert net.ask(dhcp.DISCOVER, mac(1), sender=mac(2)) is None
    assert net.service.leases() == ()


def test_a_reserved_address_and_name_are_the_station_s() -> None:
    """What the toolstack writes into network.assigned_ips."""
    net = Net()
    address = net.service.reserve(mac(1), "web")
    net.now += 100_000 * SECOND
    assert net.lease(mac(1)) == address
    assert net.resolve("web.internal") == (dns.OK, address.packed)
    with pytest.raises(ValueError, match="taken"):
        net.service.reserve(mac(2), "web")


def test_a_reservation_of_a_certain_address() -> None:
    net = Net()
    wanted = IPv4Address("169.254.9.9")
    assert net.service.reserve(mac(1), address=wanted) == wanted
    with pytest.raises(ValueError, match="cannot be given"):
        net.service.reserve(mac(2), address=wanted)
    net.service.forget(mac(1))
    assert net.service.reserve(mac(2), address=wanted) == wanted


def test_a_station_s_own_name_is_answered_both_ways() -> None:
    net = Net()
    address = net.lease(mac(1), hostname=b"Demo-1")
    backwards = ".".join(reversed(str(address).split("."))) + ".in-addr.arpa"
    assert net.resolve("demo-1") == (dns.OK, address.packed)
    assert net.resolve(backwards, dns.TYPE_PTR) == (dns.OK, b"\x06demo-1\x08internal\0")


@pytest.mark.parametrize("name", [b"host", b"-bad", b"a.b", b"\xff", b"x" * 64])
def test_a_name_that_is_none_or_the_host_s_is_not_taken(name: bytes) -> None:
    net = Net()
    net.lease(mac(1), hostname=name)
    assert [lease.name for lease in net.service.leases()] == [""]


def test_the_first_station_keeps_a_name() -> None:
    net = Net()
    address = net.lease(mac(1), hostname=b"web")
    net.lease(mac(2), hostname=b"web")
    assert net.resolve("web") == (dns.OK, address.packed)


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("host.internal", 28, dns.OK),
        ("internal", dns.TYPE_A, dns.OK),
        ("nobody", dns.TYPE_A, dns.NAME_ERROR),
        ("a.nobody.internal", dns.TYPE_A, dns.NAME_ERROR),
        ("9.9.254.169.in-addr.arpa", dns.TYPE_PTR, dns.NAME_ERROR),
        ("1.0.0.10.in-addr.arpa", dns.TYPE_PTR, dns.REFUSED),
        ("www.example.com", dns.TYPE_A, dns.REFUSED),
    ],
)
def test_what_is_not_known_is_denied_or_refused(name: str, kind: int, code: int) -> None:
    assert Net().resolve(name, kind) == (code, b"")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack("!HHHHHH", 1, 0x2800, 1, 0, 0, 0), dns.NOT_IMPLEMENTED),
        (struct.pack("!HHHHHH", 1, 0, 2, 0, 0, 0), dns.FORMAT_ERROR),
        (struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01", dns.FORMAT_ERROR),
        (struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x3fshort", dns.FORMAT_ERROR),
        (struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\x01x" * 200 + bytes(5), dns.FORMAT_ERROR),
    ],
)
def test_a_question_that_is_none_is_answered_with_its_code(data: bytes, code: int) -> None:
    reply = Net().service._names.answer(data)
    assert reply is not None
    assert reply[3] & 15 == code


def test_an_answer_is_never_answered() -> None:
    assert Net().service._names.answer(struct.pack("!HHHHHH", 1, 0x8000, 1, 0, 0, 0) + bytes(5)) is None


def test_the_service_is_found_on_its_network() -> None:
    """By ARP, echo and DNS over the wire."""
    net = Net()
    station = Endpoint(net.switch, lambda: net.now, mac(1), IPv4Interface("169.254.5.5/16"))
    times: list[int | None] = []
    answers: list[bytes] = []
    station.ping(HOST_INTERNAL.address, times.append)
    query = struct.pack("!HHHHHH", 5, 0, 1, 0, 0, 0) + b"\x04host\0\0\x01\0\x01"
    station.udp.bind(lambda _socket, datagram: answers.append(datagram.data)).send(SERVER, 53, query)
    assert times == [0]
    assert answers[0][-4:] == SERVER


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    network = IPv4Network("10.0.0.0/24")
    with pytest.raises(ValueError, match="do not lie in"):
        AddressPlan(network, network[1], network[9], network[2])
    with pytest.raises(ValueError, match="no names"):
        AddressPlan(network, network[1], network[2], network[9], domain="Not a domain")
