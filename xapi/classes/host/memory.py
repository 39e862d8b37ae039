"""Messages of host about its memory."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref
from xapi.vms import memory

Host = Ref[records.host]


@message("host.compute_free_memory")
def compute_free_memory(call: Call, host: Host) -> int:
    """Return the bytes that are left for guests when those that are there, or come, are as small as they may be."""
    return memory.free(call.db, call.db.host[host])


@message("host.compute_memory_overhead")
def compute_memory_overhead(call: Call, host: Host) -> int:
    """Return the bytes that the virtualisation itself takes."""
    return call.db.host[host].memory_overhead
