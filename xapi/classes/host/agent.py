"""Messages of host about the machine and the toolstack on it: time, logs, certificate, restart."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, available_timezones

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.hosts import restart
from xapi.hosts.backends import Backends
from xapi.hosts.certificate import Certificate
from xapi.storage.unfinished import durable

Host = Ref[records.host]
_FUSE = 1.0
"""Seconds before the toolstack restarts, in which the answer reaches the client."""


# Time


@message("host.get_servertime")
def get_servertime(call: Call, host: Host) -> datetime:
    """Return a host's clock, in UTC."""
    _ = call.db.host[host]
    return call.now


@message("host.get_server_localtime")
def get_server_localtime(call: Call, host: Host) -> datetime:
    """Return a host's clock in its time zone, without saying which."""
    return call.now.astimezone(ZoneInfo(call.db.host[host].timezone)).replace(tzinfo=None)


@message("host.list_timezones")
def list_timezones(call: Call, self: Host) -> tuple[str, ...]:
    """Return the names of the time zones that a host knows."""
    _ = call.db.host[self]
    return tuple(sorted(available_timezones() | {"UTC"}))


@message("host.set_timezone")
def set_timezone(call: Call, self: Host, value: str) -> None:
    """Put a host into a time zone."""
    row = call.db.host[self]
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise errors.INVALID_VALUE("timezone", value) from None
    row.timezone = value


# What it says of itself


@message("host.dmesg")
async def dmesg(call: Call, host: Host) -> str:
    """Return the log of a host's hypervisor."""
    return await call[Backends].of(call.db.host[host]).log()


@message("host.dmesg_clear")
def dmesg_clear(call: Call, host: Host) -> str:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("dmesg_clear")


@message("host.get_log")
def get_log(call: Call, host: Host) -> str:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("get_log")


@message("host.list_methods")
def list_methods(call: Call) -> tuple[str, ...]:
    """Refuse, as xapi does."""
    raise errors.NOT_IMPLEMENTED("list_method")


@message("host.get_system_status_capabilities")
def get_system_status_capabilities(call: Call, host: Host) -> str:
    """Return which parts a status report can have: none before there are reports."""
    _ = call.db.host[host]
    return '<?xml version="1.0" ?>\n<system-status-capabilities/>\n'


@message("host.get_server_certificate")
def get_server_certificate(call: Call, host: Host) -> str:
    """Return the certificate that TLS is served with, in PEM."""
    _ = call.db.host[host]
    served = call[Certificate].pem
    if not served:
        raise errors.INTERNAL_ERROR("no TLS is served")
    return served


@message("host.syslog_reconfigure")
def syslog_reconfigure(call: Call, host: Host) -> None:
    """Have the log go where host.logging says: nowhere else, for no other machine is told of it."""
    if call.db.host[host].logging.get("syslog_destination"):
        raise errors.NOT_IMPLEMENTED("host.syslog_reconfigure")


# The toolstack


@message("host.restart_agent")
def restart_agent(call: Call, host: Host) -> None:
    """Have the toolstack begin anew in a second: sessions and tasks end, VMs run on."""
    _ = call.db.host[host]
    call.clock.callLater(_FUSE, restart.restart_toolstack, call.subsystems)


@message("host.sync_data")
async def sync_data(call: Call, host: Host) -> None:
    """Return when all changes so far are durable: one daemon has the files of all hosts."""
    _ = call.db.host[host]
    await durable(call.db)


@message("host.is_in_emergency_mode")
def is_in_emergency_mode(call: Call) -> bool:
    """Tell whether the daemon misses its coordinator: it is it."""
    return False


@message("host.local_assert_healthy")
def local_assert_healthy(call: Call) -> None:
    """Raise nothing: only a supporter can miss its coordinator."""
