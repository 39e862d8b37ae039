"""The stream of a saved domain under change: nothing that is not whole becomes a domain."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.domains.domain import Domain
from hypervisor.host import Host, NoMemory
from hypervisor.memory.guest_memory import PAGE, Memory
from hypervisor.migration.dirty import ComparingTracker, ProtectingTracker, Tracker
from hypervisor.migration.pages import PageReader, PageWriter, decode_runs, encode_runs, runs_of
from hypervisor.migration.records import ImageError, Kind, Reader, Writer
from hypervisor.migration.restore import Image
from tests.unit.saved_domain import a_host, image_of, left, records_of, suspended, suspended_pv

FRAMES = 64


class Saved:
    """One image that all examples change."""

    def __init__(self, make: Callable[[Host], Domain]) -> None:
        self.host = a_host()
        domain = make(self.host)
        self.image = image_of(domain, self.host)
        self.records = records_of(self.image)
        self.host.destroy(domain)

    def refuse(self, image: bytes) -> None:
        """See that an image is refused and leaves nothing."""
        before = left(self.host)
        with pytest.raises(ImageError):
            Image(io.BytesIO(image)).build(self.host)
        assert left(self.host) == before

    def survive(self, image: bytes) -> None:
        """See that an image with good checksums is refused, or becomes a domain that can be destroyed."""
        before = left(self.host)
        with contextlib.suppress(ImageError, NoMemory):
            self.host.destroy(Image(io.BytesIO(image)).build(self.host))
        assert left(self.host)[:2] == before[:2]


@pytest.fixture(scope="module", params=[suspended, suspended_pv])
def saved(request: pytest.FixtureRequest) -> Saved:
    """Of a PVH domain, and of a PV one."""
    return Saved(request.param)


@given(data=st.data())
def test_any_changed_byte_is_refused(saved: Saved, data: st.DataObject) -> None:
    """Wherever it is."""
    at = data.draw(st.integers(0, len(saved.image) - 1))
    image = bytearray(saved.image)
    image[at] ^= data.draw(st.integers(1, 255))
    saved.refuse(bytes(image))


@given(data=st.data())
def test_any_truncation_is_refused(saved: Saved, data: st.DataObject) -> None:
    """Also to nothing, and between records."""
    saved.refuse(saved.image[: data.draw(st.integers(0, len(saved.image) - 1))])


@given(data=st.data())
def test_bytes_left_out_or_put_in_are_refused(saved: Saved, data: st.DataObject) -> None:
    """Anywhere before the end."""
    at = data.draw(st.integers(0, len(saved.image) - 1))
    extra = data.draw(st.binary(max_size=40))
    gone = data.draw(st.integers(0 if extra else 1, 40))
    image = saved.image[:at] + extra + saved.image[at + gone :]
    if not image.startswith(saved.image):
        saved.refuse(image)


def test_the_header_is_checked_byte_by_byte(saved: Saved) -> None:
    """Every byte of the header and of the first record's head."""
    for at in range(48):
        image = bytearray(saved.image)
        image[at] ^= 0x80
        saved.refuse(bytes(image))


@given(data=st.data())
@settings(max_examples=60)
def test_wild_records_with_good_checksums_do_no_harm(saved: Saved, data: st.DataObject) -> None:
    """Who can write an image can write the checksums too: it is a hostile guest's, and becomes one or nothing."""
    records = list(saved.records)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(records) - 1))
        kind, body = records[at]
        change = data.draw(st.sampled_from(("bytes", "kind", "drop", "double", "swap", "cut", "more")))
        if change == "bytes" and body:
            where = data.draw(st.integers(0, len(body) - 1))
            new = data.draw(st.binary(min_size=1, max_size=9))
            records[at] = kind, body[:where] + new + body[where + len(new) :]
        elif change == "kind":
            records[at] = data.draw(st.sampled_from(Kind)), body
        elif change == "drop" and len(records) > 1:
            del records[at]
        elif change == "double":
            records.insert(at, records[at])
        elif change == "swap":
            other = data.draw(st.integers(0, len(records) - 1))
            records[at], records[other] = records[other], records[at]
        elif change == "cut":
            records[at] = kind, body[: data.draw(st.integers(0, len(body)))]
        else:
            records[at] = kind, body + data.draw(st.binary(min_size=1, max_size=20))
    file = io.BytesIO()
    writer = Writer(file)
    for kind, body in records:
        writer.put(kind, body)
    saved.survive(file.getvalue())


