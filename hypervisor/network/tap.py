"""A TAP device of the host as a port of a switch, where the host allows one (Linux, CAP_NET_ADMIN).

Linux Documentation/networking/tuntap.rst. The device speaks virtio's net header (virtio 1.2, 5.1.6), so
that partial checksums and large segments pass between the host's kernel and the guests as they are.
No thread: the caller polls `fileno()` and calls `readable()`.
"""

from __future__ import annotations

import fcntl
import os
import struct

from hypervisor.network.frame import GSO_NONE, GSO_TCPV4, GSO_TCPV6, MAX_FRAME, Frame, Offloads
from hypervisor.network.port import Membership, Port
from hypervisor.network.switch import Switch

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_NAME_BYTES = 16

_HEADER = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_NEEDS_CSUM, _DATA_VALID = 1, 2
_ECN = 0x80
_GSO_FROM_VIRTIO = {0: GSO_NONE, 1: GSO_TCPV4, 4: GSO_TCPV6}
_GSO_TO_VIRTIO = {kind: number for number, kind in _GSO_FROM_VIRTIO.items()}

FRAMES_OF_A_CALL = 256
_OFFLOADS = Offloads(csum_v4=True, csum_v6=True, gso_v4=True, gso_v6=True)


class Tap:
    """A TAP device plugged into a switch. `close` it to unplug; a device that was not persistent goes with it."""

    def __init__(
        self, switch: Switch, name: str = "", *, membership: Membership | None = None, mtu: int = 1500
    ) -> None:
        """Open the device `name`, or a new one for "" or a pattern like "kronos%d".

        Raises OSError when the host does not allow it, ValueError for a name that is too long.
        """
        encoded = name.encode()
        if len(encoded) >= _NAME_BYTES:
            raise ValueError(f"{name!r} is too long for the name of a device")
        self._file = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            request = struct.pack("16sH22x", encoded, flags)
            answer = fcntl.ioctl(self._file, _TUNSETIFF, request)
            fcntl.ioctl(self._file, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
        except OSError:
            os.close(self._file)
            raise
        self.name = answer[:_NAME_BYTES].rstrip(b"\0").decode()
        self._switch = switch
        self._held: Frame | None = None
        self.port = Port(self._receive, ready=self._flush, offloads=_OFFLOADS, membership=membership, mtu=mtu)
        switch.attach(self.port)

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._file

    def readable(self) -> None:
        """Pass on what the host has sent, up to `FRAMES_OF_A_CALL` frames, as long as the port takes them."""
        self.port.drain()
        for _ in range(FRAMES_OF_A_CALL):
            if self._held is not None:
                return
            try:
                data = os.read(self._file, _HEADER.size + MAX_FRAME)
            except OSError:  # nothing there, or the device is down
                return
            frame = _parse(data)
            if frame is not None and not self.port.send(frame):
                self._held = frame

    def close(self) -> None:
        """Unplug the device and close it."""
        self._switch.detach(self.port)
        os.close(self._file)

    def _flush(self) -> None:
        if self._held is not None and self.port.send(self._held):
            self._held = None
            self.readable()

    def _receive(self, frame: Frame) -> bool:
        flags = _NEEDS_CSUM if frame.csum_start else _DATA_VALID if frame.validated else 0
        header_length = 0
        if frame.gso_size:
            header_length = frame.csum_start + (frame.data[frame.csum_start + 12] >> 4) * 4
        header = _HEADER.pack(
            flags,
            _GSO_TO_VIRTIO[frame.gso_type],
            header_length,
            frame.gso_size,
            frame.csum_start,
            frame.csum_offset,
        )
        try:
            os.write(self._file, header + frame.data)
        except BlockingIOError:
            return False
        except OSError:  # the device is down, or the kernel dislikes the frame: lost, as on a wire
            return True
        return True


def _parse(data: bytes) -> Frame | None:
    """Return the frame in what the device gave; None for a kind of segment we did not ask for."""
    if len(data) < _HEADER.size:
        return None
    flags, gso_type, _length, gso_size, start, offset = _HEADER.unpack_from(data)
    kind = _GSO_FROM_VIRTIO.get(gso_type & ~_ECN)
    if kind is None:
        return None
    if not flags & _NEEDS_CSUM:
        start = offset = 0
    return Frame(data[_HEADER.size :], start, offset, gso_size, kind, validated=bool(flags & _DATA_VALID))
