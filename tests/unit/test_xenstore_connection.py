"""A xenstore connection's stream: framing, flow control, death, saving; and the store's in-process side."""

import pytest

from hypervisor.xenstore.connection import Connection, ConnectionState
from hypervisor.xenstore.errors import Invalid, NoEntry, TooBig, XenstoreError
from hypervisor.xenstore.permissions import BOTH, NONE, READ, Permissions
from hypervisor.xenstore.store import Store
from hypervisor.xenstore.wire import HEADER, RingError, Type, message

READ_A = message(Type.READ, 1, 0, b"a\0")


@pytest.fixture
def store() -> Store:
    store = Store()
    store.introduce(3)
    store.mkdir("/local/domain/3")
    store.set_perms("/local/domain/3", Permissions(3))
    store.write("/local/domain/3/a", b"value")
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connection(3)


def test_a_bare_header_is_taken_at_once(guest: Connection) -> None:
    """The guest waits for that before it writes the rest."""
    guest.feed(READ_A[: HEADER.size])
    assert guest.pending_output() == 0
    guest.feed(READ_A[HEADER.size :])
    assert guest.take(100) == message(Type.READ, 1, 0, b"value")


def test_output_is_handed_out_in_any_pieces(guest: Connection) -> None:
    guest.feed(READ_A * 2)
    pieces = [guest.take(5) for _ in range(20)]
    assert b"".join(pieces) == message(Type.READ, 1, 0, b"value") * 2
    assert guest.pending_output() == 0


def test_a_guest_that_does_not_read_is_not_served_until_it_does(guest: Connection, store: Store) -> None:
    writes = b"".join(message(Type.WRITE, index, 0, b"n\0%d" % index) for index in range(30))
    guest.feed(writes)
    assert guest.room() == 0
    assert store.read("/local/domain/3/n") == b"19"
    first = guest.take(HEADER.size + 3)
    assert HEADER.unpack_from(first)[1] == 0
    assert store.read("/local/domain/3/n") == b"20"
    rest = b""
    while guest.pending_output():
        rest += guest.take(100)
    assert len(rest) == 29 * (HEADER.size + 3)
    assert store.read("/local/domain/3/n") == b"29"
    assert guest.room() > 0


def test_large_replies_stop_service_earlier(guest: Connection, store: Store) -> None:
    store.write("/local/domain/3/a", b"x" * 4096)
    guest.feed(READ_A * 20)
    assert guest.pending_output() == 16 * (HEADER.size + 4096)
    assert len(guest.take(1 << 20)) == 16 * (HEADER.size + 4096)
    assert len(guest.take(1 << 20)) == 4 * (HEADER.size + 4096)
    guest.feed(READ_A * 10)
    assert guest.pending_output() == 10 * (HEADER.size + 4096)


def test_more_than_there_is_room_for_breaks_the_protocol(guest: Connection) -> None:
    guest.feed(READ_A * 20)
    for _ in range(100):
        guest.feed(READ_A * 100)
    assert guest.error == RingError.PROTOCOL
    assert guest.pending_output() == 0


def test_a_length_beyond_the_limit_kills_the_connection(guest: Connection, store: Store) -> None:
    guest.feed(message(Type.WATCH, 1, 0, b"a\0t\0") + READ_A)
    guest.feed(HEADER.pack(Type.READ, 1, 0, 4097))
    assert guest.error == RingError.PROTOCOL
    guest.feed(READ_A)
    store.write("/local/domain/3/a", b"")
    assert (guest.pending_output(), guest.take(100), guest.room()) == (0, b"", 0)


def test_a_dead_connection_can_reconnect(guest: Connection) -> None:
    guest.feed(HEADER.pack(Type.READ, 1, 0, 0xFFFFFFFF))
    guest.reset()
    guest.feed(READ_A)
    assert guest.error == RingError.NONE
    assert guest.take(100) == message(Type.READ, 1, 0, b"value")


def test_a_reconnection_ends_the_transactions(guest: Connection) -> None:
    begin = message(Type.TRANSACTION_START, 1, 0, b"\0")
    guest.feed(begin * 10)
    guest.reset()
    guest.feed(begin)
    assert guest.take(100) == message(Type.TRANSACTION_START, 1, 0, b"1\0")
    assert guest.store.dump(3).transactions == (1,)


def test_the_longest_payload_is_served(guest: Connection) -> None:
    guest.feed(message(Type.READ, 1, 0, b"a" * 4096))
    assert guest.take(100) == message(Type.ERROR, 1, 0, b"EINVAL\0")


def test_the_owner_of_the_ring_is_told_of_output_that_it_did_not_ask_for(guest: Connection, store: Store) -> None:
    told: list[int] = []
    guest.on_output = lambda: told.append(guest.pending_output())
    guest.feed(message(Type.WATCH, 1, 0, b"a\0t\0"))
    assert told == []
    guest.take(1000)
    store.write("/local/domain/3/a", b"")
    store.write("/local/domain/3/a/b", b"")
    assert told == [HEADER.size + 4]


def test_a_released_domain_hears_nothing_and_cannot_come_back(guest: Connection, store: Store) -> None:
    guest.feed(message(Type.WATCH, 1, 0, b"/\0t\0") + message(Type.TRANSACTION_START, 1, 0, b"\0"))
    store.release(3)
    guest.reset()
    guest.feed(READ_A)
    store.write("/x", b"")
    assert guest.take(1000) == b""
    assert not store.is_introduced(3)
    with pytest.raises(NoEntry):
        store.release(3)


