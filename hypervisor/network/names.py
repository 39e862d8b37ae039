"""What the DNS of a network knows: the stations that have an address from it, and nothing else.

A name is answered alone ("web") and with the network's domain ("web.internal"); addresses of the
network are answered backwards. Other names are refused, not denied: we do not know them.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

from hypervisor.network import dns
from hypervisor.network.leases import LeaseTable

TTL_SECONDS = 30

_BACKWARDS = ("in-addr", "arpa")
_Answer = tuple[int, list[tuple[int, bytes]]]
_REFUSAL: _Answer = (dns.REFUSED, [])


class Names:
    """Answers questions for one network from its leases."""

    def __init__(self, domain: str, host_name: str, host: IPv4Interface, leases: LeaseTable) -> None:
        """Know `leases` under `domain`, and the address of `host`, whose network is ours, as `host_name`."""
        self._domain = tuple(domain.split("."))
        self._host_name = host_name
        self._host = host
        self._leases = leases

    def answer(self, data: bytes) -> bytes | None:
        """Return the response to a DNS message; None if it must not have one."""
        try:
            question = dns.parse(data)
        except dns.Malformed as error:
            return dns.refusal(error)
        if question is None:
            return None
        code, records = self._look_up(question)
        return dns.answer(question, code, records, TTL_SECONDS, authoritative=code != dns.REFUSED)

    def _look_up(self, question: dns.Question) -> _Answer:
        if question.group not in (dns.CLASS_IN, dns.CLASS_ANY):
            return _REFUSAL
        if question.name[-2:] == _BACKWARDS:
            return self._backwards(question)
        return self._forwards(question)

    def _forwards(self, question: dns.Question) -> _Answer:
        """Answer for a name: its address, nothing for other types, NXDOMAIN for what would be ours."""
        name = question.name
        if name == self._domain:
            return dns.OK, []
        if name[1:] not in ((), self._domain):
            ours = name[-len(self._domain) :] == self._domain
            return (dns.NAME_ERROR, []) if ours else _REFUSAL
        if not name:
            return _REFUSAL
        address = self._address_of(name[0])
        if address is None:
            return dns.NAME_ERROR, []
        wanted = question.kind in (dns.TYPE_A, dns.TYPE_ANY)
        return dns.OK, [(dns.TYPE_A, address.packed)] if wanted else []

    def _backwards(self, question: dns.Question) -> _Answer:
        """Answer for an address: its name; those of other networks are refused."""
        try:
            address = IPv4Address(".".join(reversed(question.name[:-2])))
        except ValueError:
            return _REFUSAL
        if address not in self._host.network:
            return _REFUSAL
        name = self._name_of(address)
        if name is None:
            return dns.NAME_ERROR, []
        wanted = question.kind in (dns.TYPE_PTR, dns.TYPE_ANY)
        return dns.OK, [(dns.TYPE_PTR, dns.encode_name((name, *self._domain)))] if wanted else []

    def _address_of(self, name: str) -> IPv4Address | None:
        if name == self._host_name:
            return self._host.ip
        lease = self._leases.named(name)
        return None if lease is None else lease.address

    def _name_of(self, address: IPv4Address) -> str | None:
        if address == self._host.ip:
            return self._host_name
        lease = self._leases.at(address)
        return lease.name or None if lease is not None else None
