"""Domain memory that is frozen, cloned, and looked through for what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hypervisor.memory import pagemap
from hypervisor.memory.guest_memory import PAGE, Memory

SIZE = 16 << 20


def frames(memory: Memory) -> set[int]:
    return {frame for start, end in memory.extents() for frame in range(start // PAGE, end // PAGE)}


@pytest.fixture
def source() -> Iterator[Memory]:
    made = Memory(SIZE)
    for frame in (0, 7, 8, 100):
        made.write(frame * PAGE, b"original")
    yield made
    made.close()


@pytest.fixture
def clones(source: Memory) -> Iterator[list[Memory]]:
    """Two clones of the source."""
    shared = source.freeze()
    made = [Memory.clone(shared, SIZE) for _ in range(2)]
    shared.drop()
    yield made
    for clone in made:
        clone.close()


def test_a_clone_begins_with_what_was_there(source: Memory, clones: list[Memory]) -> None:
    """Every frame, and the holes."""
    assert all(clone.read(100 * PAGE, 8) == b"original" and not any(clone.read(PAGE, PAGE)) for clone in clones)


def test_writes_stay_where_they_were_made(source: Memory, clones: list[Memory]) -> None:
    """Source and clones go on by themselves."""
    source.write(0, b"source  ")
    clones[0].write(7 * PAGE, b"clone   ")
    assert [memory.read(0, 8) for memory in (source, *clones)] == [b"source  ", b"original", b"original"]
    assert [memory.read(7 * PAGE, 8) for memory in (source, *clones)] == [b"original", b"clone   ", b"original"]


def test_a_clone_outlives_its_source(clones: list[Memory], source: Memory) -> None:
    """The frozen file stays as long as somebody maps it."""
    source.close()
    assert clones[1].read(8 * PAGE, 8) == b"original"


def test_a_clones_extents_are_what_was_written_before_or_by_it(source: Memory, clones: list[Memory]) -> None:
    """The kernel tells which pages are the clone's own; nothing is read to find out."""
    clones[0].write(200 * PAGE, b"new")
    assert frames(clones[0]) == {0, 7, 8, 100, 200}
    # The kernel puts an empty page into the file when a clone first writes where there was none.
    assert frames(source) <= {0, 7, 8, 100, 200} and not any(source.read(200 * PAGE, PAGE))


def test_a_clones_extents_without_a_kernel_that_tells(clones: list[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is all of the memory, which is right too."""

    def refuse(*_: int) -> Iterator[tuple[int, int]]:
        raise OSError(25, "not here")

    monkeypatch.setattr(pagemap, "own_pages", refuse)
    assert list(clones[0].extents()) == [(0, SIZE)]


@pytest.mark.parametrize("count", [1, 600])
def test_frames_that_a_clone_frees_read_as_zero(source: Memory, clones: list[Memory], count: int) -> None:
    """One by one or many at once; the others keep theirs, and they can be written again."""
    clones[0].free(8, count)
    assert not any(clones[0].read(8 * PAGE, count * PAGE))
    assert source.read(8 * PAGE, 8) == clones[1].read(8 * PAGE, 8) == b"original"
    clones[0].write(8 * PAGE, b"again")
    assert clones[0].read(8 * PAGE, 5) == b"again" and clones[0].read(7 * PAGE, 8) == b"original"
    assert 8 in frames(clones[0])


def test_a_clone_is_frozen_with_what_it_wrote(source: Memory, clones: list[Memory]) -> None:
    """A clone of a clone has both; the first file stays as it was."""
    clones[0].write(7 * PAGE, b"second  ")
    clones[0].write(300 * PAGE, b"third   ")
    clones[0].free(100)
    shared = clones[0].freeze()
    grandchild = Memory.clone(shared, SIZE)
    shared.drop()
    clones[0].write(0, b"later   ")
    texts = [grandchild.read(frame * PAGE, 8) for frame in (0, 7, 8, 300)]
    assert texts == [b"original", b"second  ", b"original", b"third   "] and not any(grandchild.read(100 * PAGE, 8))
    assert clones[0].read(0, 8) == b"later   " and clones[1].read(7 * PAGE, 8) == b"original"
    grandchild.close()


def test_what_a_clone_gave_back_is_not_in_what_it_freezes(source: Memory, clones: list[Memory]) -> None:
    """So many frames at once are mapped anew, which the kernel does not count as written."""
    clones[0].free(8, 600)
    shared = clones[0].freeze()
    grandchild = Memory.clone(shared, SIZE)
    shared.drop()
    assert not any(grandchild.read(8 * PAGE, 600 * PAGE)) and grandchild.read(7 * PAGE, 8) == b"original"
    grandchild.close()


def test_freezing_again_without_a_change_copies_nothing(source: Memory, clones: list[Memory]) -> None:
    """The same file serves, which is there until nobody holds it."""
    first, second = clones[1].freeze(), clones[1].freeze()
    assert first is second is clones[0].shared is source.shared
    for holder in (first.drop, second.drop, source.close, clones[0].close):
        holder()
        assert os.fstat(first.file).st_size > SIZE
    clones[1].close()
    assert first.file == -1
    with pytest.raises(ValueError, match="gone"):
        Memory.clone(first, SIZE)


def test_frees_are_noted_while_somebody_copies(source: Memory) -> None:
    """Frame by frame."""
    source.freed = bytearray(SIZE // PAGE)
    source.free(7, 2)
    source.free(100)
    assert [frame for frame, freed in enumerate(source.freed) if freed] == [7, 8, 100]


def a_log(memory: Memory) -> pagemap.WriteLog:
    try:
        return pagemap.WriteLog(memory.address, memory.size)
    except OSError as error:
        pytest.skip(f"this kernel logs no writes: {error}")


def test_the_log_tells_what_was_written_since(source: Memory) -> None:
    """By stores and by system calls, to pages that were there and to new ones; asking does not change it."""
    log = a_log(source)
    assert sum(end - start for start, end in log.take(0, SIZE)) == SIZE
    assert log.take(0, SIZE) == []
    source.write(7 * PAGE, b"x")
    source.write(50 * PAGE, b"x")
    reader, writer = os.pipe()
    os.write(writer, b"from a system call")
    os.readv(reader, [source.frame(100)[:18]])
    assert log.take(0, SIZE) == [(at * PAGE, (at + 1) * PAGE) for at in (7, 50, 100)]
    assert log.take(0, SIZE) == []
    os.close(reader)
    os.close(writer)
    log.close()


def test_a_log_of_what_was_mapped_anew_says_that_it_knows_nothing(source: Memory) -> None:
    """A freeze replaces the mapping: an error, until it is registered again."""
    log = a_log(source)
    log.take(0, SIZE)
    source.freeze().drop()
    with pytest.raises(OSError):
        log.take(0, SIZE)
    log.register()
    log.take(0, SIZE)
    source.write(8 * PAGE, b"x")
    assert log.take(0, SIZE) == [(8 * PAGE, 9 * PAGE)]
    log.close()
