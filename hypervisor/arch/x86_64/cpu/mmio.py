"""Guest-physical addresses at which emulated devices answer: pages put into the holes around a domain's memory.

To map a page costs 0.5 ms, once; an access to it is a call into Python, some 1 µs.
"""

from __future__ import annotations

from collections.abc import Callable

from unicorn import Uc, UcError

from hypervisor.arch.x86_64.cpu.holes import Holes
from hypervisor.memory.guest_memory import PAGE, BadAddress


class MMIO:
    """The pages of devices in one engine."""

    def __init__(self, engine: Uc, holes: Holes) -> None:
        self._engine, self._holes = engine, holes
        self._mapped: set[int] = set()

    def map(
        self, start: int, length: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Have accesses to the pages of a range done by functions of the address. Raises BadAddress, some mapped."""

        def reads(_: Uc, offset: int, size: int, page: int) -> int:
            return read(page + offset, size)

        def writes(_: Uc, offset: int, size: int, value: int, page: int) -> None:
            write(page + offset, size, value)

        for page in range(start // PAGE * PAGE, start + length, PAGE):
            if page not in self._mapped:
                self._holes.clear(page)
                try:
                    self._engine.mmio_map(page, PAGE, reads, page, writes, page)
                except UcError as error:
                    raise BadAddress(f"no device can be at {page:#x}: {error}") from None
                self._mapped.add(page)
