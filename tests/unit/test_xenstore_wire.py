"""Each message type of the xenstore, as a domain's bytes bring it."""

import pytest

from hypervisor.xenstore.connection import Connection
from hypervisor.xenstore.permissions import NONE, READ, WRITE, Permissions
from hypervisor.xenstore.store import Store
from hypervisor.xenstore.wire import HEADER, Type, message


def ask(connection: Connection, kind: int, payload: bytes, transaction: int = 0) -> bytes:
    """Send one request; return the reply's payload, which is an error's name in case of one."""
    connection.feed(message(kind, 77, transaction, payload))
    reply = connection.take(HEADER.size)
    got, request, inside, length = HEADER.unpack(reply)
    body = connection.take(length)
    assert (request, inside) == (77, transaction)
    assert got == kind or got == Type.ERROR
    assert body != b"EIO\0"
    return body


@pytest.fixture
def store() -> Store:
    """Domain 3 owns its home and 4 may read `shared` in it."""
    store = Store()
    for domid in (3, 4):
        store.introduce(domid)
        store.mkdir(f"/local/domain/{domid}")
        store.set_perms(f"/local/domain/{domid}", Permissions(domid))
    store.write("/local/domain/3/shared", b"both")
    store.set_perms("/local/domain/3/shared", Permissions(3, NONE, ((4, READ),)))
    return store


@pytest.fixture
def guest(store: Store) -> Connection:
    return store.connection(3)


@pytest.fixture
def other(store: Store) -> Connection:
    return store.connection(4)


@pytest.fixture
def dom0(store: Store) -> Connection:
    return store.connect()


def test_what_is_written_is_read(guest: Connection, store: Store) -> None:
    assert ask(guest, Type.WRITE, b"a/b\0x\0y") == b"OK\0"
    assert ask(guest, Type.READ, b"/local/domain/3/a/b\0") == b"x\0y"
    assert ask(guest, Type.READ, b"a\0") == b""
    assert store.get_perms("/local/domain/3/a/b") == Permissions(3)


def test_mkdir_leaves_an_existing_value(guest: Connection) -> None:
    assert ask(guest, Type.MKDIR, b"shared\0") == b"OK\0"
    assert ask(guest, Type.READ, b"shared\0") == b"both"
    assert ask(guest, Type.MKDIR, b"x/y\0") == b"OK\0"
    assert ask(guest, Type.DIRECTORY, b"x\0") == b"y\0"


def test_rm_takes_all_below_and_wants_a_parent(guest: Connection) -> None:
    ask(guest, Type.WRITE, b"a/b/c\0")
    assert ask(guest, Type.RM, b"a\0") == b"OK\0"
    assert ask(guest, Type.READ, b"a/b/c\0") == b"ENOENT\0"
    assert ask(guest, Type.RM, b"a\0") == b"OK\0"
    assert ask(guest, Type.RM, b"a/b\0") == b"ENOENT\0"


def test_the_root_cannot_be_removed(dom0: Connection) -> None:
    assert ask(dom0, Type.RM, b"/\0") == b"EINVAL\0"
    assert ask(dom0, Type.RM, b"@releaseDomain\0") == b"EINVAL\0"


def test_a_directory_lists_names_or_nothing(guest: Connection) -> None:
    assert ask(guest, Type.DIRECTORY, b"/local/domain/3\0") == b"shared\0"
    assert ask(guest, Type.DIRECTORY, b"shared\0") == b""


def test_a_directory_too_long_for_a_message_is_read_in_parts(store: Store, dom0: Connection) -> None:
    names = [f"name-of-some-length-{index}" for index in range(500)]
    for name in names:
        store.mkdir(f"/wide/{name}")
    assert ask(dom0, Type.DIRECTORY, b"/wide\0") == b"E2BIG\0"
    listed, generations = b"", set()
    while not listed.endswith(b"\0\0"):
        generation, _, part = ask(dom0, Type.DIRECTORY_PART, b"/wide\0%d\0" % len(listed)).partition(b"\0")
        listed += part
        generations.add(generation)
    assert listed[:-2].decode().split("\0") == names
    assert len(generations) == 1


