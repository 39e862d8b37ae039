"""The audit trail: who called what with effect, a line a call, as xapi's rbac_audit.ml writes it.

A line has the head of its debug.ml, ``[<moment>|audit||<thread>|<task>|audit] ``, and a list of quoted fields: the
session's hash, the subject's SID (LOCAL_SUPERUSER for root), its name, ALLOWED or DENIED, OK or ERROR with the fault,
API or HTTP, the call, and its arguments, each ``('parameter' 'name' 'uuid' 'reference')``. It is written when the call
has ended, an Async one too. Left out are calls with ``.get`` in their name and a few that are only noise; of arguments
only references, names and what xapi lists are written.

Otherwise than xapi: a secret parameter is never written, whatever it looks like; in place of a session's reference
among the arguments stands its hash; ``VM_get_uuid`` counts as the getter that it is; and what is not printable is
written ``\\x1B``, but letters of other scripts stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from xapi.datamodel.quoting import trackid
from xapi.datamodel.types import NULL
from xapi.log.files import RotatedFile
from xapi.log.lines import INFO, Line, Said
from xapi.log.names import Named, Names
from xapi.log.sentences import where
from xapi.log.writer import Stream

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

    from xapi.access.caller import Origin
    from xapi.datamodel import records
    from xapi.log.plan import Plan
    from xapi.store.memory import Store

BYTES, KEPT = 4 << 20, 25
"""The file is rotated before it grows over so many bytes, and so many old ones are kept."""

_IGNORED = frozenset({
    "session.local_logout", "session.logout", "event.next", "event.from", "host.tickle_heartbeat",
})  # fmt: skip
_ALWAYS = frozenset({"name", "label", "description", "name_label", "name_description", "new_name"})
_SHOWN: Mapping[str, frozenset[str]] = {
    call: frozenset(names.split())
    for call, names in {
        "host.create": "hostname address external_auth_type external_auth_service_name edition",
        "VM.create": "is_a_template memory_target memory_static_max memory_dynamic_max memory_dynamic_min "
        "memory_static_min ha_always_run ha_restart_priority",
        "host.set_address": "value",
        "VM.migrate": "dest live",
        "VM.start_on": "start_paused force",
        "VM.start": "start_paused force",
        "pool.create_VLAN": "device vLAN",
        "pool.join_force": "master_address",
        "pool.join": "master_address",
        "pool.enable_external_auth": "service_name auth_type",
        "host.enable_external_auth": "service_name auth_type",
        "subject.create": "subject_identifier other_config",
        "subject.create.other_config": "subject-name",
        "message.create": "name body",
    }.items()
}
"""Further arguments in clear, by call; xapi's list."""
_SUBJECTS = frozenset({"subject.destroy", "subject.remove_from_roles", "subject.add_to_roles"})
"""Calls whose subject is named by its other_config."""

Argument = tuple[str, "str | list[Argument]", str, str]


