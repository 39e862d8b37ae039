"""What the sampler writes into metrics rows, and what data sources tell; the backend is a fake."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hypervisor.api import Code, Disk, HostError
from tests.api.test_power import make_vm, running
from tests.conftest import Pool

MIB = 1 << 20


def look(pool: Pool, seconds: float = 5.0) -> None:
    """Let time pass, and look."""
    pool.clock.advance(seconds)
    pool.outcome(pool.daemon.metrics.tick())
    pool.turn()


@pytest.fixture
def vm(pool: Pool) -> Any:
    row = running(pool)
    look(pool)
    return row


def metrics(pool: Pool, vm: Any) -> Any:
    return pool.db.VM_metrics[vm.metrics]


def test_the_share_of_a_core_since_the_last_look(pool: Pool, vm: Any) -> None:
    """Of each vCPU, in hundredths, at most the whole."""
    assert metrics(pool, vm).VCPUs_utilisation == {0: 0.0}
    pool.backend.doms[vm.uuid].cpu_time += 2.0
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {0: 0.4}
    pool.backend.doms[vm.uuid].cpu_time += 50.0
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {0: 1.0}


def test_vcpus_that_are_offline_use_nothing(pool: Pool) -> None:
    """They have a share of nothing, and take nothing from what is told of the one that is online."""
    vm = running(pool, VCPUs_max=4, VCPUs_at_startup=1)
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == dict.fromkeys(range(4), 0.0)
    pool("VM.record_data_source", vm._ref, "runstate_fullrun")
    pool.backend.doms[vm.uuid].cpu_time += 0.5  # the average of four
    look(pool)
    assert pool("VM.query_data_source", vm._ref, "runstate_fullrun") == pytest.approx(4 * 0.5 / 5)


def test_a_balloon_and_a_pause_are_seen(pool: Pool, vm: Any) -> None:
    """With the time."""
    pool.backend.doms[vm.uuid].actual = 32 * MIB
    look(pool)
    row = metrics(pool, vm)
    assert row.memory_actual == 32 * MIB
    assert row.last_updated.timestamp() == int(pool.clock.seconds())
    pool("VM.pause", vm._ref)
    look(pool)
    assert tuple(row.state) == ("paused",)
    assert pool("VM.query_data_source", vm._ref, "memory") == 32 * MIB


def test_nothing_changes_while_nothing_happens(pool: Pool, vm: Any) -> None:
    """Neither rows nor generations."""
    look(pool)
    before = pool.db.generation
    for _ in range(3):
        look(pool)
    assert pool.db.generation == before


def test_a_vm_that_is_down_uses_nothing(pool: Pool, vm: Any) -> None:
    """And a new domain begins anew."""
    pool.backend.doms[vm.uuid].cpu_time += 2.0
    look(pool)
    pool("VM.hard_shutdown", vm._ref)
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {}
    pool("VM.start", vm._ref, False, False)
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {0: 0.0}


def test_the_hosts_free_memory(pool: Pool) -> None:
    """What no guest holds or may grow to."""
    look(pool)
    host = next(iter(pool.db.host))
    row: Any = pool.db.host_metrics[host.metrics]
    dom0 = pool.db.VM[host.control_domain]
    before = row.memory_free
    assert before == row.memory_total - host.memory_overhead - dom0.memory_static_max - dom0.memory_overhead
    vm = running(pool)
    look(pool)
    assert before - row.memory_free == 64 * MIB + vm.memory_overhead
    assert row.last_updated.timestamp() == int(pool.clock.seconds())


def test_a_domain_that_went_while_it_was_looked_at_is_left_alone(pool: Pool, vm: Any) -> None:
    """Nothing of it is written."""
    del pool.backend.doms[vm.uuid]
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {}


def test_a_host_that_does_not_answer_is_passed_over(pool: Pool, vm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it does again."""

    async def silent(uuid: str) -> None:
        raise HostError(Code.FAILED, "by the test")

    with monkeypatch.context() as patch:
        patch.setattr(pool.backend, "stat", silent)
        look(pool)
    look(pool)
    assert metrics(pool, vm).VCPUs_utilisation == {0: 0.0}


def test_rates_of_drives_and_cards(pool: Pool) -> None:
    """In whole KiB a second, where there are rows for them."""
    vm = make_vm(pool)
    rates = pool.db.VBD_metrics.create()
    pool.db.VBD.create(VM=vm._ref, userdevice="3", type="CD", mode="RO", empty=True, metrics=rates._ref)
    pool("VM.start", vm._ref, False, False)
    look(pool)
    pool.backend.doms[vm.uuid].counters = {(Disk, 3): {"read_bytes": 50 * 1024, "written_bytes": 25 * 1024}}
    look(pool)
    assert (rates.io_read_kbs, rates.io_write_kbs) == (10.0, 5.0)
    look(pool)
    assert (rates.io_read_kbs, rates.io_write_kbs) == (0.0, 0.0)


# Data sources


def names(pool: Pool, vm: Any) -> dict[str, Any]:
    return {each["name_label"]: each for each in pool("VM.get_data_sources", vm._ref)}


