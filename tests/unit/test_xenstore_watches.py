"""Watches of the xenstore: who hears what, when."""

from collections.abc import Callable

import pytest

from hypervisor.xenstore.connection import Connection
from hypervisor.xenstore.permissions import NONE, READ, Caller, Permissions
from hypervisor.xenstore.store import Store
from hypervisor.xenstore.watches import Watch, Watches
from hypervisor.xenstore.wire import HEADER, Type, message


def ask(connection: Connection, kind: int, payload: bytes, transaction: int = 0) -> list[bytes]:
    """Send one request; return the payload of its reply, then those of events."""
    connection.feed(message(kind, 7, transaction, payload))
    return heard(connection)


def heard(connection: Connection) -> list[bytes]:
    """Take all messages that wait and return their payloads."""
    data = connection.take(1 << 20)
    found = []
    while data:
        length = HEADER.unpack_from(data)[3]
        found.append(data[HEADER.size : HEADER.size + length])
        data = data[HEADER.size + length :]
    return found


@pytest.fixture
def store() -> Store:
    store = Store()
    for domid in (3, 4):
        store.introduce(domid)
        store.mkdir(f"/local/domain/{domid}")
        store.set_perms(f"/local/domain/{domid}", Permissions(domid))
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connection(3)


def test_a_new_watch_fires_once_even_where_there_is_nothing(guest: Connection) -> None:
    assert ask(guest, Type.WATCH, b"none\0t\0") == [b"OK\0", b"none\0t\0"]


def test_the_transaction_id_of_a_watch_is_ignored(guest: Connection) -> None:
    assert ask(guest, Type.WATCH, b"a\0t\0", 99) == [b"OK\0", b"a\0t\0"]
    assert ask(guest, Type.UNWATCH, b"a\0t\0", 99) == [b"OK\0"]


def test_an_event_has_neither_request_nor_transaction_id(guest: Connection) -> None:
    guest.feed(message(Type.WATCH, 7, 0, b"a\0t\0"))
    data = guest.take(100)[HEADER.size + 3 :]
    assert HEADER.unpack_from(data) == (Type.WATCH_EVENT, 0, 0, 4)


def test_the_path_of_an_event_is_relative_if_the_watch_s_is(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"a\0rel\0")
    ask(guest, Type.WATCH, b"/local/domain/3/a\0abs\0")
    store.write("/local/domain/3/a/b", b"1")
    assert set(heard(guest)) == {b"a/b\0rel\0", b"/local/domain/3/a/b\0abs\0"}


def test_one_s_own_write_is_answered_before_its_event(guest: Connection) -> None:
    ask(guest, Type.WATCH, b"a\0t\0")
    assert ask(guest, Type.WRITE, b"a\x001") == [b"OK\0", b"a\0t\0"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda store: store.write("/local/domain/3/a/b", b"1"), [b"a/b\0t\0"]),
        (lambda store: store.mkdir("/local/domain/3/a/new/x"), [b"a/new/x\0t\0"]),
        (lambda store: store.mkdir("/local/domain/3/a/b"), []),
        (lambda store: store.rm("/local/domain/3/a/b"), [b"a/b\0t\0"]),
        (lambda store: store.rm("/local/domain/3/a/none"), []),
        (lambda store: store.set_perms("/local/domain/3/a/b", Permissions(3, READ)), [b"a/b\0t\0"]),
        (lambda store: store.rm("/local/domain/3"), [b"a\0t\0"]),
        (lambda store: store.rm("/local/domain/3/ab"), []),
        (lambda store: store.write("/local/domain/3", b"1"), []),
    ],
)
def test_a_change_at_or_below_the_watched_path_fires(
    guest: Connection, store: Store, change: Callable[[Store], object], expected: list[bytes]
) -> None:
    store.write("/local/domain/3/a/b", b"0")
    store.write("/local/domain/3/ab", b"0")
    ask(guest, Type.WATCH, b"a\0t\0")
    change(store)
    assert heard(guest) == expected


def test_removal_of_an_ancestor_fires_for_a_deeply_nested_node_with_its_own_path(
    guest: Connection, store: Store
) -> None:
    store.write("/local/domain/3/a/b/c", b"")
    ask(guest, Type.WATCH, b"a/b/c\0t\0")
    ask(guest, Type.WATCH, b"a/b/none\0t\0")
    store.rm("/local/domain/3/a")
    assert heard(guest) == [b"a/b/c\0t\0"]


