"""The LANs of a site: what joins the hosts of a pool, in this process and in others of the machine.

A network with a physical card is on the LAN of its name. A host plugs its switch in by a `Plug`; what it sends
reaches the other hosts' switches, whole: a segment that was left to the network to cut stays so. Between processes
frames go over a Unix stream from each to each, in a directory that only their user can enter; nobody in between has to
be alive. One host of a LAN at a time has its address service and gateway: who holds the lock of a file, which the
system takes away when its process ends; the next one takes over within `LOOK` seconds, with the same addresses.

Frames between hosts are queued and passed on by a thread of the site's, since each host has a lock of its own: that of
the site is taken inside it, never around it. What a full queue does not take is dropped, as on a wire. A host that is
alone pays for a frame that it floods a look at an empty table.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from hypervisor.network.frame import EVERY_OFFLOAD, MAX_PACKET, Frame
from hypervisor.network.peers import Listening, Peer, ServiceLock
from hypervisor.network.port import Port, trunk
from hypervisor.network.switch import MAX_HOPS, Switch
from hypervisor.network.table import MacTable

LOOK = 1.0
"""Seconds between two looks at who is there, and whose address service is gone."""
QUEUED = 4096
"""Frames that may wait to be passed on to hosts of this process."""
_TOGETHER = 64
"""Frames that are passed on under one taking of a host's lock."""


class Plug:
    """A host's plug into a LAN. `serve` is called, under the host's `lock`, with whether the host is to give addresses
    out there."""

    def __init__(
        self,
        site: Site,
        lan: str,
        switch: Switch,
        lock: threading.RLock,
        serve: Callable[[bool], None],
    ) -> None:
        self.lan = lan
        self.lock = lock
        self.serve = serve
        self._site = site
        self.port = Port(self._receive, offloads=EVERY_OFFLOAD, membership=trunk(), mtu=MAX_PACKET)
        switch.attach(self.port)

    def _receive(self, frame: Frame) -> bool:
        self._site.pass_on(self, self.lan, frame)
        return True

    def give(self, frame: Frame) -> None:
        """Take a frame from another host. Under the host's lock."""
        if self.port.switch is not None:
            self.port.send(frame)

    def unplug(self) -> None:
        """Leave the switch."""
        if self.port.switch is not None:
            self.port.switch.detach(self.port)


class _Lan:
    """Who is on a LAN, behind whom each address was seen, and who here has its address service."""

    def __init__(self) -> None:
        self.plugs: list[Plug] = []
        self.table: MacTable[Plug | Peer] = MacTable()
        self.server: Plug | None = None
        self.right: ServiceLock | None = None


