"""A guest that writes what it likes into its rings: console, xenstore and block, and floods what is behind them."""

from __future__ import annotations

import struct
import threading
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split import console
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from hypervisor.xenstore.permissions import NONE, Permissions
from hypervisor.xenstore.wire import MESSAGE_MAX, Type, message
from tests.fuzz.lives import Lives
from tests.fuzz.steps import counted
from tests.unit.block_front import GRANT_FRAME, Front, discard, indirect, request

MIB = 1 << 20
SHARED, STORE, CONSOLE = 1, 2, 3
index = st.one_of(st.integers(0, 2100), st.integers(0, (1 << 32) - 1))
names = st.sampled_from(
    [b"a", b"b/c", b"data/x", b"/local/domain/1/data", b"/local/domain/1/data/" + b"y/" * 30 + b"z"]
)
homes = st.sampled_from(
    [b"/local/domain/2", b"/local/domain/2/data/x", b"/", b"", b"/vm", b"@releaseDomain", b"//", b"a//b"]
)
path = st.one_of(
    names, names, homes, st.binary(max_size=40), st.integers(0, 3000).map(lambda number: b"data/%d" % number)
)
text = st.one_of(
    st.binary(max_size=60), st.just(b"v" * 2000), st.sampled_from([b"n1", b"n2", b"r0", b"b1", b"T", b"F", b"2", b"0"])
)
payload = st.one_of(
    path.map(lambda one: one + b"\0"),
    st.tuples(path, text).map(lambda pair: b"\0".join(pair)),
    st.tuples(path, text).map(lambda pair: b"\0".join(pair) + b"\0"),
    st.lists(text, max_size=8).map(lambda many: b"".join(one + b"\0" for one in many)),
    st.binary(max_size=200),
)
kinds = st.one_of(st.sampled_from([int(kind) for kind in Type]), st.integers(0, 255))
transactions = st.one_of(st.just(0), st.integers(0, 12), st.integers(0, (1 << 32) - 1))


