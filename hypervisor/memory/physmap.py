"""A domain's physmap: which of its frames hold memory, its own or another domain's, and which were given back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from hypervisor.memory.foreign import Loan
from hypervisor.memory.frame_set import FrameSet
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory


class Owner(Enum):
    """Whose the frame is that a domain has under a number of its RAM."""

    DOMAIN = "the domain's own"
    SHARED = "of a template and its clones, until one of them writes to it: then the writer has a copy of its own"
    OTHER = "another domain's, whose grant was mapped there"
    HOST = "given back: nobody's, and reads as zero"


class Physmap:
    """The frames of a domain with RAM at `ranges` of guest-physical bytes. Under the host's lock.

    A frame that was given back reads as zero, and is not counted in `Memory.present`. So it is with one that shows
    another domain's: it can be neither given back nor taken until that ends, and is empty then. Nor can a frame be
    given back that another domain shows. The frames of `foreign` are no RAM: they are for others' only.

    `may_grow` tells whether the domain may hold so many frames more, `show` lets its vCPUs see a frame beyond its
    memory, and `overwritten` hears of ranges of bytes whose content has changed under the vCPUs. `occupied` tells
    whether at an offset into the memory lies what the hypervisor reads of the domain: its grant table, its shared page.
    """

    def __init__(
        self,
        memory: Memory,
        ranges: Sequence[tuple[int, int]],
        may_grow: Callable[[int], bool],
        show: Callable[[int], None],
        overwritten: Callable[[Iterable[tuple[int, int]]], None],
        occupied: Callable[[int], bool],
    ) -> None:
        self.ballooned = FrameSet()
        """RAM without memory of the domain's own."""
        self.ranges = tuple(ranges)
        self.foreign = range(0)
        """Frames of the memory in which a PV domain sees others'."""
        self._memory = memory
        self._may_grow, self._show, self._overwritten, self._occupied = may_grow, show, overwritten, occupied

    def holds(self, frame: int) -> bool:
        """Tell whether a frame is RAM with memory of the domain's own."""
        start = frame * PAGE
        ram = any(low <= start < high for low, high in self.ranges)
        return ram and frame not in self.ballooned and frame not in self._memory.foreign

    def owner(self, frame: int) -> Owner:
        """Return whose a frame is. Raises BadAddress for one that is no RAM. Asks the kernel, 20 µs, in a clone."""
        self._check(frame, 1)
        if frame in self._memory.foreign:
            return Owner.OTHER
        if frame in self.ballooned:
            return Owner.HOST
        return Owner.SHARED if self._memory.is_shared(frame) else Owner.DOMAIN

    def release(self, frame: int, count: int) -> bool:
        """Give frames to the host (balloon up), if no other domain is concerned. Raises BadAddress."""
        self._check(frame, count)
        if self.is_shared(frame, count):
            return False
        self._memory.free(frame, count)
        self.hold_out(frame, count)
        return True

    def populate(self, frame: int, count: int) -> bool:
        """Take frames from the host (balloon down), as far as the target allows. Raises BadAddress."""
        self._check(frame, count)
        if self.is_shared(frame, count) or not self._may_grow(self.ballooned.count(frame, count)):
            return False
        self._memory.present += self.ballooned.remove(frame, count)
        return True

    def hold_out(self, frame: int, count: int) -> None:
        """Take frames for given to the host, whatever they hold. Raises BadAddress."""
        self._check(frame, count)
        self._memory.present -= self.ballooned.add(frame, count)

    def _check(self, frame: int, count: int) -> None:
        """Raise BadAddress unless all of the frames are RAM."""
        start, end = frame * PAGE, (frame + count) * PAGE
        if not any(low <= start and end <= high for low, high in self.ranges):
            raise BadAddress(f"frames {frame:#x} and {count - 1} more are no RAM")

    def is_shared(self, frame: int, count: int = 1) -> bool:
        """Tell whether one of the frames shows another domain's, or is shown by one."""
        foreign, lent = self._memory.foreign, self._memory.lent
        return bool(foreign or lent) and any(other in foreign or other in lent for other in range(frame, frame + count))

    # Frames of other domains

    def borrow(self, frame: int, lender: Memory, other: int, writable: bool) -> Loan:
        """Let a frame show another one's; RAM that it holds goes to the host.

        Raises BadAddress for a place that cannot be used, or for a frame that cannot be shown: another domain's, or
        a clone's. Raises OSError when the host has no room for it, with the place empty.
        """
        memory = self._memory
        if frame in memory.foreign or frame in memory.lent or (lender is memory and other == frame):
            raise BadAddress(f"frame {frame:#x} is shared with another domain already")
        if (frame in memory.extra or 0 <= frame < memory.size // PAGE) and self._occupied(memory.offset(frame)):
            raise BadAddress(f"frame {frame:#x} is in use")  # else who lends would write the borrower's grants
        if lender.private or other in lender.foreign:
            raise BadAddress(f"frame {other:#x} is in no file of its domain's")
        lender.check(other * PAGE, PAGE)
        if frame * PAGE >= memory.size:
            at = memory.place_extra(frame)
            memory.bytes[at : at + PAGE] = bytes(PAGE)
            self._show(frame)
        elif frame not in self.foreign:
            self.release(frame, 1)
        loan = Loan(lender, other, memory, frame, writable)
        loan.begin()
        self._changed(loan)
        return loan

    def end(self, loan: Loan) -> None:
        """Let the frame that shows another's be empty. Raises OSError with nothing changed."""
        loan.end()
        self._changed(loan)

    def _changed(self, loan: Loan) -> None:
        at = self._memory.offset(loan.at)
        self._overwritten([(at, at + PAGE)])