@pytest.mark.parametrize(("depth", "expected"), [(b"0", 1), (b"1", 2), (b"2", 3)])
def test_depth_limits_the_levels_below(guest: Connection, store: Store, depth: bytes, expected: int) -> None:
    ask(guest, Type.WATCH, b"a\0t\0" + depth + b"\0")
    for path in ("a", "a/b", "a/b/c"):
        store.write(f"/local/domain/3/{path}", b"")
    assert len(heard(guest)) == expected


def test_what_a_domain_may_not_read_it_does_not_hear(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"/local/domain/4\0t\0")
    store.write("/local/domain/4/secret", b"1")
    store.rm("/local/domain/4/secret")
    assert heard(guest) == []


def test_readers_of_the_node_or_of_its_parent_hear(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"/local/domain/4\0t\0")
    store.write("/local/domain/4/open", b"1")
    store.set_perms("/local/domain/4/open", Permissions(4, NONE, ((3, READ),)))
    store.write("/local/domain/4/open", b"2")
    assert heard(guest) == [b"/local/domain/4/open\0t\0"]
    store.write("/local/domain/4/open/below", b"")
    store.set_perms("/local/domain/4/open/below", Permissions(4))
    assert heard(guest) == [b"/local/domain/4/open/below\0t\0"]


def test_readers_of_the_parent_hear_of_a_node_that_they_may_not_read(guest: Connection, store: Store) -> None:
    store.set_perms("/local/domain/4", Permissions(4, READ))
    store.write("/local/domain/4/closed/below", b"1")
    store.set_perms("/local/domain/4/closed/below", Permissions(4))
    ask(guest, Type.WATCH, b"/local/domain/4\0t\0")
    ask(guest, Type.WATCH, b"/local/domain/4/closed/below\0u\0")
    path = b"/local/domain/4/closed/below\0"
    store.write("/local/domain/4/closed/below", b"2")
    assert set(heard(guest)) == {path + b"t\0", path + b"u\0"}
    store.rm("/local/domain/4/closed/below")
    assert set(heard(guest)) == {path + b"t\0", path + b"u\0"}
    store.write("/local/domain/4/closed/below", b"3")
    store.set_perms("/local/domain/4/closed/below", Permissions(4))
    heard(guest)
    store.rm("/local/domain/4")
    assert heard(guest) == [b"/local/domain/4\0t\0", path + b"u\0"]


def test_a_removal_is_heard_by_readers_of_what_was_the_parent(guest: Connection, store: Store) -> None:
    """In a transaction that parent can be gone when the event is told."""
    store.write("/x/y/z", b"")
    store.set_perms("/x/y", Permissions(0, READ))
    ask(guest, Type.WATCH, b"/x/y/z\0t\0")
    with store.transaction() as client:
        client.rm("/x/y/z")
        client.rm("/x")
    assert heard(guest) == [b"/x/y/z\0t\0"]


def test_what_stood_outside_counts_for_a_node_removed_twice_in_a_transaction(store: Store) -> None:
    store.write("/x/y", b"")
    told: list[str] = []
    store.watch("/x/y", told.append)
    told.clear()
    with store.transaction() as client:
        client.rm("/x")
        client.mkdir("/x")
        client.rm("/x")
    assert told == ["/x/y"]


def test_a_removed_watch_leaves_nothing_behind() -> None:
    watches = Watches()
    watch = Watch("/a/b", b"", Caller(3), lambda watch, path: None)
    watches.add(watch)
    assert list(watches.below("/a")) == ["/a/b"]
    watches.remove(watch)
    watches.remove(watch)
    assert list(watches.below("/a")) == []
    assert watches.concerned("/a/b") == []


def test_the_loss_of_permission_is_heard_and_then_nothing(guest: Connection, store: Store) -> None:
    store.write("/local/domain/4/open", b"1")
    store.set_perms("/local/domain/4/open", Permissions(4, READ))
    ask(guest, Type.WATCH, b"/local/domain/4/open\0t\0")
    store.set_perms("/local/domain/4/open", Permissions(4))
    assert heard(guest) == [b"/local/domain/4/open\0t\0"]
    store.write("/local/domain/4/open", b"2")
    assert heard(guest) == []