@given(st.sets(st.integers(0, 1 << 40), max_size=50))
def test_runs_of_frames_come_back(frames: set[int]) -> None:
    """Joined where they touch."""
    runs = decode_runs(encode_runs(runs_of(sorted(frames))))
    assert [frame for first, count in runs for frame in range(first, first + count)] == sorted(frames)
    assert all(runs[at][0] + runs[at][1] < runs[at + 1][0] for at in range(len(runs) - 1))


_WRITE = st.tuples(st.just("write"), st.integers(0, FRAMES - 1), st.sampled_from(b"\0\1\2"))
_FREE = st.tuples(st.just("free"), st.integers(0, FRAMES - 1), st.integers(1, 4))
_ROUND = st.tuples(st.just("round"), st.just(0), st.just(0))


@pytest.mark.parametrize("kind", [ProtectingTracker, ComparingTracker])
@pytest.mark.parametrize("private", [False, True])
@given(steps=st.lists(st.one_of(_WRITE, _WRITE, _FREE, _ROUND), max_size=30))
@settings(max_examples=60)
def test_rounds_carry_all_that_changed(kind: type[Tracker], private: bool, steps: list[tuple[str, int, int]]) -> None:
    """Writes and frees in any order between rounds: after the last the copy is the memory."""
    source, copy = Memory(FRAMES * PAGE), Memory(FRAMES * PAGE)
    source.write(5 * PAGE, b"before")
    if private:
        shared = source.freeze()
        clone = Memory.clone(shared, FRAMES * PAGE)
        shared.drop()
        source.close()
        source = clone
    try:
        tracker: Tracker = kind(source)  # type: ignore[call-arg]
    except OSError as error:
        pytest.skip(f"this kernel logs no writes: {error}")
    file = io.BytesIO()
    writer = Writer(file)
    pages = PageWriter(writer, source.size, compress=False)
    source.freed = bytearray(FRAMES)
    for step, frame, value in [*steps, ("round", 0, 0)]:
        if step == "write":
            source.write(frame * PAGE + 7, bytes([value]))
        elif step == "free":
            source.free(frame, min(value, FRAMES - frame))
        else:
            freed, source.freed = source.freed, bytearray(FRAMES)
            unsure = [(at * PAGE, (at + 1) * PAGE) for at in range(FRAMES) if freed[at]]
            for low, _ in unsure:
                pages.add_zeros(low // PAGE, 1)
            pages.flush()
            for part in tracker.take(unsure):
                pages.add_part(*part, zeros=True)
            pages.flush()
    writer.put(Kind.END)
    reader, taken = Reader(io.BytesIO(file.getvalue())), PageReader(copy, lambda *_: True)
    while (record := reader.take())[0] is not Kind.END:
        (taken.pages if record[0] is Kind.PAGES else taken.zeros)(record[1])
    assert bytes(copy.bytes[: copy.size]) == bytes(source.bytes[: source.size])
    tracker.close()
    source.close()
    copy.close()


def test_a_host_is_left_as_it_was() -> None:
    """The fixtures of these tests can tell a domain that stays from none."""
    host = a_host()
    before = left(host)
    host.create(((0, 2 << 20),))
    assert left(host) != before
    assert isinstance(host, Host)
    for domain in list(host.domains.values()):
        host.destroy(domain)