def test_a_part_of_a_directory_always_fits_a_message(store: Store, dom0: Connection) -> None:
    """The generation takes some of the place, so try each length about the limit."""
    paths = [f"/wide{extra}" for extra in range(40)]
    for extra, path in enumerate(paths):
        store.mkdir(f"{path}/{'a' * 2000}")
        store.mkdir(f"{path}/{'b' * (2060 + extra)}")
    parts = [ask(dom0, Type.DIRECTORY_PART, path.encode() + b"\x000\0").partition(b"\0")[2] for path in paths]
    assert {part.count(b"\0") for part in parts} == {1, 3}
    assert all(part.endswith(b"\0") and b"E2BIG" not in part for part in parts)


def test_a_part_behind_the_end_of_a_directory_is_empty(guest: Connection) -> None:
    assert ask(guest, Type.DIRECTORY_PART, b"shared\x00900\0").partition(b"\0")[2] == b"\0"


def test_another_s_nodes_are_hidden_and_say_nothing_of_their_existence(other: Connection) -> None:
    """EACCES for both the present and the missing; ENOENT only where the nearest ancestor may be read."""
    assert ask(other, Type.READ, b"/local/domain/3\0") == b"EACCES\0"
    assert ask(other, Type.READ, b"/local/domain/3/none\0") == b"EACCES\0"
    assert ask(other, Type.READ, b"/local/domain/3/shared/none/more\0") == b"ENOENT\0"


def test_a_node_is_open_whatever_its_ancestors_say(other: Connection) -> None:
    assert ask(other, Type.READ, b"/local/domain/3/shared\0") == b"both"
    assert ask(other, Type.WRITE, b"/local/domain/3/shared\0x") == b"EACCES\0"
    assert ask(other, Type.WRITE, b"/local/domain/3/shared/x\0x") == b"EACCES\0"
    assert ask(other, Type.RM, b"/local/domain/3/shared\0") == b"EACCES\0"


def test_a_domain_owns_what_it_creates_in_another_s_node(guest: Connection, other: Connection, store: Store) -> None:
    ask(guest, Type.SET_PERMS, b"shared\0n3\0b4\0")
    assert ask(other, Type.WRITE, b"/local/domain/3/shared/mine\0x") == b"OK\0"
    assert store.get_perms("/local/domain/3/shared/mine").encode() == b"n4\0b4\0"
    assert ask(guest, Type.READ, b"shared/mine\0") == b"EACCES\0"


def test_permissions_are_set_by_the_owner_and_the_owner_by_dom0(
    guest: Connection, other: Connection, dom0: Connection
) -> None:
    path = b"/local/domain/3/shared\0"
    assert ask(guest, Type.SET_PERMS, path + b"w3\0b4\0") == b"OK\0"
    assert ask(guest, Type.GET_PERMS, path) == b"w3\0b4\0"
    assert ask(other, Type.SET_PERMS, path + b"n3\0") == b"EACCES\0"
    assert ask(guest, Type.SET_PERMS, path + b"n4\0") == b"EPERM\0"
    assert ask(dom0, Type.SET_PERMS, path + b"n4\0") == b"OK\0"
    assert ask(guest, Type.SET_PERMS, path + b"n3\0") == b"EACCES\0"


def test_write_without_read_is_possible(guest: Connection, other: Connection, store: Store) -> None:
    store.set_perms("/local/domain/3/shared", Permissions(3, WRITE))
    assert ask(other, Type.WRITE, b"/local/domain/3/shared\0x") == b"OK\0"
    assert ask(other, Type.READ, b"/local/domain/3/shared\0") == b"EACCES\0"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Type.READ, b""),
        (Type.READ, b"a"),
        (Type.READ, b"a\0b\0"),
        (Type.READ, b"a//b\0"),
        (Type.READ, b"@releaseDomain\0"),
        (Type.WRITE, b"a"),
        (Type.WRITE, b"\0x"),
        (Type.MKDIR, b"a\0b"),
        (Type.DIRECTORY_PART, b"shared\0"),
        (Type.DIRECTORY_PART, b"shared\0-1\0"),
        (Type.SET_PERMS, b"shared\0"),
        (Type.SET_PERMS, b"shared\0q3\0"),
        (Type.WATCH, b"shared\0"),
        (Type.WATCH, b"shared\0t\0-1\0"),
        (Type.WATCH, b"\0t\0"),
        (Type.UNWATCH, b"shared\0t\0x\0"),
        (Type.TRANSACTION_END, b"T"),
        (Type.TRANSACTION_END, b"maybe\0"),
        (Type.GET_DOMAIN_PATH, b"x\0"),
        (Type.GET_DOMAIN_PATH, b"65536\0"),
    ],
)
def test_a_malformed_request_is_einval(guest: Connection, kind: int, payload: bytes) -> None:
    assert ask(guest, kind, payload) == b"EINVAL\0"


