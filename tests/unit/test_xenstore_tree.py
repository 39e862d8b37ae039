"""Paths, permissions, and the copy-on-write tree of the xenstore."""

import pytest

from hypervisor.xenstore import paths, permissions
from hypervisor.xenstore.errors import Invalid
from hypervisor.xenstore.permissions import ALL, BOTH, NONE, READ, WRITE, Caller, Permissions
from hypervisor.xenstore.tree import Node, Tree

ROOT = Permissions(0)


def tree_of(*names: str) -> Tree:
    tree = Tree()
    for name in names:
        tree.create(name, b"", ROOT)
    return tree


def at(tree: Tree, path: str) -> Node:
    node = tree.find(path)
    assert node is not None
    return node


@pytest.mark.parametrize(
    "text", [b"/", b"/a", b"/a/b-c_D@9", b"x/y", b"/" + b"a" * 3071, b"/" + b"/".join([b"a"] * 1536)]
)
def test_a_valid_path_is_taken(text: bytes) -> None:
    assert paths.resolve(text, "/local/domain/3").startswith("/")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"//", b"/a/", b"/a//b", b"a/", b"/a b", b"/a+b", b"/a.b", b"/\xc3\xa9", b"/a\n", b"@releaseDomain"),
        b"/" + b"a" * 3072,
        b"a" * 2049,
    ],
)
def test_an_invalid_path_is_refused(text: bytes) -> None:
    """Characters, slashes and lengths are those of xenstore.txt."""
    with pytest.raises(Invalid):
        paths.resolve(text, "/local/domain/3")


def test_a_relative_path_starts_at_the_domain_s_home() -> None:
    assert paths.resolve(b"device/vif", paths.home(3)) == "/local/domain/3/device/vif"


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b" 1", b"1x", b"65536", b"0x10", b"99999999999", "٣".encode()])
def test_only_plain_decimal_numbers_in_range_are_read(text: bytes) -> None:
    with pytest.raises(Invalid):
        paths.number(text, 65535)


@pytest.mark.parametrize("items", [[], [b""], [b"x1"], [b"r"], [b"r-1"], [b"r32752"], [b"n0", b"5"]])
def test_malformed_permissions_are_refused(items: list[bytes]) -> None:
    with pytest.raises(Invalid):
        permissions.decode(items)


def test_permissions_have_the_wire_form_of_the_document() -> None:
    held = permissions.decode([b"n3", b"r5", b"w6", b"b7"])
    assert held == Permissions(3, NONE, ((5, READ), (6, WRITE), (7, BOTH)))
    assert held.encode() == b"n3\0r5\0w6\0b7\0"


@pytest.mark.parametrize(("domid", "access"), [(0, ALL), (3, ALL), (5, NONE), (6, WRITE), (9, READ)])
def test_the_first_entry_for_a_domain_counts_and_others_get_the_default(domid: int, access: int) -> None:
    held = Permissions(3, READ, ((5, NONE), (6, WRITE), (5, BOTH)))
    assert held.access(Caller(domid)) == access


def test_a_caller_has_the_rights_of_its_target_too() -> None:
    assert Permissions(3).access(Caller(8, target=3)) == ALL
    assert Permissions(3, NONE, ((4, READ),)).access(Caller(8, target=4)) == READ


def test_a_guest_owns_what_it_creates_and_dom0_passes_the_owner_on() -> None:
    above = Permissions(3, READ, ((5, BOTH),))
    assert above.inherited(Caller(5)) == Permissions(5, READ, ((5, BOTH),))
    assert above.inherited(Caller(0)) is above


def test_a_copy_does_not_see_later_changes() -> None:
    tree = tree_of("/a/b", "/c")
    twin = tree.copy()
    tree.set_value("/a/b", b"1")
    tree.create("/a/d/e", b"2", Permissions(4))
    tree.remove("/c")
    assert at(twin, "/a/b").value == b""
    assert twin.find("/a/d") is None
    assert twin.find("/c") is not None
    assert 4 not in twin.owned


def test_changes_of_a_copy_stay_its_own() -> None:
    tree = tree_of("/a/b")
    twin = tree.copy()
    twin.set_value("/a/b", b"1")
    twin.remove("/a")
    assert at(tree, "/a/b").value == b""


def test_without_a_copy_nodes_change_in_place() -> None:
    """This is what makes ordinary writes cheap."""
    tree = tree_of("/a/b")
    node = tree.find("/a/b")
    tree.set_value("/a/b", b"1")
    assert tree.find("/a/b") is node


def test_owners_are_counted() -> None:
    tree = tree_of("/a")
    tree.create("/a/b/c", b"", Permissions(4, NONE, ((5, READ),)))
    assert (tree.owned[4], tree.mentions[4], tree.mentions[5]) == (2, 2, 2)
    tree.set_permissions("/a/b", Permissions(6))
    assert (tree.owned[4], tree.owned[6], tree.mentions[5]) == (1, 1, 1)
    tree.remove("/a/b")
    assert not {4, 5, 6} & {*tree.owned, *tree.mentions}


def test_the_generation_of_a_directory_grows_with_its_list_of_children() -> None:
    tree = tree_of("/a/b")
    seen = [at(tree, "/a").generation]
    tree.create("/a/c", b"", ROOT)
    seen.append(at(tree, "/a").generation)
    tree.remove("/a/b")
    seen.append(at(tree, "/a").generation)
    assert len(set(seen)) == 3 and seen == sorted(seen)
    tree.set_value("/a/c", b"1")
    assert at(tree, "/a").generation == seen[-1]


def test_the_nodes_that_name_a_domain_are_found() -> None:
    tree = tree_of("/a/b", "/c")
    tree.set_permissions("/a/b", Permissions(4))
    tree.set_permissions("@releaseDomain", Permissions(0, NONE, ((4, READ),)))
    tree.set_permissions("/", Permissions(0, NONE, ((4, READ),)))
    assert {path for path, _ in tree.mentioning(4)} == {"/", "/a/b", "@releaseDomain"}


def test_a_tree_deeper_than_python_s_stack_works() -> None:
    """A 3072-byte path has 1536 levels; nothing may recurse."""
    path = "/a" * 1536
    tree = tree_of(path)
    twin = tree.copy()
    twin.set_value(path, b"1")
    twin.set_permissions(path, Permissions(4))
    assert [place for place, _ in twin.mentioning(4)] == [path]
    twin.remove("/a")
    assert at(tree, path).value == b""
    assert twin.find("/a") is None
