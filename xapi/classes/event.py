"""Messages of event."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.events.batch import Batch, NextEvents
from xapi.events.listeners import Events


@message("event.from", stops_with_client=True)
async def from_(call: Call, classes: tuple[str, ...], token: str, timeout: float) -> Batch:
    """Return what has changed since the token, waiting for it if need be."""
    return await call[Events].from_(call.caller.client, classes, token, timeout)


@message("event.inject")
def inject(call: Call, class_: str, ref: str) -> str:
    """Touch an object; event.from with the token returned tells of it."""
    return call[Events].inject(class_, ref)


@message("event.register")
def register(call: Call, classes: tuple[str, ...]) -> None:
    """Subscribe this session, for event.next."""
    call[Events].register(call.caller.client, classes)


@message("event.unregister")
def unregister(call: Call, classes: tuple[str, ...]) -> None:
    """Give up a subscription."""
    call[Events].unregister(call.caller.client, classes)


@message("event.next", stops_with_client=True)
async def next_(call: Call) -> NextEvents:
    """Return the next events of the subscription, waiting for at least one."""
    return await call[Events].next(call.caller.client)


@message("event.get_current_id")
def get_current_id(call: Call) -> int:
    """Return the number of the newest event."""
    return call.db.generation