class Trail:
    """Write the audit trail. `put` takes a line for it, as `Writer.put` does."""

    def __init__(self, db: Store, seconds: Callable[[], float], put: Callable[[Line], None]) -> None:
        self.names = Names(db)
        self._db = db
        self._seconds = seconds
        self._put = put
        self._numbers = count(1)

    def takes(self, name: str) -> bool:
        """Tell whether calls of a message are written."""
        return ".get" not in name and name not in _IGNORED

    def arguments(self, plan: Plan, params: list[object]) -> list[Argument]:
        """Return what is written of a call's parameters, as things are now."""
        named = [
            (name, value)
            for name, value, secrets in zip(plan.parameters, params, plan.declared_secret, strict=False)
            if not secrets
        ]
        if plan.makes and named and isinstance(named[0][1], Mapping):
            named = [(name, value) for name, value in named[0][1].items() if name not in plan.secret_members]
        found = list(self._arguments(plan.name, named, plan.targets))
        if plan.name == "VBD.destroy" and params and (vbd := self._db.VBD.get(str(params[0]))) is not None:
            found += self._arguments(plan.name, [("VDI", vbd.VDI)])
        return found

    def _arguments(
        self, call: str, named: list[tuple[str, object]], targets: Mapping[str, str] = MappingProxyType({})
    ) -> Iterator[Argument]:
        """Yield what is written of arguments; `targets` has the classes that are known of them, which is quick."""
        for name, value in named:
            if name in _ALWAYS or name in _SHOWN.get(call, ()):
                if isinstance(value, Mapping):
                    yield name, list(self._arguments(f"{call}.{name}", list(value.items()))), "", ""
                else:
                    text = value if isinstance(value, str) else rpc_text(value)
                    yield name, self.names.without_sessions(text), "", ""
            elif isinstance(value, str) and (known := self._object(call, name, value, targets)) is not None:
                yield name, self.names.without_sessions(known.name), known.uuid, known.ref

    def _object(self, call: str, name: str, value: str, targets: Mapping[str, str]) -> Named | None:
        """Return what a value refers to, by reference or uuid; one that is gone has neither name nor uuid."""
        if value in self._db.session:
            return Named("session", "", "", trackid(value))
        known = self.names.of(targets.get(name, ""), value) or self.names.find(value)
        if known is None:
            return Named("", "", "", value) if value.startswith("OpaqueRef:") and value != NULL else None
        if call in _SUBJECTS and name == "self":
            subject = self._db.subject.get(known.ref)
            return known if subject is None else known._replace(name=subject.other_config.get("subject-name", ""))
        return known

    def ended(
        self,
        action: str,
        arguments: list[Argument],
        session: records.session,
        origin: Origin,
        name: str,
        task: records.task | None,
        fault: list[str] | None,
    ) -> None:
        """Write that an allowed call has ended. `fault` is a description without secrets."""
        result = "OK" if fault is None else f"ERROR:{fault[0]}: [ {'; '.join(fault[1:])} ]"
        said = name if task is None else f"{name} {small(task._ref)}"
        self._write(action, arguments, session, origin, said, ("ALLOWED", result))

    def denied(self, plan: Plan, params: list[object], session: records.session, origin: Origin) -> None:
        """Write that a call was denied."""
        if self.takes(plan.name):
            self._write(plan.name, self.arguments(plan, params), session, origin, plan.name, ("DENIED", ""))

    def came(self, session: records.session, user: str) -> None:
        """Write that a subject has logged in; root's logins and those among hosts are none of the trail's."""
        self._session("session.create", session, [("uname", user, "", "")])

    def went(self, session: records.session) -> None:
        """Write that a subject's session has ended."""
        self._session("session.destroy", session, [])

    def _session(self, action: str, session: records.session, arguments: list[Argument]) -> None:
        if not (session.pool or session.is_local_superuser):
            self._write(action, [*arguments, ("originator", session.originator, "", "")], session, None, action, _OK)

    def _write(
        self,
        action: str,
        arguments: list[Argument],
        session: records.session,
        origin: Origin | None,
        task: str,
        result: tuple[str, str],
    ) -> None:
        who = ("LOCAL_SUPERUSER" if session.is_local_superuser else session.auth_user_sid, session.auth_user_name)
        if " " not in task:
            task = f"{task} D:{next(self._numbers):012x}"
        peer = None if origin is None else origin.peer
        seconds = self._seconds()
        values = (seconds, peer, task, session._ref, who, result, action, arguments)
        self._put((seconds, INFO, __name__, _said, values))


_OK = ("ALLOWED", "OK")


def stream(path: Path) -> Stream:
    """Return the stream of the trail's file, which is rotated. Raises OSError."""
    return Stream(path.name, lambda line: line[3](*line[4])[0].encode("utf-8", "backslashreplace") + b"\n",
                  RotatedFile(path, BYTES, KEPT))  # fmt: skip


def small(ref: str) -> str:
    """Return a task's reference as debug.ml shortens it: twelve digits."""
    return f"R:{ref[10:18]}{ref[19:23]}"


def rpc_text(value: object) -> str:
    """Return a wire value as rpclib's Rpc.to_string prints it."""
    if isinstance(value, bool):
        return f"B({'true' if value else 'false'})"
    if isinstance(value, int):
        return f"I({value})"
    if isinstance(value, float):
        return f"F({value:g})"
    if isinstance(value, list | tuple):
        return f"[{';'.join(map(rpc_text, value))}]"
    if value is None:
        return "N"
    return f"S({value})" if isinstance(value, str) else f"D({value})"


def _said(
    seconds: float, peer: IAddress | None, task: str, session: str, who: tuple[str, str], result: tuple[str, str],
    action: str, arguments: list[Argument],
) -> Said:  # fmt: skip
    """Return the line."""
    address, port = where(peer)
    thread = f"0 HTTP {address}" if port else "0 UNIX"
    moment = datetime.fromtimestamp(seconds, UTC)
    stamp = f"{moment:%Y%m%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
    fields = [trackid(session), *who, *result, "HTTP" if action.startswith("http/") else "API", action, arguments]
    return f"[{stamp}|audit||{thread}|{_printable(task)}|audit] {_printable(_sexpr(fields))}", {}


def _sexpr(value: object) -> str:
    """Return a list as xapi's SExpr prints it: in brackets, its texts in quotes, with blanks between."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    assert isinstance(value, list | tuple)
    return f"({' '.join(map(_sexpr, value))})"


def _printable(text: str) -> str:
    text = text.replace("\n", " ").replace("\r", " ")
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else "".join(f"\\x{byte:02X}" for byte in each.encode("utf-8", "surrogatepass"))
        for each in text
    )
