"""Messages of blob, and those of other classes that make one."""

from __future__ import annotations

from typing import Any

from xapi import errors, records
from xapi.call import Call
from xapi.lexical import EPOCH
from xapi.registry import message
from xapi.types import Ref


def _make(call: Call, mime_type: str, public: bool) -> Ref[records.blob]:
    mime_type = mime_type or "application/octet-stream"
    return call.db.blob.create(mime_type=mime_type, public=public, last_updated=EPOCH)._ref


def _attach(call: Call, class_name: str, ref: Ref[Any], name: str, mime_type: str, public: bool) -> Ref[records.blob]:
    owner = call.db.tables[class_name][ref]
    if name in owner.blobs:
        raise errors.MAP_DUPLICATE_KEY(class_name, "blobs", ref, name)
    blob = _make(call, mime_type, public)
    owner.blobs = {**owner.blobs, name: blob}
    return blob


@message("VM.create_new_blob")
def create_for_vm(call: Call, vm: Ref[records.VM], name: str, mime_type: str, public: bool) -> Ref[records.blob]:
    """Make an empty blob of a VM."""
    return _attach(call, "VM", vm, name, mime_type, public)


@message("host.create_new_blob")
def create_for_host(call: Call, host: Ref[records.host], name: str, mime_type: str, public: bool) -> Ref[records.blob]:
    """Make an empty blob of a host."""
    return _attach(call, "host", host, name, mime_type, public)


@message("pool.create_new_blob")
def create_for_pool(call: Call, pool: Ref[records.pool], name: str, mime_type: str, public: bool) -> Ref[records.blob]:
    """Make an empty blob of the pool."""
    return _attach(call, "pool", pool, name, mime_type, public)


@message("network.create_new_blob")
def create_for_network(
    call: Call, network: Ref[records.network], name: str, mime_type: str, public: bool
) -> Ref[records.blob]:
    """Make an empty blob of a network."""
    return _attach(call, "network", network, name, mime_type, public)


@message("SR.create_new_blob")
def create_for_sr(call: Call, sr: Ref[records.SR], name: str, mime_type: str, public: bool) -> Ref[records.blob]:
    """Make an empty blob of an SR."""
    return _attach(call, "SR", sr, name, mime_type, public)


@message("blob.create")
def create(call: Call, mime_type: str, public: bool) -> Ref[records.blob]:
    """Make an empty blob that belongs to no object."""
    return _make(call, mime_type, public)


@message("blob.destroy")
def destroy(call: Call, self: Ref[records.blob]) -> None:
    """Remove a blob."""
    call.db.blob.delete(self)
