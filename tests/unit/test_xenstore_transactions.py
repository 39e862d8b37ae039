"""Transactions of the xenstore: isolation, merging, conflict, limits."""

import pytest

from hypervisor.xenstore import store as store_module
from hypervisor.xenstore.client import Client
from hypervisor.xenstore.connection import Connection
from hypervisor.xenstore.errors import Conflict, NoEntry
from hypervisor.xenstore.permissions import Permissions
from hypervisor.xenstore.store import Store
from hypervisor.xenstore.wire import HEADER, Type, message


def ask(connection: Connection, kind: int, payload: bytes, transaction: int = 0) -> bytes:
    """Send one request and return the payload of its reply."""
    connection.feed(message(kind, 7, transaction, payload))
    length = HEADER.unpack(connection.take(HEADER.size))[3]
    return connection.take(length)


def start(connection: Connection) -> int:
    return int(ask(connection, Type.TRANSACTION_START, b"\0")[:-1])


@pytest.fixture
def store() -> Store:
    store = Store()
    store.introduce(3)
    store.mkdir("/local/domain/3")
    store.set_perms("/local/domain/3", Permissions(3))
    store.write("/local/domain/3/a", b"old")
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connection(3)


def test_changes_show_inside_at_once_and_outside_at_the_end(guest: Connection) -> None:
    inside = start(guest)
    assert ask(guest, Type.WRITE, b"a\0new", inside) == b"OK\0"
    assert ask(guest, Type.READ, b"a\0", inside) == b"new"
    assert ask(guest, Type.READ, b"a\0") == b"old"
    assert ask(guest, Type.TRANSACTION_END, b"T\0", inside) == b"OK\0"
    assert ask(guest, Type.READ, b"a\0") == b"new"


def test_an_aborted_transaction_leaves_nothing(guest: Connection) -> None:
    inside = start(guest)
    ask(guest, Type.RM, b"a\0", inside)
    assert ask(guest, Type.TRANSACTION_END, b"F\0", inside) == b"OK\0"
    assert ask(guest, Type.READ, b"a\0") == b"old"
    assert ask(guest, Type.READ, b"a\0", inside) == b"ENOENT\0"


def test_reads_see_the_start_whatever_happens_since(guest: Connection, store: Store) -> None:
    inside = start(guest)
    store.write("/local/domain/3/a", b"new")
    store.write("/local/domain/3/b", b"new")
    assert ask(guest, Type.READ, b"a\0", inside) == b"old"
    assert ask(guest, Type.DIRECTORY, b"/local/domain/3\0", inside) == b"a\0"
    assert ask(guest, Type.TRANSACTION_END, b"T\0", inside) == b"OK\0"


@pytest.mark.parametrize(
    "seen", [(Type.READ, b"a\0"), (Type.DIRECTORY, b"/local/domain/3\0"), (Type.GET_PERMS, b"a\0"), (Type.READ, b"b\0")]
)
def test_a_writer_that_saw_what_has_changed_gets_eagain(
    guest: Connection, store: Store, seen: tuple[int, bytes]
) -> None:
    inside = start(guest)
    ask(guest, *seen, inside)
    ask(guest, Type.WRITE, b"c\0", inside)
    store.write("/local/domain/3/a", b"new")
    store.set_perms("/local/domain/3/a", Permissions(3, 1))
    store.write("/local/domain/3/b", b"new")
    assert ask(guest, Type.TRANSACTION_END, b"T\0", inside) == b"EAGAIN\0"
    assert ask(guest, Type.READ, b"c\0") == b"ENOENT\0"


def test_changes_beside_one_another_merge(guest: Connection, store: Store) -> None:
    """As in oxenstored, and unlike C xenstored, also in the same directory."""
    first, second = start(guest), start(guest)
    for inside, name in ((first, b"x"), (second, b"y")):
        assert ask(guest, Type.READ, b"a\0", inside) == b"old"
        ask(guest, Type.WRITE, name + b"\x001", inside)
    store.write("/elsewhere", b"")
    assert ask(guest, Type.TRANSACTION_END, b"T\0", first) == b"OK\0"
    assert ask(guest, Type.TRANSACTION_END, b"T\0", second) == b"OK\0"
    assert store.ls("/local/domain/3") == ("a", "x", "y")


def test_a_commit_is_one_event_a_node_and_an_abort_none(guest: Connection, store: Store) -> None:
    told: list[str] = []
    store.watch("/local/domain/3", told.append)
    told.clear()
    for end in (b"F\0", b"T\0"):
        inside = start(guest)
        for value in (b"1", b"2"):
            ask(guest, Type.WRITE, b"x\0" + value, inside)
            ask(guest, Type.WRITE, b"y\0" + value, inside)
        assert told == []
        ask(guest, Type.TRANSACTION_END, end, inside)
    assert told == ["/local/domain/3/x", "/local/domain/3/y"]


def test_a_removal_in_a_transaction_fires_below(guest: Connection, store: Store) -> None:
    store.write("/local/domain/3/d/e", b"")
    told: list[str] = []
    store.watch("/local/domain/3/d/e", told.append)
    inside = start(guest)
    ask(guest, Type.RM, b"d\0", inside)
    store.write("/elsewhere", b"")
    ask(guest, Type.TRANSACTION_END, b"T\0", inside)
    assert told == ["/local/domain/3/d/e"] * 2


