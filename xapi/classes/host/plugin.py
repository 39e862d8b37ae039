"""Messages that run programs: plugins and extensions of a host, and what a guest's agent does on demand."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hypervisor.api import Change
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.hosts.plugins import Plugins
from xapi.vms import power
from xapi.vms.faults import told

Host = Ref[records.host]
VM = Ref[records.VM]
_AGENT = "guest-agent-operation"
"""The one plugin of VM.call_plugin."""
_INTERVAL = 10.0
"""Seconds between two calls for one VM."""
_RUN_SCRIPT = "allow_guest_agent_run_script"
"""Key of the pool's other_config that allows scripts to be run in guests."""
_LONGEST_SCRIPT = 1024


@message("host.call_plugin")
async def call_plugin(call: Call, host: Host, plugin: str, fn: str, args: Mapping[str, str]) -> str:
    """Run a function of one of the host's plugins."""
    _ = call.db.host[host]
    return await call[Plugins].call(plugin, fn, call.caller.session_ref, args)


@message("VM.call_host_plugin")
async def call_host_plugin(call: Call, vm: VM, plugin: str, fn: str, args: Mapping[str, str]) -> str:
    """Run a function of a plugin on the host that a VM is on."""
    return await call[Plugins].call(plugin, fn, call.caller.session_ref, args)


@message("host.has_extension")
def has_extension(call: Call, host: Host, name: str) -> bool:
    """Tell whether a host has an extension."""
    _ = call.db.host[host]
    return call[Plugins].has_extension(name)


@message("host.call_extension")
async def call_extension(call: Call, host: Host, call_: str) -> str:
    """Run one of the host's extensions; the call is a JSON-RPC request."""
    _ = call.db.host[host]
    try:
        request = json.loads(call_)
        method, parameters = request["method"], request["params"]
        if not isinstance(method, str) or not isinstance(parameters, list):
            raise TypeError("method or params have the wrong type")
    except (ValueError, TypeError, LookupError) as error:
        raise errors.INTERNAL_ERROR(f"no JSON-RPC call: {error}") from error
    value = await call[Plugins].call_extension(method, parameters)
    return value if isinstance(value, str) else json.dumps(value, default=str)


# What a guest's agent does


@message("VM.call_plugin")
async def call_agent(call: Call, vm: VM, plugin: str, fn: str, args: Mapping[str, str]) -> str:
    """Have a guest's agent do something; its own channels in xenstore carry it, no program is run."""
    row = call.db.VM[vm]
    if plugin != _AGENT:
        raise errors.XENAPI_MISSING_PLUGIN(plugin)
    _throttle(call, vm)
    if fn in ("request-rdp-on", "request-rdp-off"):
        await _request_rdp(call, row, plugin, fn)
        return ""
    if fn == "run-script":
        _check_script(call, args)
        raise errors.NOT_IMPLEMENTED("run-script")
    text = f'The requested fn "{fn}" could not be found in plugin "{plugin}".'
    raise errors.XENAPI_PLUGIN_FAILURE("failed to find fn", text, text)


def _throttle(call: Call, vm: str) -> None:
    """Raise VM_CALL_PLUGIN_RATE_LIMIT for a second call soon after the first."""
    now, last = call.clock.seconds(), call[Plugins].agent_calls
    for other in [other for other, at in last.items() if now - at > _INTERVAL]:
        del last[other]
    if vm in last and last[vm] + _INTERVAL > now:
        raise errors.VM_CALL_PLUGIN_RATE_LIMIT(vm, str(_INTERVAL), str(last[vm] + _INTERVAL - now))
    last[vm] = now


async def _request_rdp(call: Call, row: records.VM, plugin: str, fn: str) -> None:
    metrics = call.db.VM_guest_metrics.get(row.guest_metrics)
    if metrics is None or metrics.other.get("feature-ts2", "") in ("", "0"):
        text = (
            f'The requested fn "{fn}" of plugin "{plugin}" could not be executed for lack of guest agent control '
            "feature."
        )
        raise errors.XENAPI_PLUGIN_FAILURE("failed to execute fn", text, text)
    with told(row):
        wanted = "1" if fn.endswith("-on") else "0"
        await power.backend(call, row).adjust(row.uuid, Change(xenstore={"control/ts": wanted}))


def _check_script(call: Call, args: Mapping[str, str]) -> None:
    """Raise the Fault that a script meets before it would be run."""
    if call.pool.other_config.get(_RUN_SCRIPT) != "true":
        raise errors.FEATURE_RESTRICTED()
    for name in ("username", "password", "script"):
        if name not in args:
            raise errors.XENAPI_PLUGIN_FAILURE("missing argument", "", f"Argument {name} is required.")
    call.caller.require("VM.checkpoint")
    if len(args["script"].encode()) > _LONGEST_SCRIPT:
        text = "The script length must not exceed 1024 bytes"
        raise errors.XENAPI_PLUGIN_FAILURE("length restriction", "", text)
