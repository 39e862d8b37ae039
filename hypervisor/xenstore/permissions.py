"""Who may read, write and own a node (docs/misc/xenstore.txt, "permission entries")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypervisor.xenstore.errors import Invalid
from hypervisor.xenstore.paths import number

NONE, READ, WRITE, OWNER = 0, 1, 2, 4
BOTH = READ | WRITE
ALL = BOTH | OWNER

_LETTERS = {NONE: "n", READ: "r", WRITE: "w", BOTH: "b"}
_ACCESS = {ord(letter): access for access, letter in _LETTERS.items()}


@dataclass(slots=True)
class Caller:
    """Name the domain that asks, and the domain that it acts for (SET_TARGET), if any."""

    domid: int
    target: int | None = None
    privileged: bool = field(init=False)

    def __post_init__(self) -> None:
        self.privileged = self.domid == 0


@dataclass(frozen=True, slots=True)
class Permissions:
    """Hold the owner, the access of domains that no entry names, and the entries in order.

    The owner always has full access; of several entries for one domain the first counts.
    """

    owner: int
    default: int = NONE
    entries: tuple[tuple[int, int], ...] = ()
    domids: frozenset[int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domids", frozenset((self.owner, *(domid for domid, _ in self.entries))))

    def access(self, caller: Caller) -> int:
        """Return what a caller may do, a sum of READ, WRITE and OWNER. O(entries)."""
        if caller.privileged or self.owner == caller.domid or self.owner == caller.target:
            return ALL
        for domid, access in self.entries:
            if domid == caller.domid or domid == caller.target:
                return access
        return self.default

    def inherited(self, caller: Caller) -> Permissions:
        """Return the permissions of a node that a caller creates below one with these.

        As in C xenstored an unprivileged domain owns what it creates; in oxenstored the parent's owner would.
        """
        if caller.privileged or caller.domid == self.owner:
            return self
        return Permissions(caller.domid, self.default, self.entries)

    def without(self, domid: int) -> Permissions:
        """Return the same without the entries of one domain."""
        return Permissions(self.owner, self.default, tuple(entry for entry in self.entries if entry[0] != domid))

    def encode(self) -> bytes:
        """Return the wire form: a letter and a domid for the owner and each entry, each ended by a nul."""
        items = ((self.owner, self.default), *self.entries)
        return b"".join(f"{_LETTERS[access]}{domid}\0".encode() for domid, access in items)


def decode(items: Iterable[bytes]) -> Permissions:
    """Read permissions such as n0, r5 (without nuls), the owner first; raise `Invalid`."""
    pairs = [_pair(item) for item in items]
    if not pairs:
        raise Invalid("no permissions")
    (owner, default), *entries = pairs
    return Permissions(owner, default, tuple(entries))


def _pair(item: bytes) -> tuple[int, int]:
    access = _ACCESS.get(item[0]) if item else None
    if access is None:
        raise Invalid("no such kind of access")
    return number(item[1:], 0x7FEF), access