class Site:
    """This process's part of a site. Without a `directory` it is all of it. Methods may be called from any thread."""

    def __init__(self, directory: Path | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Raises OSError for a directory that cannot be made, or is not this user's alone."""
        self._directory = directory
        self._clock = clock
        self._mutex = threading.Lock()
        self._lans: dict[str, _Lan] = {}
        self._inbox: deque[tuple[Plug, Frame]] = deque()
        self._peers: dict[str, Peer] = {}
        self._unnamed: dict[Peer, str] = {}
        """Processes that have not said their name, and who that is where we have gone to meet it."""
        self._name = f"{time.time_ns():016x}{secrets.token_hex(4)}"
        self._listening = None if directory is None else Listening(directory, self._name)
        self._selector: selectors.BaseSelector
        self._heard: socket.socket
        self._bell: socket.socket | None = None
        self._rung = False
        self._closing = False
        self._next_look = 0.0
        self._thread: threading.Thread | None = None

    # Hosts

    def join(self, lan: str, switch: Switch, lock: threading.RLock, serve: Callable[[bool], None]) -> Plug:
        """Plug a host's switch into a LAN. Call it under the host's lock; so is `serve` called, at once or later."""
        plug = Plug(self, lan, switch, lock, serve)
        with self._mutex:
            self._lans.setdefault(lan, _Lan()).plugs.append(plug)
            if self._thread is None and not self._closing:
                self._open()
                self._thread = threading.Thread(target=self._run, name="site", daemon=True)
                self._thread.start()
        self._elect(lan, plug)
        return plug

    def _open(self) -> None:
        """Open what the thread waits with, which a site without hosts does without."""
        self._selector = selectors.DefaultSelector()
        self._bell, self._heard = socket.socketpair()
        self._bell.setblocking(False)
        self._heard.setblocking(False)

    def leave(self, plug: Plug) -> None:
        """Unplug a host; another one has the address service then. Call it under the host's lock."""
        plug.unplug()
        with self._mutex:
            lan = self._lans[plug.lan]
            lan.plugs.remove(plug)
            lan.table.forget(plug)
            served = lan.server is plug
            if served:
                lan.server = None
                if lan.right is not None and not lan.plugs:
                    lan.right.release()
                    lan.right = None
            if not lan.plugs:
                del self._lans[plug.lan]
        if served:
            plug.serve(False)
        self._ring()

    def close(self) -> None:
        """End the thread and the connections; what waits is dropped."""
        with self._mutex:
            self._closing = True
            thread, self._thread = self._thread, None
        self._ring()
        if thread is not None:
            thread.join()
        for peer in [*self._peers.values(), *self._unnamed]:
            peer.close()
        for lan in self._lans.values():
            if lan.right is not None:
                lan.right.release()
        if self._listening is not None:
            self._listening.close()
        if self._bell is not None:
            self._selector.close()
            self._bell.close()
            self._heard.close()

    # Frames

    def pass_on(self, source: Plug | Peer, name: str, frame: Frame) -> None:
        """Send a frame that came in from a host or another process to whom it concerns; drop it where nobody is."""
        if isinstance(source, Plug):
            if frame.hops >= MAX_HOPS:
                return
            frame = frame._replace(hops=frame.hops + 1)
        wake = False
        with self._mutex:
            lan = self._lans.get(name)
            if lan is None:
                return
            for target in self._concerned(lan, source, frame.data):
                if isinstance(target, Plug):
                    if len(self._inbox) < QUEUED:
                        self._inbox.append((target, frame))
                        wake = True
                else:
                    wake |= target.send(name, frame)
        if wake:
            self._ring()

    def _concerned(self, lan: _Lan, source: Plug | Peer, data: bytes) -> Iterable[Plug | Peer]:
        now = self._clock()
        vlan = int.from_bytes(data[14:16], "big") & 0xFFF if data[12:14] == b"\x81\x00" else 0
        lan.table.learn(vlan, data[6:12], source, now)
        known = None if data[0] & 1 else lan.table.lookup(vlan, data[:6], now)
        if known is not None:
            return () if known is source else (known,)
        others: list[Plug | Peer] = [each for each in lan.plugs if each is not source]
        if isinstance(source, Plug):  # each process hears of it from the first: nobody sends on
            others += self._peers.values()
        return others

    # The thread

    def _ring(self) -> None:
        if self._bell is not None and not self._rung:
            self._rung = True
            with suppress(BlockingIOError, OSError):
                self._bell.send(b"!")

    def _run(self) -> None:
        self._selector.register(self._heard, selectors.EVENT_READ, self._quiet)
        if self._listening is not None:
            self._selector.register(self._listening.socket, selectors.EVENT_READ, self._accept)
        while not self._closing:
            if self._clock() / 1e9 >= self._next_look:
                self._look()
            for key, events in self._selector.select(max(0.0, self._next_look - self._clock() / 1e9)):
                if self._selector.get_map().get(key.fd) is key:  # it was not ended by what came before it
                    key.data(events)
            self._deliver()
            self._follow_writes()

    def _quiet(self, _: int) -> None:
        self._rung = False
        with suppress(BlockingIOError):
            self._heard.recv(64)

    def _deliver(self) -> None:
        """Give the hosts of this process what waits for them."""
        while self._inbox:
            plug, frame = self._inbox.popleft()
            with plug.lock:
                plug.give(frame)
                for _ in range(_TOGETHER):
                    if not self._inbox or self._inbox[0][0] is not plug:
                        break
                    plug.give(self._inbox.popleft()[1])

    def _look(self) -> None:
        """See who has come, and whose address service is gone."""
        self._next_look = self._clock() / 1e9 + LOOK
        if self._listening is not None:
            with suppress(OSError):
                self._meet_others(self._listening)
        with self._mutex:
            unserved = [(name, lan.plugs[0]) for name, lan in self._lans.items() if lan.server is None]
        for name, plug in unserved:
            with plug.lock, suppress(OSError):
                self._elect(name, plug)

    def _meet_others(self, listening: Listening) -> None:
        """Go to meet who has come. Raises OSError."""
        for name in listening.missing({*self._peers, *self._unnamed.values()}):
            with suppress(OSError):
                self._meet(listening.connect(name), name)

    def _elect(self, name: str, candidate: Plug) -> None:
        """Have a host serve its LAN, if none of the site does. Under that host's lock. Raises OSError."""
        with self._mutex:
            lan = self._lans.get(name)
            if lan is None or lan.server is not None or candidate not in lan.plugs:
                return
            if self._directory is not None and lan.right is None:
                lan.right = ServiceLock.claim(self._directory, name)
                if lan.right is None:
                    return
            lan.server = candidate
        candidate.serve(True)

    # Other processes

    def _accept(self, _: int) -> None:
        assert self._listening is not None
        with suppress(OSError):
            self._meet(self._listening.accept())

    def _meet(self, peer: Peer, name: str = "") -> None:
        self._unnamed[peer] = name
        self._selector.register(peer.socket, selectors.EVENT_READ, partial(self._talk, peer))
        peer.greet(self._name)

    def _talk(self, peer: Peer, events: int) -> None:
        """Read what another process has sent, and write what waits for it."""
        try:
            if events & selectors.EVENT_WRITE:
                with self._mutex:
                    peer.flush()
            for name, frame in peer.received() if events & selectors.EVENT_READ else ():
                if frame is None:
                    self._introduce(peer)
                else:
                    self.pass_on(peer, name, frame)
        except (OSError, ValueError):
            self._lose(peer)

    def _introduce(self, peer: Peer) -> None:
        """Take a process in that has said its name; an earlier connection to it has ended."""
        self._unnamed.pop(peer, None)
        if peer.name in self._peers:
            self._lose(self._peers[peer.name])
        with self._mutex:
            self._peers[peer.name] = peer

    def _lose(self, peer: Peer) -> None:
        """Forget a process whose connection has ended; what it served may be ours now."""
        with self._mutex:
            if self._peers.get(peer.name) is peer:
                del self._peers[peer.name]
            for lan in self._lans.values():
                lan.table.forget(peer)
            self._unnamed.pop(peer, None)
            self._selector.unregister(peer.socket)
            peer.close()
        self._next_look = 0.0

    def _follow_writes(self) -> None:
        """Hear when those can take more for whom something waits."""
        for peer in [*self._peers.values(), *self._unnamed]:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.waiting else 0)
            if self._selector.get_key(peer.socket).events != wanted:
                self._selector.modify(peer.socket, wanted, partial(self._talk, peer))
