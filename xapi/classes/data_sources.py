"""Messages of VM, host and SR about data sources: what is measured, what of it is recorded, and its last value.

Archives are none of this: what is recorded says only what they will have. An SR has no sources of its own here.
"""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import Ref
from xapi.vms.data_sources import Source
from xapi.vms.metrics import Sampler

VM = Ref[records.VM]
Host = Ref[records.host]
SR = Ref[records.SR]
Sources = Mapping[str, Source]


def _missing(name: str) -> Fault:
    """Return how xapi says that nothing of a name is measured."""
    return errors.INTERNAL_ERROR(f"Rrd_interface.Rrdd_error([S(Datasource_missing);S({name})])")


def _unrecorded(name: str) -> Fault:
    """Return how xapi says that nothing of a name is recorded."""
    text = f'Rrd.Invalid_data_source("{name}")'
    return errors.INTERNAL_ERROR(f"Rrd_interface.Rrdd_error([S(Rrdd_internal_error);S({text})])")


def _list(call: Call, uuid: str, sources: Sources) -> list[dict[str, object]]:
    recorded = call[Sampler].recorded
    return [source.record(enabled=recorded(uuid, source)) for _, source in sorted(sources.items())]


def _query(call: Call, uuid: str, sources: Sources, name: str) -> float:
    source = sources.get(name)
    if source is None or not call[Sampler].recorded(uuid, source):
        raise _unrecorded(name)
    return float(source.value)


def _record(call: Call, uuid: str, sources: Sources, name: str) -> None:
    if name not in sources:
        raise _missing(name)
    call[Sampler].record(uuid, name, wanted=True)


def _forget(call: Call, uuid: str, sources: Sources, name: str) -> None:
    if name not in sources or not call[Sampler].recorded(uuid, sources[name]):
        raise _unrecorded(name)
    call[Sampler].record(uuid, name, wanted=False)


# VM


@message("VM.get_data_sources")
async def vm_get_data_sources(call: Call, self: VM) -> list[dict[str, object]]:
    """Return what is measured of a VM that runs."""
    row = call.db.VM[self]
    return _list(call, row.uuid, await call[Sampler].sources(row))


@message("VM.query_data_source")
async def vm_query_data_source(call: Call, self: VM, data_source: str) -> float:
    """Return the last value of what is measured of a VM that lives."""
    row = call.db.VM[self]
    if row.power_state not in ("Running", "Paused"):
        raise errors.VM_BAD_POWER_STATE(self, "running;paused", row.power_state.lower())
    return _query(call, row.uuid, await call[Sampler].sources(row), data_source)


@message("VM.record_data_source")
async def vm_record_data_source(call: Call, self: VM, data_source: str) -> None:
    """Have something be recorded that is measured of a VM that runs."""
    row = call.db.VM[self]
    _record(call, row.uuid, await call[Sampler].sources(row), data_source)


@message("VM.forget_data_source_archives")
async def vm_forget_data_source_archives(call: Call, self: VM, data_source: str) -> None:
    """Have something not be recorded any more."""
    row = call.db.VM[self]
    _forget(call, row.uuid, await call[Sampler].sources(row), data_source)


# host


@message("host.get_data_sources")
def host_get_data_sources(call: Call, host: Host) -> list[dict[str, object]]:
    """Return what is measured of a host."""
    row = call.db.host[host]
    return _list(call, row.uuid, call[Sampler].host_sources(row))


@message("host.query_data_source")
def host_query_data_source(call: Call, host: Host, data_source: str) -> float:
    """Return the last value of what is measured of a host."""
    row = call.db.host[host]
    return _query(call, row.uuid, call[Sampler].host_sources(row), data_source)


@message("host.record_data_source")
def host_record_data_source(call: Call, host: Host, data_source: str) -> None:
    """Have something be recorded that is measured of a host."""
    row = call.db.host[host]
    _record(call, row.uuid, call[Sampler].host_sources(row), data_source)


@message("host.forget_data_source_archives")
def host_forget_data_source_archives(call: Call, host: Host, data_source: str) -> None:
    """Have something not be recorded any more."""
    row = call.db.host[host]
    _forget(call, row.uuid, call[Sampler].host_sources(row), data_source)


# SR


@message("SR.get_data_sources")
def sr_get_data_sources(call: Call, sr: SR) -> list[dict[str, object]]:
    """Return nothing: no SR of ours measures itself."""
    _ = call.db.SR[sr]
    return []


@message("SR.query_data_source")
def sr_query_data_source(call: Call, sr: SR, data_source: str) -> float:
    """Refuse as xapi does where an SR measures nothing."""
    raise _missing(f"SR: {call.db.SR[sr].uuid}")


@message("SR.record_data_source")
def sr_record_data_source(call: Call, sr: SR, data_source: str) -> None:
    """Refuse as xapi does where an SR measures nothing."""
    raise _missing(f"SR: {call.db.SR[sr].uuid}")


@message("SR.forget_data_source_archives")
def sr_forget_data_source_archives(call: Call, sr: SR, data_source: str) -> None:
    """Do nothing, as xapi does where an SR measures nothing."""
    _ = call.db.SR[sr]