@pytest.mark.parametrize("kind", [15, 16, 20, 23, 26, 27, 65535, 0xFFFFFFFF])
def test_an_unknown_type_is_enosys(guest: Connection, kind: int) -> None:
    assert ask(guest, kind, b"x\0") == b"ENOSYS\0"


@pytest.mark.parametrize(
    "kind", [Type.CONTROL, Type.INTRODUCE, Type.RELEASE, Type.RESUME, Type.SET_TARGET, Type.IS_DOMAIN_INTRODUCED]
)
def test_a_guest_may_not_use_dom0_s_types(guest: Connection, kind: int) -> None:
    assert ask(guest, kind, b"4\x001\x002\0") == b"EACCES\0"


def test_a_domain_s_path_is_told_to_anyone(guest: Connection) -> None:
    assert ask(guest, Type.GET_DOMAIN_PATH, b"007\0") == b"/local/domain/7\0"


def test_dom0_introduces_and_releases_over_the_wire() -> None:
    attached: list[tuple[int, int, int]] = []
    store = Store(attach=lambda *ring: attached.append(ring))
    dom0 = store.connect()
    assert ask(dom0, Type.IS_DOMAIN_INTRODUCED, b"9\0") == b"F\0"
    assert ask(dom0, Type.INTRODUCE, b"9\0-5\x002\0") == b"OK\0"
    assert attached == [(9, -5, 2)]
    assert ask(dom0, Type.IS_DOMAIN_INTRODUCED, b"9\0") == b"T\0"
    assert ask(dom0, Type.RESUME, b"9\0") == b"OK\0"
    assert ask(dom0, Type.RELEASE, b"9\0") == b"OK\0"
    assert ask(dom0, Type.RELEASE, b"9\0") == b"ENOENT\0"


@pytest.mark.parametrize(
    "payload", [b"0\x001\x002\0", b"32752\x001\x002\0", b"9\x001\x000\0", b"9\x001\0", b"9\0--1\x002\0"]
)
def test_an_introduction_of_what_is_no_guest_is_refused(dom0: Connection, payload: bytes) -> None:
    assert ask(dom0, Type.INTRODUCE, payload) == b"EINVAL\0"


def test_a_domain_acts_for_its_target(dom0: Connection, other: Connection, store: Store) -> None:
    assert ask(dom0, Type.SET_TARGET, b"4\x003\0") == b"OK\0"
    assert ask(other, Type.WRITE, b"/local/domain/3/x\0") == b"OK\0"
    store.release(3)
    store.write("/local/domain/3/y", b"")
    store.set_perms("/local/domain/3/y", Permissions(3))
    assert ask(other, Type.READ, b"/local/domain/3/y\0") == b"EACCES\0"


def test_the_number_of_nodes_is_limited(guest: Connection, store: Store) -> None:
    """Domain 3 owns two nodes of its thousand, and deep paths count each level."""
    assert ask(guest, Type.MKDIR, b"/local/domain/3" + b"/a" * 997 + b"\0") == b"OK\0"
    assert ask(guest, Type.MKDIR, b"b/c\0") == b"ENOSPC\0"
    assert ask(guest, Type.MKDIR, b"b\0") == b"OK\0"
    assert ask(guest, Type.WRITE, b"c\0") == b"ENOSPC\0"
    assert ask(guest, Type.WRITE, b"b\0x") == b"OK\0"
    store.write("/local/domain/3/more", b"")
    assert ask(guest, Type.RM, b"a\0") == b"OK\0"
    assert ask(guest, Type.WRITE, b"c\0") == b"OK\0"


def test_values_and_permissions_are_limited_for_guests_only(guest: Connection, dom0: Connection) -> None:
    assert ask(guest, Type.WRITE, b"v\0" + b"x" * 2048) == b"OK\0"
    assert ask(guest, Type.WRITE, b"v\0" + b"x" * 2049) == b"ENOSPC\0"
    assert ask(dom0, Type.WRITE, b"/v\0" + b"x" * 4000) == b"OK\0"
    entries = b"n3\0r1\0r2\0r5\0r6\0"
    assert ask(guest, Type.SET_PERMS, b"v\0" + entries) == b"OK\0"
    assert ask(guest, Type.SET_PERMS, b"v\0" + entries + b"r7\0") == b"ENOSPC\0"
    assert ask(dom0, Type.SET_PERMS, b"/v\0" + entries + b"r7\0") == b"OK\0"
