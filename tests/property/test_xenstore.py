"""The xenstore against a naive model, against any bytes, and against any split of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.xenstore.connection import Connection
from hypervisor.xenstore.quotas import Quotas
from hypervisor.xenstore.store import Store
from hypervisor.xenstore.wire import HEADER, PAYLOAD_MAX, Type, message

QUOTAS = Quotas(nodes=6, value_bytes=3, permissions=3, watches=3, transactions=2)
PATHS = ["/", "/a", "/a/b", "/a/b/c", "/a/e", "/f", "/f/b", "/f/b/c"]
ACTORS = [0, 3, 4]
PERMISSIONS = ["n3", "n4", "r3", "b4", "n3 r4", "n4 b3", "n0", "w0 r4", "r0", "n3 r4 n0 b4"]
Nodes = dict[str, tuple[bytes, tuple[str, ...]]]


def may(actor: int, perms: tuple[str, ...], wanted: str) -> bool:
    """Read the rules of xenstore.txt off the wire form."""
    if actor == 0 or perms[0][1:] == str(actor):
        return True
    letter = next((perm[0] for perm in perms[1:] if perm[1:] == str(actor)), perms[0][0])
    return letter in ("b", wanted)


def above(path: str) -> str:
    return path.rsplit("/", 1)[0] or "/"


def inside(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


@dataclass
class Event:
    """What one operation tells: a path, permissions of which one must be readable, and what went below."""

    path: str
    audience: set[tuple[str, ...]]
    gone: Nodes = field(default_factory=dict)


def apply(nodes: Nodes, actor: int, kind: int, path: str, argument: str) -> tuple[bytes, list[Event]]:
    """Do an operation on a model tree in place; return the reply and the events."""
    nearest = path
    while nearest not in nodes:
        nearest = above(nearest)
    missing = nearest != path
    writes = kind in (Type.WRITE, Type.MKDIR, Type.RM, Type.SET_PERMS)
    if not may(actor, nodes[nearest][1], "w" if writes else "r"):
        return b"EACCES\0", []
    if kind == Type.WRITE or (kind == Type.MKDIR and missing):
        return put(nodes, actor, path, argument.encode() if kind == Type.WRITE else b"")
    if kind == Type.RM:
        return remove(nodes, path)
    if kind == Type.MKDIR:
        return b"OK\0", []
    if missing:
        return b"ENOENT\0", []
    value, perms = nodes[path]
    if kind == Type.READ:
        return value, []
    if kind == Type.GET_PERMS:
        return "".join(f"{perm}\0" for perm in perms).encode(), []
    if kind == Type.DIRECTORY:
        names = [other.rsplit("/", 1)[1] for other in nodes if other != "/" and above(other) == path]
        return "".join(f"{name}\0" for name in names).encode(), []
    new = tuple(argument.split())
    if actor != 0 and perms[0][1:] != str(actor):
        return b"EACCES\0", []
    if actor != 0 and perms[0][1:] != new[0][1:]:
        return b"EPERM\0", []
    nodes[path] = value, new
    return b"OK\0", [Event(path, {perms, new})]


def put(nodes: Nodes, actor: int, path: str, value: bytes) -> tuple[bytes, list[Event]]:
    if actor != 0 and len(value) > QUOTAS.value_bytes:
        return b"ENOSPC\0", []
    if path in nodes:
        nodes[path] = value, nodes[path][1]
        return b"OK\0", [Event(path, {nodes[path][1]})]
    made = [path]
    while above(made[0]) not in nodes:
        made.insert(0, above(made[0]))
    owned = sum(perms[0][1:] == str(actor) for _, perms in nodes.values())
    if actor != 0 and owned + len(made) > QUOTAS.nodes:
        return b"ENOSPC\0", []
    perms = nodes[above(made[0])][1]
    if actor != 0:
        perms = (f"{perms[0][0]}{actor}", *perms[1:])
    for place in made:
        nodes[place] = (value if place == path else b""), perms
    return b"OK\0", [Event(path, {perms})]


def remove(nodes: Nodes, path: str) -> tuple[bytes, list[Event]]:
    if path == "/":
        return b"EINVAL\0", []
    if path not in nodes:
        return (b"OK\0" if above(path) in nodes else b"ENOENT\0"), []
    audience = {nodes[path][1], nodes[above(path)][1]}
    gone = {place: nodes.pop(place) for place in list(nodes) if inside(place, path)}
    return b"OK\0", [Event(path, audience, gone)]


def expected(watch: tuple[int, str, int | None], events: list[Event], nodes: Nodes) -> set[str]:
    """Return the paths that a watch must tell after a change that left the model at `nodes`."""
    actor, top, depth = watch
    told = set()
    for event in events:
        audience = event.audience | ({nodes[above(event.path)][1]} if above(event.path) in nodes else set())
        levels = len(event.path.rstrip("/").split("/")) - len(top.rstrip("/").split("/"))
        near = inside(event.path, top) and (depth is None or levels <= depth)
        if near and any(may(actor, perms, "r") for perms in audience):
            told.add(event.path)
        if top in event.gone and top != event.path:
            audience = {event.gone[top][1], event.gone[above(top)][1]}
            if any(may(actor, perms, "r") for perms in audience):
                told.add(top)
    return told


def merged(events: list[Event]) -> list[Event]:
    """Join the events of one node in a transaction; what went first stood outside."""
    found: dict[str, Event] = {}
    for event in events:
        known = found.setdefault(event.path, Event(event.path, set()))
        known.audience |= event.audience
        known.gone = known.gone or event.gone
    return list(found.values())


@dataclass
class Open:
    """A transaction of the model."""

    number: int
    nodes: Nodes
    version: int
    log: list[tuple[int, str, str, bytes]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    """Compare replies, events and the tree after each request of three domains."""

    @initialize()
    def start(self) -> None:
        self.store = Store(QUOTAS)
        self.store.rm("/tool")
        self.connections = {0: self.store.connect(), **{domid: self.store.introduce(domid) for domid in ACTORS[1:]}}
        self.nodes: Nodes = {"/": (b"", ("n0",))}
        self.version = 0
        self.watches: list[tuple[int, str, int | None, bytes]] = []
        self.open: dict[int, list[Open]] = {actor: [] for actor in ACTORS}
        for path, perms in (("/a", "n3 r4"), ("/a/b", "n3"), ("/f", "r4"), ("/f/b", "n4")):
            self.request(0, 0, Type.MKDIR, path, "")
            self.request(0, 0, Type.SET_PERMS, path, perms)
        for actor in ACTORS[1:]:
            self.watch(actor, "/", b"all", None)

    def ask(self, actor: int, kind: int, payload: bytes, number: int = 0) -> bytes:
        """Send a request; return the reply and keep the events that all connections got."""
        self.connections[actor].feed(message(kind, 9, number, payload))
        self.heard: dict[int, list[tuple[bytes, bytes]]] = {}
        reply = b""
        for domid, connection in self.connections.items():
            messages = parsed(connection.take(1 << 20))
            events = [body.split(b"\0") for got, body in messages if got == Type.WATCH_EVENT]
            self.heard[domid] = [(path, token) for path, token, _ in events]
            replies = [body for got, body in messages if got != Type.WATCH_EVENT]
            assert len(replies) == (domid == actor)
            reply = replies[0] if replies else reply
        return reply

    def check_events(self, events: list[Event]) -> None:
        for actor in ACTORS:
            due = {
                (path.encode(), token)
                for owner, top, depth, token in self.watches
                if owner == actor
                for path in expected((actor, top, depth), events, self.nodes)
            }
            assert set(self.heard[actor]) == due
            assert len(self.heard[actor]) == len(due)

    def request(self, actor: int, number: int, kind: int, path: str, argument: str) -> None:
        said = path + "\0" + ("".join(f"{item}\0" for item in argument.split()) if kind == Type.SET_PERMS else "")
        reply = self.ask(actor, kind, (said + (argument if kind == Type.WRITE else "")).encode(), number)
        transaction = next((one for one in self.open[actor] if one.number == number), None)
        if kind == Type.SET_PERMS and actor != 0 and len(argument.split()) > QUOTAS.permissions:
            assert reply == b"ENOSPC\0"
            self.check_events([])
            if transaction:
                transaction.log.append((kind, path, argument, reply))
            return
        outcome, events = apply(transaction.nodes if transaction else self.nodes, actor, kind, path, argument)
        assert reply == outcome
        if transaction:
            transaction.log.append((kind, path, argument, reply))
            transaction.events += events
            self.check_events([])
        else:
            self.version += len(events)
            self.check_events(events)

    @rule(
        actor=st.sampled_from(ACTORS),
        which=st.integers(0, 4),
        kind=st.sampled_from([Type.READ, Type.DIRECTORY, Type.GET_PERMS, Type.WRITE, Type.WRITE, Type.MKDIR, Type.RM]),
        path=st.sampled_from(PATHS),
        value=st.sampled_from(["", "1", "22", "4444"]),
    )
    def operate(self, actor: int, which: int, kind: int, path: str, value: str) -> None:
        self.request(actor, self.number(actor, which), kind, path, value if kind == Type.WRITE else "")

    @rule(
        actor=st.sampled_from(ACTORS),
        which=st.integers(0, 4),
        path=st.sampled_from(PATHS),
        perms=st.sampled_from(PERMISSIONS),
    )
    def permit(self, actor: int, which: int, path: str, perms: str) -> None:
        self.request(actor, self.number(actor, which), Type.SET_PERMS, path, perms)

    def number(self, actor: int, which: int) -> int:
        return self.open[actor][which].number if which < len(self.open[actor]) else 0

    @rule(actor=st.sampled_from(ACTORS))
    def begin(self, actor: int) -> None:
        reply = self.ask(actor, Type.TRANSACTION_START, b"\0")
        if actor != 0 and len(self.open[actor]) == QUOTAS.transactions:
            assert reply == b"ENOSPC\0"
        else:
            self.open[actor].append(Open(int(reply[:-1]), dict(self.nodes), self.version))

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data(), commit=st.sampled_from([True, True, True, False]))
    def end(self, data: st.DataObject, commit: bool) -> None:
        actor = data.draw(st.sampled_from([actor for actor in ACTORS if self.open[actor]]))
        transaction = self.open[actor].pop(data.draw(st.integers(0, len(self.open[actor]) - 1)))
        reply = self.ask(actor, Type.TRANSACTION_END, b"T\0" if commit else b"F\0", transaction.number)
        nodes, events = transaction.nodes, transaction.events
        if commit and events and transaction.version != self.version:
            nodes, events, same = self.replayed(actor, transaction)
            if not same:
                assert reply == b"EAGAIN\0"
                self.check_events([])
                return
        assert reply == b"OK\0"
        if commit and events:
            self.nodes = nodes
            self.version += 1
        self.check_events(merged(events) if commit else [])

    def replayed(self, actor: int, transaction: Open) -> tuple[Nodes, list[Event], bool]:
        """Return what the transaction would do now, and whether it would be told the same."""
        nodes, events, same = dict(self.nodes), [], True
        for kind, path, argument, reply in transaction.log:
            if kind == Type.SET_PERMS and actor != 0 and len(argument.split()) > QUOTAS.permissions:
                continue
            again, more = apply(nodes, actor, kind, path, argument)
            same = same and again == reply
            events += more
        return nodes, events, same

    @rule(
        actor=st.sampled_from(ACTORS),
        path=st.sampled_from(PATHS),
        token=st.sampled_from([b"t", b"u"]),
        depth=st.sampled_from([None, None, 0, 1, 2]),
    )
    def watch(self, actor: int, path: str, token: bytes, depth: int | None) -> None:
        limit = b"" if depth is None else b"%d\0" % depth
        reply = self.ask(actor, Type.WATCH, path.encode() + b"\0" + token + b"\0" + limit)
        own = [watch for watch in self.watches if watch[0] == actor]
        if any((watch[1], watch[3]) == (path, token) for watch in own):
            assert reply == b"EEXIST\0"
        elif actor != 0 and len(own) == QUOTAS.watches:
            assert reply == b"ENOSPC\0"
        else:
            assert reply == b"OK\0"
            assert self.heard[actor] == [(path.encode(), token)]
            self.watches.append((actor, path, depth, token))

    @precondition(lambda self: self.watches)
    @rule(data=st.data())
    def unwatch(self, data: st.DataObject) -> None:
        watch = data.draw(st.sampled_from(self.watches))
        assert self.ask(watch[0], Type.UNWATCH, watch[1].encode() + b"\0" + watch[3] + b"\0") == b"OK\0"
        self.watches.remove(watch)

    @invariant()
    def the_tree_is_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        found: Nodes = {}
        stack = ["/"]
        while stack:
            path = stack.pop()
            perms = tuple(self.store.get_perms(path).encode().decode().split("\0")[:-1])
            found[path] = self.store.read(path), perms
            stack += [f"{path.rstrip('/')}/{name}" for name in self.store.ls(path)]
        assert found == self.nodes
        owned = self.store.tree.owned
        assert all(
            owned.get(domid, 0) == sum(perms[0][1:] == str(domid) for _, perms in found.values())
            for domid in ACTORS[1:]
        )


def parsed(data: bytes) -> list[tuple[int, bytes]]:
    """Split a stream of whole messages into types and payloads."""
    found = []
    while data:
        kind, _, _, length = HEADER.unpack_from(data)
        assert length <= PAYLOAD_MAX and len(data) >= HEADER.size + length
        found.append((kind, data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    return found


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)

TEXTS = st.sampled_from(
    [
        *(b"a", b"a/b", b"/", b"/local/domain/3", b"/local/domain/3/a", b"@releaseDomain", b"", b"//", b"/a" * 1200),
        *(b"T", b"F", b"t", b"n3", b"b4", b"0", b"3", b"4", b"65535", b"-1", b"x" * 2048, b"\xff"),
    ]
)
PAYLOADS = st.one_of(
    st.lists(TEXTS, max_size=4).map(lambda texts: b"".join(text + b"\0" for text in texts)[:PAYLOAD_MAX]),
    st.lists(TEXTS, max_size=3).map(lambda texts: b"\0".join(texts)[:PAYLOAD_MAX]),
    st.binary(max_size=60),
)
MESSAGES = st.builds(message, st.integers(0, 24), st.integers(0, 2**32 - 1), st.integers(0, 3), PAYLOADS)


def fresh() -> Connection:
    store = Store()
    guest = store.introduce(3)
    store.introduce(4)
    store.mkdir("/local/domain/3")
    store.connect().feed(message(Type.SET_PERMS, 0, 0, b"/local/domain/3\0n3\0"))
    return guest


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.one_of(MESSAGES, MESSAGES, st.binary(max_size=200)), st.integers(1, 60), st.integers(0, 200)),
        max_size=25,
    )
)
def test_no_bytes_raise_or_grow_the_buffers(pieces: list[tuple[bytes, int, int]]) -> None:
    """A guest repeats, cuts and ignores as it likes; the caller ignores `room`."""
    guest = fresh()
    quotas = guest.store.quotas
    output = b""
    for data, times, taken in pieces:
        guest.feed(data * times)
        output += guest.take(taken)
        assert len(guest.dump().unread) <= quotas.input_bytes
        assert guest.pending_output() <= quotas.reply_bytes + HEADER.size + PAYLOAD_MAX + quotas.event_bytes
    assert b"EIO\0" not in output
    assert guest.store.exists("/")


FITTING = st.one_of(
    st.builds(
        lambda kind, texts, number: message(kind, 7, number, b"".join(text + b"\0" for text in texts)),
        st.sampled_from([Type.READ, Type.MKDIR, Type.RM, Type.DIRECTORY, Type.TRANSACTION_END]),
        st.tuples(st.sampled_from([b"a", b"a/b", b"c", b"T"])),
        st.integers(0, 2),
    ),
    st.builds(
        lambda kind, path, text, number: message(kind, 8, number, path + b"\0" + text + b"\0"),
        st.sampled_from([Type.WRITE, Type.WRITE, Type.WATCH, Type.UNWATCH, Type.DIRECTORY_PART]),
        st.sampled_from([b"a", b"a/b", b"c"]),
        st.sampled_from([b"0", b"t"]),
        st.integers(0, 2),
    ),
    st.just(message(Type.TRANSACTION_START, 9, 0, b"\0")),
    MESSAGES,
)


@settings(max_examples=150, deadline=None)
@given(messages=st.lists(FITTING, max_size=30), cuts=st.lists(st.integers(1, 70), min_size=1, max_size=10))
def test_any_split_of_a_stream_gets_the_same_answers(messages: list[bytes], cuts: list[int]) -> None:
    """Replies are the same, and so are the events but for how often an event that waits is told."""
    whole, cut = fresh(), fresh()
    given_whole = b""
    for data in messages:
        whole.feed(data)
        given_whole += whole.take(1 << 20)
    stream = b"".join(messages)
    given_cut, index = b"", 0
    while stream:
        size = cuts[index % len(cuts)]
        cut.feed(stream[:size])
        stream, index = stream[size:], index + 1
        given_cut += cut.take(cuts[0])
        while not cut.room():
            given_cut += cut.take(cuts[0])
    while cut.pending_output():
        given_cut += cut.take(cuts[0])
    one, other = parsed(given_whole), parsed(given_cut)
    assert [reply for reply in one if reply[0] != Type.WATCH_EVENT] == [
        reply for reply in other if reply[0] != Type.WATCH_EVENT
    ]
    assert set(one) == set(other)
    assert whole.dump() == cut.dump()
