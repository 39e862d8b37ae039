"""A toolstack that begins anew while its hosts and their guests run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi.access.sessions import Sessions
from xapi.calls.tasks import Tasks
from xapi.hosts import availability

if TYPE_CHECKING:
    from xapi.calls.work import Subsystems


def restart_toolstack(subsystems: Subsystems) -> None:
    """Forget what a toolstack forgets that is started again: work under way, sessions, hosts that were disabled."""
    sessions = subsystems[Sessions]
    for session in list(subsystems.db.session):
        sessions.end(session)
    subsystems[Tasks].end_all()
    availability.started(subsystems.db)
