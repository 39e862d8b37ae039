"""What clients hear of errors that nobody foresaw, and what they never hear."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hypervisor.api import Code, HostError, StorageFailure
from tests.api.conftest import Connection
from tests.api.test_power import make_vm
from tests.conftest import Pool
from xapi.calls.faults import Veil, unexpected
from xapi.datamodel import errors
from xapi.storage.faults import answering
from xapi.vms.faults import fault_of


def system(number: int, path: str = "/var/lib/xapi/x.db") -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (system(errno.ENOSPC), ["OUT_OF_SPACE", "x.db"]),
        (system(errno.EDQUOT), ["OUT_OF_SPACE", "x.db"]),
        (system(errno.EMFILE), ["TOO_BUSY"]),
        (system(errno.ENFILE), ["TOO_BUSY"]),
        (system(errno.EAGAIN), ["TOO_BUSY"]),
        (RuntimeError("can't start new thread"), ["TOO_BUSY"]),
        (KeyError("x"), ["INTERNAL_ERROR", "KeyError: 'x'"]),
        (system(errno.ENOENT), ["INTERNAL_ERROR", "FileNotFoundError: [Errno 2] No such file or directory: 'x.db'"]),
        (ValueError("connect to postgresql+psycopg://user:secret@db.lan/xapi failed"),
         ["INTERNAL_ERROR", "ValueError: connect to postgresql+psycopg:// failed"]),
        (ValueError("1/2 of a/b/c"), ["INTERNAL_ERROR", "ValueError: 1/2 of a/b/c"]),
    ],
)  # fmt: skip
def test_errors_that_nobody_foresaw(error: Exception, description: list[str]) -> None:
    """Shortages have codes that clients know; texts tell no paths and no addresses."""
    assert unexpected(error).description == description


@pytest.mark.parametrize("error", [MemoryError(), system(errno.ENOMEM)])
def test_lack_of_memory_tells_what_is_free(error: Exception) -> None:
    """How much would have been needed nobody knows."""
    code, needed, free = unexpected(error).description
    assert (code, needed) == ("HOST_NOT_ENOUGH_FREE_MEMORY", "unknown")
    assert 0 < int(free) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_shortages_are_told_through_what_a_host_backend_makes_of_them(pool: Pool) -> None:
    """Of a domain and of storage."""
    vm = make_vm(pool)
    try:
        raise HostError(Code.BAD_DISK, "x") from system(errno.EMFILE)
    except HostError as error:
        assert fault_of(error, vm).description == ["TOO_BUSY"]
    with pytest.raises(errors.Fault, match="TOO_BUSY"), answering():
        raise StorageFailure(46, "x") from system(errno.EMFILE)
    assert fault_of(HostError(Code.FAILED, "x"), vm).description == ["INTERNAL_ERROR", "failed: x"]


ERRORS = {
    Code.LOST: "HOST_OFFLINE", Code.BUSY: "TOO_BUSY", Code.NO_GUESTS: "VM_HVM_REQUIRED", Code.NO_SPACE: "SR_FULL",
    Code.NO_MEMORY: "HOST_NOT_ENOUGH_FREE_MEMORY", Code.NO_DOMAIN: "VM_BAD_POWER_STATE",
    Code.NOT_RUNNING: "VM_BAD_POWER_STATE", Code.NOT_ACKNOWLEDGED: "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT",
    Code.NOT_SUSPENDED: "VM_FAILED_SUSPEND_ACKNOWLEDGMENT", Code.NO_VCPU: "VM_LACKS_FEATURE",
    Code.BAD_KERNEL: "BOOTLOADER_FAILED", Code.BOOTLOADER_FAILED: "BOOTLOADER_FAILED",
    Code.BAD_DISK: "SR_BACKEND_FAILURE_46", Code.STORAGE: "SR_BACKEND_FAILURE_44",
}  # fmt: skip
OF_DEVICES = ERRORS | {
    Code.BAD_DISK: "VDI_NOT_AVAILABLE", Code.DEVICE_EXISTS: "DEVICE_ALREADY_ATTACHED",
    Code.DETACH_TIMEOUT: "DEVICE_DETACH_TIMEOUT",
}  # fmt: skip


@pytest.mark.parametrize("code", Code)
def test_whatever_a_host_cannot_do_is_an_error_of_the_api(pool: Pool, code: Code) -> None:
    """Of a VM, and of a drive of it; what clients can do nothing about has no error of its own."""
    vm, error = make_vm(pool), HostError(code, "x") if code is not Code.STORAGE else StorageFailure(44, "x")
    vbd: Any = pool.db.VBD.create(VM=vm._ref)
    assert fault_of(error, vm).code == ERRORS.get(code, "INTERNAL_ERROR")
    assert fault_of(error, vm, vbd).code == OF_DEVICES.get(code, "INTERNAL_ERROR")


def test_paths_of_the_hosts_own_directories_are_relative() -> None:
    """Longest first; those of others, which the client named, stay."""
    veil = Veil([Path("/var/lib/xapi"), Path("/var/lib/xapi/storage"), Path("/")])
    told = veil.over(
        errors.Fault("X", "/var/lib/xapi/storage/sr/a.vhd", "'/var/lib/xapi/b'", "/var/lib/xapiary", "/dev/sdb")
    )
    assert told == ["X", "sr/a.vhd", "'b'", "/var/lib/xapiary", "/dev/sdb"]


def test_no_answer_tells_where_the_hosts_directories_are(pool: Pool) -> None:
    """Neither XML-RPC, nor JSON-RPC, nor a task."""
    vm = make_vm(pool)
    pool.backend.fail["build"] = HostError(Code.FAILED, f"{pool.storage_directory}/sr/a.vhd: broken")
    told = ["INTERNAL_ERROR", "failed: sr/a.vhd: broken"]
    wire = Connection(pool)
    assert wire.json("VM.start", pool.session, vm._ref, False, False, version=None)["error"] == told
    arguments = [f"<value>{each}</value>" for each in (pool.session, vm._ref)] + [
        "<value><boolean>0</boolean></value>"
    ] * 2
    assert wire.ask("VM.start", *arguments).error() == told
    task = wire.ask("Async.VM.start", *arguments).value()
    assert list(pool.db.task[task].error_info) == told


def test_the_log_has_the_whole_of_an_error(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its path, for who may read it."""

    def run(call: Any) -> None:
        raise system(errno.EIO)

    dispatcher = pool.daemon.dispatcher
    told: list[Any] = []
    monkeypatch.setattr(dispatcher._calls, "_put", lambda *line: told.append(line))
    monkeypatch.setattr(dispatcher.methods["pool.sync_database"], "function", run)
    monkeypatch.setattr(dispatcher.methods["pool.sync_database"], "waits", False)
    assert pool.fails("pool.sync_database")[0] == "INTERNAL_ERROR"
    assert any("/var/lib/xapi/x.db" in str(line) for line in told)
