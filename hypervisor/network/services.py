"""The address service of a network: what gives guests an address, a name and somebody to ping.

A station (`Endpoint`) with a DHCP server and a DNS responder on it. Networks that ask for it get one;
XCP's host internal management network (169.254.0.0/16, the host at 169.254.0.1) always does. It needs
no right on the host, routes nothing and forwards no question.

The codecs are our own: of the libraries, scapy and dnspython are heavy for one question and one
answer, dpkt has had no release since 2022, dnslib knows DNS only and is not typed; all of them parse
far more than may be trusted to a guest, and none would be used for the frames, where speed counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypervisor.network import dhcp, dns
from hypervisor.network.dhcp_server import DhcpServer, Offer, valid_name
from hypervisor.network.endpoint import Endpoint
from hypervisor.network.leases import Lease, LeaseTable
from hypervisor.network.names import Names
from hypervisor.network.packets import is_host_mac
from hypervisor.network.port import Membership
from hypervisor.network.switch import Switch
from hypervisor.network.udp import Datagram, UdpSocket


@dataclass(frozen=True)
class AddressPlan:
    """How the addresses of a network are used. Raises ValueError for a plan that contradicts itself."""

    network: IPv4Network
    address: IPv4Address
    """The service's own."""
    first: IPv4Address
    last: IPv4Address
    """The range to give out from; the service's address and the router's may lie inside."""
    router: IPv4Address | None = None
    """The default gateway that guests are told of; None: they are told of none."""
    dns: tuple[IPv4Address, ...] | None = None
    """DNS servers that guests are told of; None: the service itself."""
    domain: str = "internal"
    host_name: str = "host"
    """The name by which the service itself is found."""
    mtu: int = 1500
    lease_seconds: int = 3600

    def __post_init__(self) -> None:
        hosts = (self.address, self.first, self.last)
        if any(host not in self.network for host in hosts) or self.first > self.last:
            raise ValueError(f"the addresses {', '.join(map(str, hosts))} do not lie in {self.network} in order")
        if self.address in (self.network.network_address, self.network.broadcast_address):
            raise ValueError(f"{self.address} is no host of {self.network}")
        if not all(valid_name(label) for label in (*self.domain.split("."), self.host_name)):
            raise ValueError(f"no names: {self.host_name}, {self.domain}")
        if not 576 <= self.mtu <= 65535 or not 60 <= self.lease_seconds <= 0xFFFFFFFE:
            raise ValueError(f"MTU {self.mtu} or lease of {self.lease_seconds} s out of range")


HOST_INTERNAL = AddressPlan(
    network=IPv4Network("169.254.0.0/16"),
    address=IPv4Address("169.254.0.1"),
    first=IPv4Address("169.254.0.2"),
    last=IPv4Address("169.254.255.254"),
)
"""XCP's host internal management network."""


class AddressService:
    """DHCP, DNS, ARP and echo on one network. `close` it to unplug."""

    def __init__(
        self,
        switch: Switch,
        clock: Callable[[], int],
        plan: AddressPlan = HOST_INTERNAL,
        *,
        mac: bytes | None = None,
        membership: Membership | None = None,
    ) -> None:
        """Plug the service into `switch`. Without `mac` it has one that follows from the plan."""
        self.plan = plan
        self.mac = _own_mac(plan) if mac is None else mac
        interface = IPv4Interface((plan.address, plan.network.prefixlen))
        self._endpoint = Endpoint(switch, clock, self.mac, interface, membership=membership, mtu=plan.mtu)
        network = plan.network
        excluded = {plan.address, network.network_address, network.broadcast_address}
        if plan.router is not None:
            excluded.add(plan.router)
        self._leases = LeaseTable(plan.first, plan.last, frozenset(excluded))
        self._server = DhcpServer(_offer(plan), self._leases, clock)
        self._names = Names(plan.domain, plan.host_name, interface, self._leases)
        self._endpoint.udp.bind(self._server.receive, dhcp.SERVER_PORT)
        self._endpoint.udp.bind(self._answer, dns.PORT)

    def reserve(self, mac: bytes, name: str = "", address: IPv4Address | None = None) -> IPv4Address:
        """Reserve an address, and a name, for a VIF until `forget`, and return the address.

        Without `address` it is the one that the station would get anyway. Raises ValueError if the
        MAC or name is none, the address or name is another's, or the range is full.
        """
        if not is_host_mac(mac) or (name and not valid_name(name)):
            raise ValueError(f"no station: {mac.hex(':')} {name!r}")
        lease = self._leases.reserve(mac, address)
        if name and (name == self.plan.host_name or not self._leases.give_name(lease, name)):
            self._leases.forget(mac)
            raise ValueError(f"the name {name} is taken")
        return lease.address

    def forget(self, mac: bytes) -> None:
        """Drop a station's reservation and lease: its VIF is gone."""
        self._leases.forget(mac)

    def leases(self) -> tuple[Lease, ...]:
        """Return every address that is offered, bound or reserved, as `network.assigned_ips` shows them."""
        return tuple(self._leases)

    @property
    def endpoint(self) -> Endpoint:
        """The station, for what else the host offers on this network."""
        return self._endpoint

    def tick(self, now: int) -> None:
        """Do what is due."""
        self._leases.expire(now)
        self._endpoint.tick(now)

    def next_deadline(self) -> int | None:
        """Return when `tick` is needed, in nanoseconds; leases can wait for the next question."""
        return self._endpoint.next_deadline()

    @property
    def alarm(self) -> Callable[[], None]:
        """What is called whenever `next_deadline` may be another."""
        return self._endpoint.alarm

    @alarm.setter
    def alarm(self, call: Callable[[], None]) -> None:
        self._endpoint.alarm = call

    def close(self) -> None:
        """Unplug the service and forget its leases."""
        self._endpoint.close()

    def _answer(self, socket: UdpSocket, datagram: Datagram) -> None:
        if datagram.destination != self.plan.address.packed:
            return
        reply = self._names.answer(datagram.data)
        if reply is not None:
            socket.send(datagram.source, datagram.port, reply)


def _own_mac(plan: AddressPlan) -> bytes:
    """Return a locally administered address that is the same for the same plan."""
    return b"\x02" + hashlib.blake2b(f"{plan.network} {plan.address}".encode(), digest_size=5).digest()


def _offer(plan: AddressPlan) -> Offer:
    servers = (plan.address,) if plan.dns is None else plan.dns
    options = {
        dhcp.OPTION_SUBNET: plan.network.netmask.packed,
        dhcp.OPTION_DOMAIN: plan.domain.encode("ascii"),
        dhcp.OPTION_MTU: plan.mtu.to_bytes(2, "big"),
        dhcp.OPTION_BROADCAST: plan.network.broadcast_address.packed,
    }
    if plan.router is not None:
        options[dhcp.OPTION_ROUTER] = plan.router.packed
    if servers:
        options[dhcp.OPTION_DNS] = b"".join(server.packed for server in servers)
    return Offer(plan.address, plan.network, plan.lease_seconds, plan.host_name, options)
