"""Page data of a stream: which frames, then their content, compressed where that helps; zeros are left out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import zstandard

from hypervisor.memory.guest_memory import PAGE, Memory
from hypervisor.migration.records import ImageError, Kind, Writer

MOST = 256
"""Frames in one record: 1 MiB."""
RUNS = 4096
"""Runs of frames in a record that has no data."""
_HEAD = struct.Struct("<II")
_RUN = struct.Struct("<QI")
_ZSTD = 1
_ZEROS = bytes(MOST * PAGE)
_ZERO = bytes(PAGE)

Run = tuple[int, int]
"""First frame and number of frames."""


def encode_runs(runs: Iterable[Run]) -> bytes:
    """Return runs as bytes."""
    return b"".join(_RUN.pack(*run) for run in runs)


def decode_runs(data: bytes) -> list[Run]:
    """Return the runs in bytes, none of them empty. Raises ImageError."""
    if len(data) % _RUN.size:
        raise ImageError("a list of frames has a broken length")
    runs = list(_RUN.iter_unpack(data))
    if not all(count for _, count in runs):
        raise ImageError("a list of frames has an empty run")
    return runs


def runs_of(frames: Iterable[int]) -> Iterator[Run]:
    """Join frames, in order, to runs."""
    start = count = 0
    for frame in frames:
        if count and frame == start + count:
            count += 1
            continue
        if count:
            yield start, count
        start, count = frame, 1
    if count:
        yield start, count


class PageWriter:
    """Collects the content of frames and writes it in records of up to `MOST` frames; `flush` at the end.

    What lies behind the address `end` is not the guest's and is left out.
    """

    def __init__(self, writer: Writer, end: int, compress: bool = True) -> None:
        self._writer = writer
        self._end = end
        self._compressor = zstandard.ZstdCompressor(level=1) if compress else None
        self._frames: list[int] = []
        self._data: list[bytes] = []
        self._zeros: list[Run] = []
        self.frames = 0
        """How many frames were given, zeros included."""

    def add(self, frame: int, data: bytes) -> None:
        """Write a frame's content."""
        self.frames += 1
        self._frames.append(frame)
        self._data.append(data)
        if len(self._frames) == MOST:
            self._flush_pages()

    def add_zeros(self, frame: int, count: int) -> None:
        """Say that frames are zero."""
        self.frames += count
        if self._zeros and sum(self._zeros[-1]) == frame and self._zeros[-1][1] + count < 1 << 32:
            self._zeros[-1] = self._zeros[-1][0], self._zeros[-1][1] + count
        else:
            self._zeros.append((frame, count))
        if len(self._zeros) == RUNS:
            self._flush_zeros()

    def add_part(self, address: int, data: bytes, zeros: bool) -> None:
        """Write a range of up to `MOST` frames; those that are zero are left out, or said to be so if `zeros`."""
        data = data[: max(0, self._end - address)]
        if data == _ZEROS[: len(data)]:
            if zeros and data:
                self.add_zeros(address // PAGE, len(data) // PAGE)
            return
        for offset in range(0, len(data), PAGE):
            page = data[offset : offset + PAGE]
            if page != _ZERO:
                self.add((address + offset) // PAGE, page)
            elif zeros:
                self.add_zeros((address + offset) // PAGE, 1)

    def flush(self) -> None:
        """Write what has been collected."""
        self._flush_pages()
        self._flush_zeros()

    def _flush_zeros(self) -> None:
        if self._zeros:
            self._writer.put(Kind.ZEROS, encode_runs(self._zeros))
            self._zeros.clear()

    def _flush_pages(self) -> None:
        if not self._frames:
            return
        runs, data, flags = list(runs_of(self._frames)), b"".join(self._data), 0
        if self._compressor is not None:
            small = self._compressor.compress(data)
            if len(small) < len(data):
                data, flags = small, _ZSTD
        self._writer.put(Kind.PAGES, _HEAD.pack(flags, len(runs)) + encode_runs(runs) + data)
        self._frames.clear()
        self._data.clear()


def parts(memory: Memory, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield address and content of a byte range, in copies of at most `MOST` frames."""
    for at in range(start, end, MOST * PAGE):
        yield at, bytes(memory.bytes[at : min(at + MOST * PAGE, end)])


class PageReader:
    """Puts page data into memory, only where `is_ram` says that all of a run is."""

    def __init__(self, memory: Memory, is_ram: Callable[[int, int], bool]) -> None:
        self._memory = memory
        self._is_ram = is_ram
        self._decompressor = zstandard.ZstdDecompressor()

    def pages(self, body: bytes) -> None:
        """Take a record of the kind `PAGES`. Raises ImageError."""
        if len(body) < _HEAD.size:
            raise ImageError("page data is too short")
        flags, count = _HEAD.unpack_from(body)
        start = _HEAD.size + count * _RUN.size
        if flags & ~_ZSTD or not 0 < count <= MOST or len(body) < start:
            raise ImageError("page data has a broken head")
        runs = self._checked(body[_HEAD.size : start])
        size = sum(number for _, number in runs) * PAGE
        if size > len(_ZEROS):
            raise ImageError("page data has too many frames")
        data = self._decompress(body[start:], size) if flags & _ZSTD else body[start:]
        if len(data) != size:
            raise ImageError("page data has another length than its frames")
        at = 0
        for frame, number in runs:
            self._memory.bytes[frame * PAGE : (frame + number) * PAGE] = data[at : at + number * PAGE]
            at += number * PAGE

    def zeros(self, body: bytes) -> None:
        """Take a record of the kind `ZEROS`. Raises ImageError."""
        for frame, count in self._checked(body):
            self._memory.free(frame, count)

    def _checked(self, data: bytes) -> list[Run]:
        runs = decode_runs(data)
        if not all(self._is_ram(*run) for run in runs):
            raise ImageError("a frame is outside of the domain's memory")
        return runs

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            if zstandard.frame_content_size(data) != size:  # before any memory is set aside for it
                raise ImageError("compressed page data has another length than its frames")
            return self._decompressor.decompress(data, max_output_size=size)
        except zstandard.ZstdError as error:
            raise ImageError(f"page data cannot be decompressed: {error}") from error