def test_release_drops_what_a_domain_owns_and_its_rights_elsewhere(store: Store) -> None:
    store.write("/dom0/kept", b"")
    store.set_perms("/dom0/kept", Permissions(0, NONE, ((3, READ), (4, READ))))
    store.set_perms("@releaseDomain", Permissions(0, NONE, ((3, READ),)))
    told: list[str] = []
    store.watch("/local/domain/3/a", told.append)
    store.release(3)
    assert not store.exists("/local/domain/3")
    assert told == ["/local/domain/3/a"] * 2
    assert store.get_perms("/dom0/kept") == Permissions(0, NONE, ((4, READ),))
    assert store.get_perms("@releaseDomain") == Permissions(0)
    store.rm("/local/domain/3")


def test_a_second_introduction_resets_the_connection(guest: Connection, store: Store) -> None:
    told: list[str] = []
    guest.feed(message(Type.WATCH, 1, 0, b"a\0t\0"))
    store.watch("@introduceDomain", told.append)
    assert store.introduce(3) is guest
    assert guest.pending_output() == 0
    assert told == ["@introduceDomain"]


@pytest.mark.parametrize("domid", [-1, 0, 0x7FF0, 65536])
def test_only_guests_are_introduced(store: Store, domid: int) -> None:
    with pytest.raises(Invalid):
        store.introduce(domid)


def test_a_connection_goes_on_as_another_domain(guest: Connection, store: Store) -> None:
    guest.feed(message(Type.WATCH, 1, 0, b"a\0t\x001\0") + message(Type.TRANSACTION_START, 2, 0, b"\0"))
    guest.take(HEADER.size + 3)
    state = store.dump(3)
    guest.feed(READ_A[:7])
    state = store.dump(3)
    fresh = Store()
    fresh.introduce(8)
    fresh.mkdir("/local/domain/8")
    fresh.set_perms("/local/domain/8", Permissions(8))
    fresh.write("/local/domain/8/a", b"there")
    fresh.restore(8, state)
    moved = fresh.connection(8)
    assert moved.take(100) == message(Type.WATCH_EVENT, 0, 0, b"a\0t\0") + message(Type.TRANSACTION_START, 2, 0, b"1\0")
    moved.feed(READ_A[7:])
    assert moved.take(100) == message(Type.READ, 1, 0, b"there")
    fresh.write("/local/domain/8/a/b", b"")
    fresh.write("/local/domain/8/a/b/c", b"")
    assert moved.take(100) == message(Type.WATCH_EVENT, 0, 0, b"a/b\0t\0")
    moved.feed(message(Type.TRANSACTION_END, 3, 1, b"T\0"))
    assert moved.take(100) == message(Type.ERROR, 3, 1, b"EAGAIN\0")


@pytest.mark.parametrize(
    "state",
    [
        ConnectionState(watches=((b"a//b", b"", None),)),
        ConnectionState(watches=((b"a", b"", None),) * 2),
        ConnectionState(watches=tuple((b"a", b"%d" % index, None) for index in range(129))),
        ConnectionState(transactions=(0,)),
        ConnectionState(transactions=tuple(range(1, 12))),
        ConnectionState(unread=bytes(20000)),
        ConnectionState(unsent=bytes(1 << 20)),
    ],
)
def test_a_state_that_no_connection_had_is_refused(guest: Connection, store: Store, state: ConnectionState) -> None:
    with pytest.raises(XenstoreError):
        store.restore(3, state)
    assert store.dump(3) == ConnectionState()


def test_callbacks_run_in_order_and_never_inside_one_another(store: Store) -> None:
    log: list[str] = []

    def follow(path: str) -> None:
        log.append(f"follow {path}")
        if path == "/first":
            store.write("/second", b"")
            log.append("wrote")

    store.watch("/", follow)
    store.watch("/", lambda path: log.append(f"other {path}"))
    log.clear()
    store.write("/first", b"")
    assert log == ["follow /first", "wrote", "other /first", "follow /second", "other /second"]


def test_a_cancelled_watch_is_silent_at_once(store: Store) -> None:
    told: list[str] = []
    handles = [store.watch("/x", lambda _: handles[1].cancel() if len(handles) > 1 else None)]
    handles.append(store.watch("/x", told.append))
    told.clear()
    store.write("/x", b"")
    store.write("/x", b"")
    assert told == []


def test_a_callback_that_raises_does_not_disturb_the_guest(
    guest: Connection, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: str) -> None:
        raise ValueError(path)

    told: list[str] = []
    store.watch("/local/domain/3/a", fail)
    store.watch("/local/domain/3/a", told.append)
    guest.feed(message(Type.WRITE, 1, 0, b"a\0"))
    assert guest.take(100) == message(Type.WRITE, 1, 0, b"OK\0")
    assert told == ["/local/domain/3/a"] * 2
    assert "a xenstore callback failed" in caplog.text


def test_a_callback_may_release_the_domain_that_is_being_served(guest: Connection, store: Store) -> None:
    def gone(path: str) -> None:
        if store.read_text(path) == "6":
            store.release(3)

    store.watch("/local/domain/3/a", gone)
    store.mkdir("/open")
    store.set_perms("/open", Permissions(0, BOTH))
    guest.feed(message(Type.WRITE, 1, 0, b"a\x006") + message(Type.WRITE, 1, 0, b"/open/late\0"))
    assert guest.take(100) == b""
    assert not store.is_introduced(3)
    assert store.ls("/open") == ()


def test_dom0_works_in_process(store: Store) -> None:
    store.write("/x/y", "text")
    store.mkdir("/x/z")
    assert store.ls("/x") == ("y", "z")
    assert store.read_text("/x/y") == "text"
    assert store.read_text("/x/none", "default") == "default"
    store.rm("/x")
    with pytest.raises(NoEntry):
        store.ls("/x")
    with pytest.raises(Invalid):
        store.write("x", b"")
    with pytest.raises(TooBig):
        store.write("/x", bytes(4097))
