"""What a repository of files reads: any graph of parents, any bytes for a description."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.api import Description
from hypervisor.storage.layout import Found, useless
from hypervisor.storage.volume import Format, decode, encode


@given(st.lists(st.tuples(st.none() | st.integers(0, 11), st.booleans()), max_size=12))
def test_what_is_useless_is_needed_by_no_visible_volume(nodes: list[tuple[int | None, bool]]) -> None:
    """For any graph of parents, rings included; children come before their parents."""
    found = {
        str(number): Found(str(number), Format.VHD, 1, None if parent is None else str(parent), hidden)
        for number, (parent, hidden) in enumerate(nodes)
    }
    needed = set[str]()
    for one in found.values():
        step: str | None = one.uuid
        while not one.hidden and step in found and step not in needed:
            needed.add(step)
            step = found[step].parent
    gone = useless(found)
    assert set(gone) == set(found) - needed


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_as_a_description(data: bytes) -> None:
    """Never an exception; and what was written is read."""
    decode(data)
    described = Description(data.decode("utf-8", "replace"), read_only=True)
    assert decode(encode(described)) == described
