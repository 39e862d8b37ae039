"""Which station has which address, so that a restart of the server changes nothing.

An address is not chosen, it follows: the hash of a MAC is a place in the range, and the next free one
is taken if that is another's. A server that has forgotten everything offers the same again, but for
the rare station that met a collision; and that one asks for its old address, which is still free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

OFFER_NS = 60 * 1_000_000_000
QUARANTINE_NS = 600 * 1_000_000_000
_EXPIRE_NS = 1_000_000_000
MAX_LEASES = 4096
MAX_QUARANTINED = 256
MAX_PROBES = 2 * (MAX_LEASES + MAX_QUARANTINED)


@dataclass
class Lease:
    """An address held for a station."""

    mac: bytes
    address: IPv4Address
    expires: int | None
    """Nanoseconds of the clock; None for one that the toolstack reserved."""
    name: str = ""
    bound: bool = False
    """The station has accepted it; otherwise it is offered or reserved."""

    @property
    def is_reserved(self) -> bool:
        return self.expires is None


class LeaseTable:
    """The addresses from `first` to `last`, less those in `excluded`. At most `MAX_LEASES` are given out."""

    def __init__(self, first: IPv4Address, last: IPv4Address, excluded: frozenset[IPv4Address]) -> None:
        if first > last:
            raise ValueError(f"no range of addresses: {first} to {last}")
        self._first = int(first)
        self._size = int(last) - int(first) + 1
        self._excluded = excluded
        self._by_mac: dict[bytes, Lease] = {}
        self._by_address: dict[IPv4Address, Lease] = {}
        self._by_name: dict[str, Lease] = {}
        self._expired_at = 0
        self._quarantined: dict[IPv4Address, int] = {}

    def __iter__(self) -> Iterator[Lease]:
        return iter(tuple(self._by_mac.values()))

    def named(self, name: str) -> Lease | None:
        """Return the lease that has a name."""
        return self._by_name.get(name)

    def give_name(self, lease: Lease, name: str) -> bool:
        """Give a lease a name and tell whether it has it now: a reserved lease before others, else the first."""
        held = self._by_name.get(name)
        if held is lease:
            return True
        if not name or (held is not None and (held.is_reserved or not lease.is_reserved)):
            return False
        if held is not None:
            held.name = ""
        self._by_name.pop(lease.name, None)
        lease.name = name
        self._by_name[name] = lease
        return True

    def of(self, mac: bytes) -> Lease | None:
        return self._by_mac.get(mac)

    def at(self, address: IPv4Address) -> Lease | None:
        return self._by_address.get(address)

    def is_free(self, address: IPv4Address, mac: bytes) -> bool:
        """Tell whether a station may have this very address."""
        if not 0 <= int(address) - self._first < self._size:
            return False
        held = self._by_address.get(address)
        if held is not None:
            return held.mac == mac
        return address not in self._excluded and address not in self._quarantined

    def find(self, mac: bytes, now: int, wanted: IPv4Address | None = None) -> Lease | None:
        """Return the lease of a station, or hold an address for it for `OFFER_NS`; None if all are taken."""
        self.expire(now)
        held = self._by_mac.get(mac)
        if held is not None:
            return held
        if len(self._by_mac) >= MAX_LEASES:
            return None
        if wanted is None or not self.is_free(wanted, mac):
            wanted = self._next_free(mac)
        if wanted is None:
            return None
        lease = Lease(mac, wanted, now + OFFER_NS)
        self._by_mac[mac] = self._by_address[wanted] = lease
        return lease

    def reserve(self, mac: bytes, address: IPv4Address | None) -> Lease:
        """Hold an address, this one or the one that follows from the MAC, until `forget`. Raises ValueError."""
        held = self._by_mac.get(mac)
        if held is not None and address is not None and held.address != address:
            if not self.is_free(address, mac):
                raise ValueError(f"{address} is taken")
            self._drop(held)
            held = None
        lease = held or self.find(mac, self._expired_at, address)
        if lease is None:
            raise ValueError("no address is free")
        if address is not None and lease.address != address:
            self._drop(lease)
            raise ValueError(f"{address} cannot be given")
        lease.expires = None
        return lease

    def release(self, mac: bytes, address: IPv4Address) -> None:
        """Take back what a station gives back; a reserved address stays reserved."""
        lease = self._by_mac.get(mac)
        if lease is None or lease.address != address:
            return
        lease.bound = False
        if not lease.is_reserved:
            self._drop(lease)

    def decline(self, mac: bytes, address: IPv4Address, now: int) -> None:
        """Keep out of use an address that a station has found to be somebody else's. A reserved one stays."""
        lease = self._by_mac.get(mac)
        if lease is None or lease.address != address or lease.is_reserved:
            return
        self._drop(lease)
        if len(self._quarantined) >= MAX_QUARANTINED:
            del self._quarantined[next(iter(self._quarantined))]
        self._quarantined[address] = now + QUARANTINE_NS

    def forget(self, mac: bytes) -> None:
        """Drop the lease of a station, reserved or not."""
        lease = self._by_mac.get(mac)
        if lease is not None:
            self._drop(lease)

    def expire(self, now: int) -> None:
        """Drop what is over. O(leases), so at most once a second whoever asks."""
        if now - self._expired_at < _EXPIRE_NS:
            return
        self._expired_at = now
        for lease in list(self._by_mac.values()):
            if lease.expires is not None and lease.expires <= now:
                self._drop(lease)
        for address in [address for address, until in self._quarantined.items() if until <= now]:
            del self._quarantined[address]

    def _next_free(self, mac: bytes) -> IPv4Address | None:
        place = int.from_bytes(hashlib.blake2b(mac, digest_size=8).digest(), "big")
        for step in range(min(self._size, MAX_PROBES)):
            address = IPv4Address(self._first + (place + step) % self._size)
            if self.is_free(address, mac):
                return address
        return None

    def _drop(self, lease: Lease) -> None:
        del self._by_mac[lease.mac]
        del self._by_address[lease.address]
        if self._by_name.get(lease.name) is lease:
            del self._by_name[lease.name]
