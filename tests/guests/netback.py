"""A small network backend for tests: copies frames between a front's rings (public/io/netif.h) and a switch."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping

from hypervisor.domain import Domain
from hypervisor.network.frame import Frame
from hypervisor.network.port import Port
from hypervisor.network.switch import Switch
from hypervisor.pv.ring import Ring
from hypervisor.pv.xenbus import Backend, BusState, Frontend

_OUT, _IN = struct.Struct("<IHHHH"), struct.Struct("<HHI")
_OUT_ANSWER, _IN_ANSWER = struct.Struct("<Hh"), struct.Struct("<HHHh")


class TestNIC:
    """A NIC on a switch: no offloads, one ring each way. Believes the guest, which is ours."""

    __test__ = False
    kind = "vif"
    ready = frozenset({BusState.CONNECTED})

    def __init__(self, domain: Domain, switch: Switch, mac: str = "00:16:3e:00:00:01") -> None:
        self.domain = domain
        self.mac = mac
        self.port = Port(self._deliver)
        self._switch = switch
        self._rings: tuple[Ring, Ring] | None = None
        self._event = 0
        self._room: deque[tuple[int, int]] = deque()

    def back_nodes(self) -> Mapping[str, str]:
        return {"mac": self.mac, "handle": "0"}

    def front_nodes(self) -> Mapping[str, str]:
        return {"mac": self.mac, "handle": "0", "mtu": "1500"}

    def features(self) -> Mapping[str, str]:
        return {"feature-rx-copy": "1", "feature-sg": "0"}

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        grants = self.domain.grants
        assert frontend.text("request-rx-copy") == "1"
        pages = [grants.access(frontend.number(f"{way}-ring-ref", 0, 1 << 20), 0, True).bytes for way in ("tx", "rx")]
        self._rings = Ring(pages[:1], 12), Ring(pages[1:], 8)
        self._event = frontend.number("event-channel", 1, 4095)
        self._room.clear()
        self.domain.events.connect_backend(self._event, self._heard)
        self._switch.attach(self.port)
        return {}

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        if self._rings is not None:
            self.domain.events.disconnect_backend(self._event)
            self._switch.detach(self.port)
        self._rings = None
        done()

    def _heard(self) -> None:
        """Send what the guest has put into its ring."""
        assert self._rings is not None
        taken = self._rings[0].requests(256)
        for slot in taken:
            ref, offset, flags, number, size = _OUT.unpack(slot)
            assert not flags
            grant = self.domain.grants.access(ref, 0, False)
            data = bytes(grant.bytes[offset : offset + size])
            grant.end()
            if self._rings[0].respond([_OUT_ANSWER.pack(number, 0)]):
                self.domain.events.notify(self._event)
            self.port.send(Frame(data))
        self.port.drain()

    def _deliver(self, frame: Frame) -> bool:
        """Put a frame into a buffer of the guest's; refuse it when there is none."""
        if self._rings is None:
            return False
        self._room.extend((number, ref) for number, _, ref in map(_IN.unpack, self._rings[1].requests(256)))
        if not self._room:
            return False
        number, ref = self._room.popleft()
        grant = self.domain.grants.access(ref, 0, True)
        grant.bytes[: len(frame.data)] = frame.data
        grant.end()
        if self._rings[1].respond([_IN_ANSWER.pack(number, 0, 0, len(frame.data))]):
            self.domain.events.notify(self._event)
        return True