class Rings(Lives):
    """Console and xenstore of one domain, beside another whose keys it must not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(64 * MIB, 1)
        self.domain, self.victim = self._home(), self._home()
        self._join()

    def _home(self) -> Domain:
        """Make a domain, and its home in xenstore."""
        store, domain = self.host.xenstore, self.host.create([(0, MIB)])
        store.introduce(domain.domid)
        home = f"/local/domain/{domain.domid}"
        store.write(f"{home}/data", b"")
        store.set_perms(f"{home}/data", Permissions(domain.domid, NONE))
        store.write(f"{home}/secret", b"untouched")
        store.set_perms(f"{home}/secret", Permissions(0, NONE))
        return domain

    def _join(self) -> None:
        """Give the domain its rings."""
        self.domain.place_shared_info(SHARED)
        events, store = self.domain.events, self.host.xenstore
        self.connection = store.connection(self.domain.domid)
        self.store = StoreRing(self.domain, self.connection, STORE, events.alloc_unbound(0))
        self.console = Console(self.domain, CONSOLE, events.alloc_unbound(0))
        self.heard = 0
        self.console.listen(self._hear)
        self.consoles[self.domain] = self.console
        self.page = self.domain.memory.frame(STORE)

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.host, self.domain

    def destroy(self, host: Host, domain: Domain) -> None:
        host.destroy(domain)
        with host.lock:
            host.xenstore.write(f"/local/domain/{domain.domid}/shared/0", b"news")  # which it may have watched
            host.xenstore.release(domain.domid)
            host.xenstore.rm(f"/local/domain/{domain.domid}")

    def begin_anew(self, which: int) -> None:
        self.domain = self._home()
        self._join()

    def _hear(self, data: bytes) -> None:
        self.heard += len(data)
        assert len(data) <= 2048

    def kick(self, port: int) -> None:
        counted()
        with self.host.lock:
            self.domain.events.send(port)
            self.domain.events.drain()

    # xenstore

    @rule(
        content=st.binary(min_size=1, max_size=64),
        at=st.integers(0, PAGE - 64),
        frame=st.sampled_from([STORE, CONSOLE]),
    )
    def scribble(self, content: bytes, at: int, frame: int) -> None:
        self.domain.memory.write(frame * PAGE + at, content)
        self.kick(self.store.port)
        self.kick(self.console.port)

    @rule(values=st.tuples(index, index, index, index))
    def wild_store_indexes(self, values: tuple[int, ...]) -> None:
        struct.pack_into("<4I", self.page, 2048, *values)
        self.kick(self.store.port)

    @rule()
    def reconnect(self) -> None:
        """Give the ring back its sense, as a toolstack does for the next kernel."""
        with self.host.lock:
            self.connection.reset()
            struct.pack_into("<4I", self.page, 2048, 0, 0, 0, 0)
            self.store.broken = False

    @rule(data=st.lists(st.builds(message, kinds, st.integers(0, 9), transactions, payload), min_size=1, max_size=12))
    def requests(self, data: list[bytes]) -> None:
        self._send(b"".join(data))

    @rule(data=st.binary(min_size=1, max_size=600))
    def nonsense(self, data: bytes) -> None:
        self._send(data)

    @rule(
        kind=st.sampled_from([Type.WATCH, Type.WRITE, Type.TRANSACTION_START, Type.MKDIR]),
        inside=transactions,
        first=index,
    )
    def flood(self, kind: Type, inside: int, first: int) -> None:
        """Ask for three hundred of a kind, more than there may be of most; read no answers of the last ones."""
        for number in range(first, first + 300):
            text = b"data/%d\0token" % number if kind is not Type.TRANSACTION_START else b""
            self._send(
                message(kind, number & 0xFFFF, inside, text + b"\0" * (kind is not Type.WRITE)), read=number % 16 < 15
            )

    def _send(self, data: bytes, read: bool = True) -> None:
        """Put bytes into the ring as they fit, and take what comes back or leave it there."""
        for _ in range(40):
            consumed, produced = struct.unpack_from("<II", self.page, 2048)
            room = 1024 - (produced - consumed & 0xFFFFFFFF)
            if not data or room <= 0:
                return
            now, data = data[:room], data[room:]
            for offset, byte in enumerate(now):
                self.page[produced + offset & 1023] = byte
            struct.pack_into("<I", self.page, 2052, produced + len(now) & 0xFFFFFFFF)
            self.kick(self.store.port)
            if read:
                struct.pack_into("<I", self.page, 2056, struct.unpack_from("<I", self.page, 2060)[0])

    @rule(domain=st.booleans(), key=st.integers(0, 400))
    def others_write(self, domain: bool, key: int) -> None:
        """Dom0 changes keys that the guest may watch, whether it takes the events or not."""
        counted()
        who = self.domain if domain else self.victim
        with self.host.lock:
            self.host.xenstore.write(f"/local/domain/{who.domid}/shared/{key}", b"new")

    # The console

    @rule(values=st.tuples(index, index, index, index), content=st.binary(max_size=300))
    def wild_console(self, values: tuple[int, ...], content: bytes) -> None:
        self.domain.memory.write(CONSOLE * PAGE + 1024, content)
        struct.pack_into("<4I", self.domain.memory.frame(CONSOLE), 3072, *values)
        self.kick(self.console.port)

    @rule(count=st.sampled_from([1, 1000, 70_000]))
    def type(self, count: int) -> None:
        counted()
        assert 0 <= self.console.write(b"t" * count) <= count

    @rule(port=st.integers(0, 10))
    def close_a_port(self, port: int) -> None:
        """A guest may close the ports of its own rings."""
        with self.host.lock:
            if port in self.domain.events.channels and port > 2:
                self.domain.events.close(port)
            self.domain.events.alloc_unbound(0)
            self.domain.events.reset() if port == 10 and len(self.domain.events.channels) > 100 else None
            if self.store.port not in self.domain.events.channels:
                self.domain.events.channels.clear()
                for ring in (self.store, self.console):
                    ring.port = self.domain.events.alloc_unbound(0)
                    self.domain.events.connect_backend(ring.port, ring._notified)

    @invariant()
    def quotas_hold(self) -> None:
        store, quotas, domid = self.host.xenstore, self.host.xenstore.quotas, self.domain.domid
        assert store.tree.owned.get(domid, 0) <= quotas.nodes
        assert len(self.connection._watches) <= quotas.watches
        assert len(self.connection._transactions) <= quotas.transactions
        assert len(self.connection._input) <= quotas.input_bytes
        assert self.connection.pending_output() <= quotas.reply_bytes + quotas.event_bytes + 2 * MESSAGE_MAX
        assert len(self.console.history) <= console.HISTORY
        assert len(self.console._typed) <= console.TYPED_MOST
        assert len(self.domain.events.queued) <= 4096

    @invariant()
    def others_are_untouched(self) -> None:
        for domain in (self.domain, self.victim):
            assert self.host.xenstore.read_text(f"/local/domain/{domain.domid}/secret") == "untouched"
        assert not self.host.xenstore.ls(f"/local/domain/{self.victim.domid}/data")

    def teardown(self) -> None:
        with self.host.lock:
            self.host.xenstore.release(self.domain.domid)
        self.others_are_untouched()
        self.host.destroy(self.domain)
        self.host.destroy(self.victim)


refs = st.one_of(st.integers(8, 60), st.integers(0, (1 << 32) - 1))
segments = st.lists(st.tuples(refs, st.integers(0, 9), st.integers(0, 9)), max_size=11)
sectors = st.one_of(st.integers(0, 40), st.integers(2040, 2050), st.integers(0, (1 << 64) - 1))
operations = st.one_of(st.sampled_from([0, 1, 2, 3, 5, 6]), st.integers(0, 255))
slots = st.one_of(
    st.binary(min_size=112, max_size=112),
    st.builds(request, operations, sectors, segments),
    st.builds(indirect, operations, sectors, st.integers(0, 65535), refs),
    st.builds(discard, sectors, sectors),
)
SECRET = b"what lies behind the end of the disk"


class _Inner(AnonymousDisk):
    """A disk that is the first half of a larger one."""

    def __init__(self) -> None:
        super().__init__(2 * MIB)
        AnonymousDisk.write(self, MIB, SECRET)
        self.size = MIB


class Block(Lives):
    """A block front: any ring, grants and keys, while the disk's threads work or do not."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_anew(0)

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.front.host, self.front.domain

    def begin_anew(self, which: int) -> None:
        self.disk = _Inner()
        self.front = Front(self.disk).connect()
        self.other = bytes(self.front.memory.frame(900))

    def destroy(self, host: Host, domain: Domain) -> None:
        """End the domain; what of the disk's work is under way is finished meanwhile."""
        end = threading.Thread(target=host.destroy, args=(domain,))
        end.start()
        while end.is_alive():
            while self.front.work:
                self.front.work.popleft()()
            end.join(0.0005)
        assert self.front.device.counters.in_flight == 0

    @rule(many=st.lists(slots, min_size=1, max_size=34), run=st.booleans())
    def push(self, many: list[bytes], run: bool) -> None:
        counted()
        self.front.push(*many)
        if run:
            self.run()

    @rule(produced=index, event=index, content=st.binary(max_size=64), at=st.integers(0, PAGE - 64))
    def scribble(self, produced: int, event: int, content: bytes, at: int) -> None:
        counted()
        self.front.ring[at : at + len(content)] = content
        struct.pack_into("<I", self.front.ring, 0, produced)
        struct.pack_into("<I", self.front.ring, 12, event)
        self.front.kick()

    @rule(
        ref=st.integers(0, 60),
        flags=st.one_of(st.sampled_from([0, 1, 5]), st.integers(0, 65535)),
        frame=st.integers(0, 1100),
    )
    def regrant(self, ref: int, flags: int, frame: int) -> None:
        """Change a grant while it is in use, but never grant the frame that is looked at."""
        where = GRANT_FRAME * PAGE + 8 * ref
        struct.pack_into("<HHI", self.front.memory.bytes, where, flags, 0, frame if frame != 900 else 0)

    @rule(key=st.sampled_from(["state", "ring-ref", "event-channel", "protocol", "feature-persistent",
                               "ring-page-order"]),
          value=st.one_of(st.integers(-1, 10), st.integers(0, 1 << 33), st.binary(max_size=6)))  # fmt: skip
    def write(self, key: str, value: int | bytes) -> None:
        counted()
        said = value if isinstance(value, bytes) else str(value).encode()
        self.front.store.write(f"{self.front.backend.front}/{key}", said)

    @rule(order=st.none() | st.integers(0, 3), persistent=st.integers(0, 1))
    def again(self, order: int | None, persistent: int) -> None:
        """Close and connect anew, properly or nearly so."""
        counted()
        for state in (5, 6, 1):
            self.front.write("state", state)
        self.run()
        self.front.connect(order, feature_persistent=persistent)

    @rule()
    def run(self) -> None:
        """Let the disk's threads and the domain's do all their work, which must end."""
        work: deque[object] = self.front.work  # type: ignore[assignment]
        for _ in range(2000):
            if not work:
                self.front.domain.events.drain()
                if not work:
                    return
            self.front.work.popleft()()
        raise AssertionError("the work does not end")

    @invariant()
    def nothing_outside_is_touched(self) -> None:
        assert bytes(self.front.memory.frame(900)) == self.other
        assert len(self.front.work) < 200
        assert len(self.front.domain.events.queued) < 5000

    def teardown(self) -> None:
        self.run()
        assert self.front.device.counters.in_flight == 0
        self.disk.size = 2 * MIB
        assert self.disk.read(MIB, len(SECRET)) == SECRET
        self.front.host.destroy(self.front.domain)
