"""One call of one message: work, and who has asked for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.access.caller import Caller
from xapi.calls.tasks import Tasks
from xapi.calls.work import Subsystems, Work
from xapi.datamodel import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xapi.datamodel import Message, records


class Call(Work):
    """A call; `name` is the message's as it was called, with ``Async.`` in front."""

    __slots__ = ("borrowed", "message")

    def __init__(
        self, subsystems: Subsystems, message: Message, name: str, caller: Caller, task: records.task | None = None
    ) -> None:
        super().__init__(subsystems, name, caller, task)
        self.message = message
        self.borrowed = False
        """The task is one that the client named: its end is the client's to write."""

    def _begin(self) -> records.task:
        """Return the task that the client named, or a new one."""
        tasks, caller = self[Tasks], self.caller
        task = tasks.named_by(caller.origin, caller.session)
        self.borrowed = task is not None
        return task or tasks.create(self.name, session=caller.session, origin=caller.origin)

    def done(self) -> None:
        """Let the task go, unless it is the client's own."""
        if not self.borrowed:
            super().done()

    def require_keys(self, field: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Check a whole map that is being set, key by key, where a key that changes has a role of its own.

        Raises RBAC_PERMISSION_DENIED.
        """
        adder = self[Model].classes[self.message.class_name].messages[f"add_to_{field}"]
        for key in {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}:
            self.caller.require(key_permission(adder, key) or self.message.full_name)


def key_permission(message: Message, key: str) -> str | None:
    """Return the permission that one key of a map asks for, or None when it is like the others."""
    for pattern in message.key_roles:
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return f"{message.full_name}/key:{pattern}"
    return None
