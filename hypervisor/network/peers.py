"""Other processes of a site: streams of frames between them, and the right to serve a LAN.

A stream is a greeting, ``KRONOS-SITE 1 NAME`` and a newline, then frames: a head (`_HEAD`), the LAN's name, and the
frame's bytes as `Frame` has them. Whoever breaks that is not heard any more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote

from hypervisor.network.frame import ETHERNET_HEADER, GSO_TCPV6, MAX_FRAME, Frame

_HEAD = struct.Struct("!IBHHHBBB")
"""Bytes of the frame and of the LAN's name; csum_start, csum_offset, gso_size, gso_type, validated, hops."""
_GREETING = b"KRONOS-SITE 1 "
_NAME = 64
_READ = 256 << 10
_SUFFIX = ".lan"
QUEUED_BYTES = 4 << 20
"""What may wait for another process before more is dropped."""


class Peer:
    """The connection to another process. `name` is what it calls itself, "" before it has said so.

    `send` and `flush` may be called from any thread that holds the site's lock, the rest on the site's thread.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.name = ""
        self._in = bytearray()
        self._out: deque[bytes] = deque()
        self._queued = 0

    @property
    def waiting(self) -> bool:
        """Whether something is to be written when there is room."""
        return bool(self._out)

    def greet(self, name: str) -> None:
        """Say who we are."""
        self._write(_GREETING + name.encode() + b"\n")

    def send(self, lan: str, frame: Frame) -> bool:
        """Send a frame, and return whether it waits for room; without room in the queue it is dropped."""
        name = lan.encode()
        data, start, offset, size, kind, validated, hops = frame
        if self._queued + len(data) > QUEUED_BYTES:
            return False
        return self._write(_HEAD.pack(len(data), len(name), start, offset, size, kind, validated, hops) + name + data)

    def _write(self, data: bytes) -> bool:
        self._out.append(data)
        self._queued += len(data)
        if len(self._out) == 1:
            try:
                self.flush()
            except OSError:  # the reading side hears of it, too
                return True
        return bool(self._out)

    def flush(self) -> None:
        """Write what the system takes. Raises OSError for a connection that has ended."""
        while self._out:
            data = self._out[0]
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                return
            self._queued -= sent
            if sent < len(data):
                self._out[0] = data[sent:]
                return
            self._out.popleft()

    def received(self) -> Iterator[tuple[str, Frame | None]]:
        """Read; yield LAN and frame of each that is whole, and a None for the greeting.

        Raises OSError at the end of the connection, ValueError for what is no frame.
        """
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the other end has closed")
        self._in += data
        if not self.name:
            if not self._greeted():
                return
            yield "", None
        at, whole = 0, len(self._in)
        while whole - at >= _HEAD.size:
            length, named, start, offset, size, kind, validated, hops = _HEAD.unpack_from(self._in, at)
            if not ETHERNET_HEADER <= length <= MAX_FRAME or kind > GSO_TCPV6:
                raise ValueError("no frame")
            end = at + _HEAD.size + named + length
            if end > whole:
                break
            lan = self._in[at + _HEAD.size : at + _HEAD.size + named].decode()
            frame = bytes(self._in[end - length : end])
            yield lan, Frame(frame, start, offset, size, kind, bool(validated), hops)
            at = end
        del self._in[:at]

    def _greeted(self) -> bool:
        end = self._in.find(b"\n", 0, len(_GREETING) + _NAME)
        if end < 0:
            if len(self._in) >= len(_GREETING) + _NAME:
                raise ValueError("no greeting")
            return False
        if not self._in.startswith(_GREETING) or end == len(_GREETING):
            raise ValueError("no greeting")
        self.name = self._in[len(_GREETING) : end].decode("ascii")
        del self._in[: end + 1]
        return True

    def close(self) -> None:
        """End the connection."""
        self.socket.close()
        self._out.clear()
        self._queued = 0


class Listening:
    """Where a process of a site is met: a socket of its name in the site's directory, which is its user's alone."""

    def __init__(self, directory: Path, name: str) -> None:
        """Raises OSError, PermissionError for a directory that others can enter."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = directory.stat()
        if seen.st_uid != os.geteuid() or stat.S_IMODE(seen.st_mode) & 0o077:
            raise PermissionError(f"{directory} is open to others")
        self._directory = directory
        self._name = name
        self._folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(self._path(name, ".new"))
        self.socket.listen(64)
        self.socket.setblocking(False)
        # Whoever saw it before it listens would take it for one that a dead process has left.
        os.rename(f"{name}.new", f"{name}{_SUFFIX}", src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _path(self, name: str, suffix: str = _SUFFIX) -> str:
        """Return a path that is short enough for an address, however deep the directory lies."""
        return f"/proc/self/fd/{self._folder}/{name}{suffix}"

    def missing(self, met: Collection[str]) -> list[str]:
        """Return the names of processes that it is for us to meet, and that we have not: those before ours."""
        names = [entry.removesuffix(_SUFFIX) for entry in os.listdir(self._folder) if entry.endswith(_SUFFIX)]
        return [name for name in names if name < self._name and name not in met]

    def connect(self, name: str) -> Peer:
        """Return a connection to another process. Raises OSError; what a dead one has left goes."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)  # where too many wait for a process that stands still, it is not to be met now
        try:
            connection.connect(self._path(name))
        except ConnectionRefusedError:
            connection.close()
            (self._directory / f"{name}{_SUFFIX}").unlink(missing_ok=True)
            raise
        except OSError:
            connection.close()
            raise
        return Peer(connection)

    def accept(self) -> Peer:
        """Return a connection that another process has made. Raises OSError."""
        connection, _ = self.socket.accept()
        return Peer(connection)

    def close(self) -> None:
        """Be met no more."""
        self.socket.close()
        (self._directory / f"{self._name}{_SUFFIX}").unlink(missing_ok=True)
        os.close(self._folder)


class ServiceLock:
    """The right to give addresses out on a LAN, which one process of a site has; it ends with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def claim(cls, directory: Path, lan: str) -> ServiceLock | None:
        """Return the right if nobody has it. Raises OSError."""
        path = directory / f"{quote(lan, safe='')}.service"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Give the right back."""
        os.close(self._descriptor)
