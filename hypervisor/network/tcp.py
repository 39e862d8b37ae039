"""The TCP layer of a station: who listens, which connections there are (RFC 9293, small but correct)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from hypervisor.network import tcp_segment
from hypervisor.network.checksum import is_valid, pseudo_sum
from hypervisor.network.ipv4 import Ipv4Layer
from hypervisor.network.packets import IPV4_HEADER, PROTOCOL_TCP, Ipv4
from hypervisor.network.tcp_connection import Connection, State
from hypervisor.network.tcp_segment import ACK, RST, SYN, Segment

MAX_CONNECTIONS = 1024
BACKLOG = 128
"""Handshakes of one listener that may be unfinished; the oldest gives way."""
FIRST_EPHEMERAL = 49152

Accept = Callable[[Connection], None]
_Key = tuple[bytes, int, int]  # peer, peer's port, our port


class TcpLayer:
    """Listeners and connections. Memory: at most `MAX_CONNECTIONS` of some 1.5 MiB of buffers each."""

    def __init__(self, ip: Ipv4Layer, clock: Callable[[], int], secret: bytes | None = None) -> None:
        """`secret` makes the sequence numbers (RFC 6528); random unless a test wants its own."""
        self._ip = ip
        self._clock = clock
        self._secret = os.urandom(16) if secret is None else secret
        self._mss = ip.mtu - IPV4_HEADER - tcp_segment.HEADER
        self._listeners: dict[int, Accept] = {}
        self._connections: dict[_Key, Connection] = {}
        self._next_port = FIRST_EPHEMERAL
        ip.protocols[PROTOCOL_TCP] = self.receive

    @property
    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._connections.values())

    def listen(self, port: int, accept: Accept) -> None:
        """Have `accept` called with each new connection, before its data. Raises ValueError for a taken port."""
        if not 0 < port < 65536 or port in self._listeners:
            raise ValueError(f"TCP port {port} cannot be opened")
        self._listeners[port] = accept

    def unlisten(self, port: int) -> None:
        """Accept no more at a port; connections stay."""
        self._listeners.pop(port, None)

    def connect(self, address: bytes, port: int, prepare: Accept) -> Connection:
        """Open a connection. Raises ValueError if there is no room for it.

        `prepare` gets it first, to set its callbacks: the peer may have answered before this returns.
        """
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            raise ValueError(f"there are {MAX_CONNECTIONS} connections")
        connection = self._new(address, port, self._free_port(address, port))
        prepare(connection)
        connection.open()
        self._forget_closed((address, port, connection.port), connection)
        return connection

    def receive(self, packet: Ipv4, _mac: bytes, verified: bool) -> None:
        """Take a TCP packet: a segment of a connection, a new one's, or one to refuse."""
        if self._ip.is_broadcast(packet.destination):
            return
        pseudo = pseudo_sum(packet.source, packet.destination, PROTOCOL_TCP, len(packet.payload))
        if not verified and not is_valid(packet.payload, pseudo):
            return
        segment = tcp_segment.parse(packet.payload)
        if segment is None:
            return
        key = (packet.source, segment.source_port, segment.port)
        connection = self._connections.get(key)
        fresh_syn = segment.flags & (SYN | ACK | RST) == SYN
        if connection is not None and fresh_syn and connection.state is State.TIME_WAIT:
            del self._connections[key]  # RFC 9293 3.6.1: a new incarnation may begin
            connection = None
        if connection is None:
            if fresh_syn and segment.port in self._listeners:
                self._accept(packet.source, segment)
            else:
                self._refuse(packet.source, segment)
            return
        connection.receive(segment)
        if connection.state is State.SYN_SENT and segment.flags & ACK:
            self._refuse(packet.source, segment)  # an old connection of the peer's
        self._forget_closed(key, connection)

    def tick(self, now: int) -> None:
        """Do what is due for every connection. O(connections)."""
        for key, connection in list(self._connections.items()):
            due = connection.next_deadline()
            if due is not None and due <= now:
                connection.tick(now)
            self._forget_closed(key, connection)

    def next_deadline(self) -> int | None:
        """Return the earliest deadline of all connections. O(connections)."""
        deadlines = (connection.next_deadline() for connection in self._connections.values())
        return min((at for at in deadlines if at is not None), default=None)

    def _accept(self, source: bytes, syn: Segment) -> None:
        pending = [
            key for key, held in self._connections.items() if key[2] == syn.port and held.state is State.SYN_RECEIVED
        ]
        if len(pending) >= BACKLOG:
            del self._connections[pending[0]]
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            return  # as if lost: the peer tries again
        connection = self._new(source, syn.source_port, syn.port)
        accept = self._listeners[syn.port]
        connection.opened = lambda: accept(connection)
        connection.accept(syn)

    def _new(self, peer: bytes, peer_port: int, port: int) -> Connection:
        connection = Connection(
            peer, peer_port, port, self._mss, self._initial(peer, peer_port, port), self._transmit, self._clock
        )
        self._connections[(peer, peer_port, port)] = connection
        return connection

    def _initial(self, peer: bytes, peer_port: int, port: int) -> int:
        """Return a first sequence number: a clock of 4 µs plus a secret of the connection (RFC 6528)."""
        identity = peer + peer_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        digest = hashlib.blake2b(identity, key=self._secret, digest_size=4).digest()
        return (self._clock() // 4000 + int.from_bytes(digest, "big")) & tcp_segment.SEQUENCE_MASK

    def _free_port(self, address: bytes, port: int) -> int:
        for _ in range(65536 - FIRST_EPHEMERAL):
            candidate = self._next_port
            self._next_port = candidate + 1 if candidate < 65535 else FIRST_EPHEMERAL
            if (address, port, candidate) not in self._connections and candidate not in self._listeners:
                return candidate
        raise ValueError("no TCP port is free")

    def _make_room(self) -> bool:
        """Drop the oldest connection that only waits for its end; False if there is none."""
        for key, connection in self._connections.items():
            if connection.state in (State.TIME_WAIT, State.CLOSED):
                del self._connections[key]
                connection.forget()
                return True
        return False

    def _forget_closed(self, key: _Key, connection: Connection) -> None:
        if connection.state is State.CLOSED and self._connections.get(key) is connection:
            del self._connections[key]

    def _refuse(self, source: bytes, segment: Segment) -> None:
        """Answer a segment of no connection with a reset (RFC 9293 3.10.7.1)."""
        if segment.flags & RST:
            return
        if segment.flags & ACK:
            reset = Segment(segment.port, segment.source_port, segment.acknowledged, 0, RST, 0)
        else:
            end = segment.sequence + segment.length
            reset = Segment(segment.port, segment.source_port, 0, end, RST | ACK, 0)
        self._send(source, reset, 0)

    def _transmit(self, connection: Connection, segment: Segment, cut: int) -> None:
        self._send(connection.peer, segment, cut)

    def _send(self, destination: bytes, segment: Segment, cut: int) -> None:
        length = tcp_segment.HEADER + len(segment.payload)
        length += 4 * (segment.mss is not None) + 4 * (segment.scale is not None)
        pseudo = pseudo_sum(self._ip.address, destination, PROTOCOL_TCP, length)
        payload = tcp_segment.build(segment, pseudo)
        self._ip.send(destination, PROTOCOL_TCP, payload, tcp_segment.CHECKSUM_OFFSET, gso_size=cut)