def test_the_same_watch_twice_is_eexist_and_another_token_is_another_watch(guest: Connection) -> None:
    ask(guest, Type.WATCH, b"a\0t\0")
    assert ask(guest, Type.WATCH, b"/local/domain/3/a\0t\0") == [b"EEXIST\0"]
    assert ask(guest, Type.WATCH, b"a\0u\0") == [b"OK\0", b"a\0u\0"]
    assert ask(guest, Type.WRITE, b"a\0")[1:] == [b"a\0t\0", b"a\0u\0"]


def test_unwatch_ends_a_watch(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"a\0t\0")
    assert ask(guest, Type.UNWATCH, b"a\0u\0") == [b"ENOENT\0"]
    assert ask(guest, Type.UNWATCH, b"a\0t\0") == [b"OK\0"]
    store.write("/local/domain/3/a", b"1")
    assert heard(guest) == []


def test_reset_ends_all_watches_and_transactions(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"a\0t\0")
    (number,) = ask(guest, Type.TRANSACTION_START, b"\0")
    assert ask(guest, Type.RESET_WATCHES, b"\0") == [b"OK\0"]
    store.write("/local/domain/3/a", b"1")
    assert ask(guest, Type.TRANSACTION_END, b"T\0", int(number[:-1])) == [b"ENOENT\0"]


def test_the_number_of_watches_is_limited(guest: Connection) -> None:
    for index in range(128):
        assert ask(guest, Type.WATCH, b"a\0%d\0" % index)[0] == b"OK\0"
    assert ask(guest, Type.WATCH, b"a\0x\0") == [b"ENOSPC\0"]


def test_an_event_that_waits_is_not_sent_twice(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"a\0t\0")
    store.write("/local/domain/3/a", b"1")
    store.write("/local/domain/3/a", b"2")
    assert heard(guest) == [b"a\0t\0"]
    store.write("/local/domain/3/a", b"3")
    assert heard(guest) == [b"a\0t\0"]


def test_an_event_that_fits_no_message_is_not_sent(guest: Connection, store: Store) -> None:
    ask(guest, Type.WATCH, b"a\0" + b"t" * 4080 + b"\0")
    store.write("/local/domain/3/a/" + "b" * 40, b"")
    assert heard(guest) == []


def test_a_flood_of_events_costs_bounded_memory_and_the_fact_survives(guest: Connection, store: Store) -> None:
    """Beyond the limit a watch is marked, and fires with its own path when there is place."""
    ask(guest, Type.WATCH, b"a\0t\0")
    for index in range(5000):
        store.write(f"/local/domain/3/a/{index:040}", b"")
    assert guest.pending_output() <= store.quotas.event_bytes
    assert heard(guest)[-1].startswith(b"a/")
    assert heard(guest) == [b"a\0t\0"]
    assert heard(guest) == []


def test_special_watches_are_for_dom0_and_whom_it_permits(guest: Connection, store: Store) -> None:
    told: list[str] = []
    store.watch("@introduceDomain", told.append)
    assert ask(guest, Type.WATCH, b"@introduceDomain\0t\0") == [b"OK\0", b"@introduceDomain\0t\0"]
    store.introduce(5)
    assert heard(guest) == []
    store.set_perms("@introduceDomain", Permissions(0, NONE, ((3, READ),)))
    heard(guest)
    store.introduce(6)
    assert heard(guest) == [b"@introduceDomain\0t\0"]
    assert told == ["@introduceDomain"] * 4


def test_special_watches_tell_the_domid_if_asked(store: Store) -> None:
    told: list[str] = []
    store.watch("@releaseDomain", lambda path: told.append(f"1 {path}"), depth=1)
    store.watch("@releaseDomain/4", lambda path: told.append(f"only {path}"))
    store.watch("@releaseDomain", lambda path: told.append(f"any {path}"))
    told.clear()
    store.release(3)
    assert sorted(told) == ["1 @releaseDomain/3", "any @releaseDomain"]
    told.clear()
    store.release(4)
    assert sorted(told) == ["1 @releaseDomain/4", "any @releaseDomain", "only @releaseDomain/4"]


def test_a_shutdown_is_announced_once_until_resume(store: Store) -> None:
    told: list[str] = []
    store.watch("@releaseDomain", told.append)
    told.clear()
    store.shut_down(3)
    store.shut_down(3)
    assert told == ["@releaseDomain"]
    store.resume(3)
    store.shut_down(3)
    assert told == ["@releaseDomain"] * 2