def test_sources_of_a_vm(pool: Pool) -> None:
    """By xapi's names, of processors, memory, drives and cards."""
    vm = make_vm(pool)
    network = next(iter(pool.db.network))
    pool.db.VIF.create(VM=vm._ref, network=network._ref, device="2", MAC="02:00:00:00:00:01")
    pool.db.VBD.create(VM=vm._ref, userdevice="3", type="CD", mode="RO", empty=True)
    pool("VM.start", vm._ref, False, False)
    domain = pool.backend.doms[vm.uuid]
    domain.guest["data/meminfo_free"] = "1234"
    look(pool)
    domain.counters = {
        (Disk, 3): {"reads": 10, "writes": 5, "read_bytes": 10 * MIB, "written_bytes": 5 * MIB, "in_flight": 2,
                    "wait_ns": 30_000_000},
    }  # fmt: skip
    look(pool)
    found = names(pool, vm)
    assert {"cpu0", "cpu_usage", "memory", "memory_target", "memory_internal_free"} <= set(found)
    assert {"vif_2_rx", "vif_2_tx", "vbd_xvdd_read", "vbd_xvdd_write", "vbd_xvdd_iops_total"} <= set(found)
    memory = found["memory"]
    assert (memory["units"], memory["min"], memory["max"], memory["value"]) == ("B", 0.0, math.inf, 0.0)
    assert memory["enabled"] and memory["standard"]
    assert not found["vif_2_rx_errors"]["enabled"]
    for name, value in {
        "memory": 64 * MIB, "memory_internal_free": 1234, "vbd_xvdd_read": 2 * MIB, "vbd_xvdd_write": MIB,
        "vbd_xvdd_iops_total": 3, "vbd_xvdd_io_throughput_total": 3, "vbd_xvdd_inflight": 2,
        "vbd_xvdd_latency": 2000, "vif_2_rx": 0,
    }.items():  # fmt: skip
        assert pool("VM.query_data_source", vm._ref, name) == value, name


def test_a_rate_needs_two_looks(pool: Pool) -> None:
    """Until then it is no number, as in an archive that has just begun; a gauge is told at once."""
    vm = running(pool)
    assert math.isnan(pool("VM.query_data_source", vm._ref, "cpu0"))
    assert pool("VM.query_data_source", vm._ref, "memory") == 64 * MIB
    look(pool)
    assert pool("VM.query_data_source", vm._ref, "cpu0") == 0.0


def test_a_name_that_is_none_is_refused(pool: Pool, vm: Any) -> None:
    """With the text that xapi has for it."""
    missing = "Rrd_interface.Rrdd_error([S(Datasource_missing);S(nothing)])"
    assert pool.fails("VM.record_data_source", vm._ref, "nothing") == ["INTERNAL_ERROR", missing]
    for name in ("VM.query_data_source", "VM.forget_data_source_archives"):
        code, text = pool.fails(name, vm._ref, "nothing")
        assert code == "INTERNAL_ERROR"
        assert 'Rrd.Invalid_data_source("nothing")' in text


def test_what_is_recorded_is_chosen(pool: Pool, vm: Any) -> None:
    """What is not cannot be asked for."""
    assert not names(pool, vm)["runstate_blocked"]["enabled"]
    assert pool.fails("VM.query_data_source", vm._ref, "runstate_blocked")[0] == "INTERNAL_ERROR"
    pool("VM.record_data_source", vm._ref, "runstate_blocked")
    look(pool)
    assert names(pool, vm)["runstate_blocked"]["enabled"]
    assert pool("VM.query_data_source", vm._ref, "runstate_blocked") == 0.0
    pool("VM.forget_data_source_archives", vm._ref, "memory")
    assert not names(pool, vm)["memory"]["enabled"]
    assert pool.fails("VM.query_data_source", vm._ref, "memory")[0] == "INTERNAL_ERROR"


def test_halted_vms_have_no_sources(pool: Pool) -> None:
    """Which is told as for other operations."""
    vm = make_vm(pool)
    assert pool.fails("VM.get_data_sources", vm._ref) == ["VM_BAD_POWER_STATE", vm._ref, "running", "halted"]
    expected = ["VM_BAD_POWER_STATE", vm._ref, "running;paused", "halted"]
    assert pool.fails("VM.query_data_source", vm._ref, "memory") == expected


def test_sources_of_hosts_control_domains_and_srs(pool: Pool, vm: Any) -> None:
    """As far as there is a value."""
    host = next(iter(pool.db.host))
    found = {each["name_label"] for each in pool("host.get_data_sources", host._ref)}
    assert {"memory_total_kib", "memory_free_kib", "cpu_avg", "running_domains"} <= found
    row: Any = pool.db.host_metrics[host.metrics]
    assert pool("host.query_data_source", host._ref, "memory_free_kib") == row.memory_free // 1024
    assert pool("host.query_data_source", host._ref, "running_domains") == 2
    dom0 = pool.db.VM[host.control_domain]
    assert pool("VM.query_data_source", dom0._ref, "memory") == dom0.memory_static_max
    sr = next(iter(pool.db.SR))
    assert list(pool("SR.get_data_sources", sr._ref)) == []
    assert pool.fails("SR.query_data_source", sr._ref, "io")[0] == "INTERNAL_ERROR"


def test_all_of_a_host_s_domains_are_asked_for_in_one_go(pool: Pool) -> None:
    """However many there are: each way to the host and back waits for others that run."""
    rows = [running(pool) for _ in range(3)]
    pool.backend.calls.clear()
    look(pool)
    assert pool.backend.calls == ["truths"]
    assert all(metrics(pool, row).VCPUs_utilisation == {0: 0.0} for row in rows)


def test_what_is_written_of_many_domains_takes_several_turns(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a turn, where a domain takes all of it."""
    rows = [running(pool) for _ in range(3)]
    monkeypatch.setattr("xapi.turns.TURN", 0.0)
    monkeypatch.setattr("xapi.turns.SLICE", 1)
    later, turns = pool.clock.callLater, []

    def note(delay: float, *call: Any) -> Any:
        turns.append(delay)
        return later(delay, *call)

    monkeypatch.setattr(pool.clock, "callLater", note)
    look(pool)
    assert turns.count(0) >= len(rows) == 3
    assert all(metrics(pool, row).VCPUs_utilisation == {0: 0.0} for row in rows)
