"""The sentences of the log: made of plain values on the writer's thread, for people and, with fields, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.datamodel.quoting import escape, quoted, shortened, trackid
from xapi.log.lines import Said
from xapi.log.names import Named

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

Caller = tuple[str, "IAddress | None", bytes, str]
"""A user's name, the peer's address, its User-Agent, and a session's reference."""


def call(
    method: str,
    caller: Caller,
    originator: str | None,
    task: str,
    seconds: float,
    arguments: list[tuple[str, object]],
    fault: list[str | Named] | None,
) -> Said:
    """Say how a call ended: done, or with a fault. `originator` is a login's."""
    user, peer, agent, session = caller
    address, port = where(peer)
    result = "done" if fault is None else " ".join([escape(str(fault[0])), *map(_value, fault[1:])])
    who = f"{quoted(user) if user else 'nobody'} from {address}"
    known: dict[str, object] = {
        "event": "call" if originator is None else "login",
        "method": shortened(method),
        "arguments": {name: _field(value) for name, value in arguments},
        "user": user,
        "address": address,
        "seconds": round(seconds, 6),
        "result": "done" if fault is None else "failed",
    }
    if port:
        known["port"] = port
    if fault is not None:
        known["error"] = [str(each) for each in fault]
    shown = agent.decode("latin-1")
    if agent:
        known["agent"] = shown
    if originator is not None:
        known["originator"] = originator
        who += f" with {quoted(shown)}" if agent else ""
        who += f" as {quoted(originator)}" if originator else ""
    if session:
        known["session"] = trackid(session)
        who += f" {known['session']}"
    if task:
        known["task"] = task
        who += f" task={task}"
    told = "".join(f" {name}={_value(value)}" for name, value in arguments)
    return f"{escape(shortened(method))}{told}: {result} in {seconds * 1000:.0f} ms, {who}", known


def where(peer: IAddress | None) -> tuple[str, int]:
    """Return the address and port of a peer; the local socket has neither."""
    host = getattr(peer, "host", None)
    return ("the local socket", 0) if host is None else (str(host), int(getattr(peer, "port", 0)))


def _value(value: object) -> str:
    """Return a value as text: what others have chosen in quotes."""
    if isinstance(value, Named):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if value is None:
        return "null"
    return quoted(value) if isinstance(value, str) else str(value)


def _field(value: object) -> object:
    """Return a value as JSON has it."""
    if isinstance(value, Named):
        return {"class": value.kind, "name": value.name, "uuid": value.uuid}
    return [_field(each) for each in value] if isinstance(value, list) else value