def test_transactions_do_not_nest_and_ids_are_a_connection_s_own(guest: Connection, store: Store) -> None:
    inside = start(guest)
    assert ask(guest, Type.TRANSACTION_START, b"\0", inside) == b"EBUSY\0"
    assert ask(store.connect(), Type.READ, b"/\0", inside) == b"ENOENT\0"
    assert ask(guest, Type.TRANSACTION_END, b"T\0") == b"ENOENT\0"
    assert ask(guest, Type.TRANSACTION_END, b"x\0", inside) == b"EINVAL\0"
    assert ask(guest, Type.TRANSACTION_END, b"F\0", inside) == b"OK\0"


def test_the_number_of_open_transactions_is_limited_for_guests(guest: Connection, store: Store) -> None:
    assert [start(guest) for _ in range(10)] == list(range(1, 11))
    assert ask(guest, Type.TRANSACTION_START, b"\0") == b"ENOSPC\0"
    ask(guest, Type.TRANSACTION_END, b"F\0", 4)
    assert start(guest) == 11
    dom0 = store.connect()
    assert len([start(dom0) for _ in range(30)]) == 30


def test_a_transaction_s_length_is_limited(guest: Connection) -> None:
    inside = start(guest)
    replies = [ask(guest, Type.READ, b"a\0", inside) for _ in range(1025)]
    assert replies[-2:] == [b"old", b"ENOSPC\0"]


def test_a_transaction_s_bytes_are_limited(guest: Connection) -> None:
    inside = start(guest)
    replies = [ask(guest, Type.WRITE, b"a\0" + b"x" * 2048, inside) for _ in range(200)]
    assert 100 < replies.count(b"OK\0") < 130
    assert replies[-1] == b"ENOSPC\0"


def test_nodes_made_and_removed_again_in_a_transaction_count(guest: Connection) -> None:
    """Each deep path costs a thousand nodes for two kilobytes of request."""
    inside = start(guest)
    for expected in (b"OK\0", b"ENOSPC\0"):
        assert ask(guest, Type.MKDIR, b"/local/domain/3" + b"/x" * 900 + b"\0", inside) == expected
        assert ask(guest, Type.RM, b"x\0", inside) == b"OK\0"


def test_a_quota_used_up_meanwhile_makes_a_conflict(guest: Connection) -> None:
    inside = start(guest)
    ask(guest, Type.MKDIR, b"/local/domain/3" + b"/x" * 500 + b"\0", inside)
    ask(guest, Type.MKDIR, b"/local/domain/3" + b"/y" * 500 + b"\0")
    assert ask(guest, Type.TRANSACTION_END, b"T\0", inside) == b"EAGAIN\0"


def test_a_transaction_left_open_for_long_goes_on_but_ends_in_eagain(
    guest: Connection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This bounds the memory that its copy pins."""
    monkeypatch.setattr(store_module, "STALE_AFTER", 10)
    inside = start(guest)
    for index in range(12):
        store.write("/local/domain/3/a", b"%d" % index)
    assert ask(guest, Type.READ, b"a\0", inside) == b"9"
    assert ask(guest, Type.WRITE, b"c\0", inside) == b"OK\0"
    assert ask(guest, Type.TRANSACTION_END, b"T\0", inside) == b"EAGAIN\0"
    assert ask(guest, Type.READ, b"c\0") == b"ENOENT\0"


def test_in_process_a_block_commits_or_leaves_nothing(store: Store) -> None:
    with store.transaction() as client:
        client.write("/x", "1")
        assert not store.exists("/x")
    assert store.read("/x") == b"1"
    with pytest.raises(NoEntry), store.transaction() as client:
        client.write("/x", "2")
        client.read("/none")
    assert store.read("/x") == b"1"


def test_in_process_a_conflict_raises_from_a_block_and_repeats_a_function(store: Store) -> None:
    store.write("/n", "0")
    with pytest.raises(Conflict), store.transaction() as client:
        client.write("/m", client.read("/n"))
        store.write("/n", "1")
    seen: list[bytes] = []

    def add(client: Client) -> int:
        seen.append(client.read("/n"))
        if len(seen) == 1:
            store.write("/n", "5")
        client.write("/n", b"%d" % (int(seen[-1]) + 1))
        return int(seen[-1])

    assert store.transact(add) == 5
    assert store.read("/n") == b"6"
    assert not store.exists("/m")


def test_in_process_conflicts_without_end_raise_at_last(store: Store) -> None:
    store.write("/n", "0")

    def never(client: Client) -> None:
        client.write("/m", client.read("/n"))
        store.write("/n", store.read("/n") + b"0")

    with pytest.raises(Conflict):
        store.transact(never, attempts=3)
    assert store.read("/n") == b"0000"


def test_a_node_is_written_with_its_permissions(store: Store) -> None:
    """A new one, one that is there, and on both ways of a commit; ancestors inherit."""
    with store.transaction() as client:
        client.write("/local/domain/3/data/x", b"1", Permissions(5))
        client.write("/local/domain/3/a", b"2", Permissions(5))
        store.write("/other", b"")  # so all is done again
    paths = ("data", "data/x", "a")
    assert [store.get_perms(f"/local/domain/3/{path}").owner for path in paths] == [3, 5, 5]
    assert store.read("/local/domain/3/a") == b"2"
