"""A new type of storage is one file: its SRs are made, its disks are a running guest's, its features say the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.real_pool import RealPool
from xapi.datamodel.errors import Fault
from xapi.host import driver, drivers
from xapi.inventory.storage import renew_drivers

MIB = 1 << 20
CONTENT = b"as the guest finds it"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the file where drivers are looked for."""
    monkeypatch.setattr(drivers, "__path__", [*drivers.__path__, str(Path(__file__).parent.parent / "drivers")])
    driver.walk.cache_clear()
    yield
    driver.walk.cache_clear()


@pytest.fixture
def pool(plain: None, pool: RealPool) -> RealPool:
    """One that begins with the type."""
    return pool


def make_sr(pool: RealPool, place: Path) -> Any:
    host = next(iter(pool.db.host))._ref
    config = {"location": str(place)}
    return pool.db.SR[pool("SR.create", host, config, "0", "plain", "", "plain", "user", False, {})]


def make_vdi(pool: RealPool, sr: Any) -> Any:
    record = {"name_label": "disk", "SR": sr._ref, "virtual_size": str(4 * MIB), "type": "user", "sharable": False,
              "read_only": False, "other_config": {}}  # fmt: skip
    return pool.db.VDI[pool("VDI.create", record)]


def test_its_disks_are_a_running_guest_s_and_are_snapshotted(pool: RealPool, tmp_path: Path) -> None:
    """Nothing else knows of the type."""
    assert "plain" in list(pool("SR.get_supported_types"))
    sr = make_sr(pool, tmp_path / "sr")
    vdi = make_vdi(pool, sr)
    (tmp_path / "sr" / vdi.location).write_bytes(CONTENT.ljust(4 * MIB, b"."))
    vm = pool.db.VM[pool("VM.clone", pool.db.VM.by_name_label("Demo guest")[0]._ref, "guest")]
    pool("VM.set_is_a_template", vm._ref, False)
    vbd = {"VM": vm._ref, "VDI": vdi._ref, "userdevice": "0", "bootable": False, "mode": "RW", "type": "Disk",
           "empty": False, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}  # fmt: skip
    ref = pool("VBD.create", vbd)
    pool("VM.start", vm._ref, False, False)
    assert pool.db.VBD[ref].currently_attached
    (backend,) = pool.real.values()

    def connected() -> bool:
        state = pool.outcome(Deferred.fromCoroutine(backend.stat(vm.uuid))).state
        return all(device.connected for device in state.devices)

    pool.until(connected)
    taken = pool.db.VDI[pool("VDI.snapshot", vdi._ref, {})]
    assert (taken.is_a_snapshot, taken.snapshot_of, taken.virtual_size) == (True, vdi._ref, 4 * MIB)
    assert (tmp_path / "sr" / taken.location).read_bytes().startswith(CONTENT)
    pool("VM.hard_shutdown", vm._ref)
    for each in (taken, vdi):
        pool("VDI.destroy", each._ref)
    pool("PBD.unplug", next(iter(sr.PBDs)))
    assert list((tmp_path / "sr").iterdir()) == []


def refused(pool: RealPool, message: str, *arguments: Any) -> list[str]:
    with pytest.raises(Fault) as caught:
        pool(message, *arguments)
    return caught.value.description


def test_what_its_features_do_not_say_is_refused(
    pool: RealPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon of an older version learns of them when it starts again."""
    sr = make_sr(pool, tmp_path / "sr")
    vdi = make_vdi(pool, sr)
    not_supported = ["SR_OPERATION_NOT_SUPPORTED", sr._ref]
    assert refused(pool, "VDI.resize", vdi._ref, str(8 * MIB)) == not_supported
    assert refused(pool, "VDI.clone", vdi._ref, {}) == not_supported
    assert "snapshot" in vdi.allowed_operations
    plain = driver.walk()["plain"]
    features = {name: version for name, version in plain.about.features.items() if name != "VDI_SNAPSHOT"}
    monkeypatch.setattr(plain, "about", replace(plain.about, features=features))
    renew_drivers(pool.db)
    assert refused(pool, "VDI.snapshot", vdi._ref, {}) == not_supported
    assert "snapshot" not in vdi.allowed_operations


def test_a_pool_that_is_older_than_a_type_gets_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """When the daemon starts."""
    pool = RealPool(tmp_path)
    try:
        assert "plain" not in list(pool("SR.get_supported_types"))
        request.getfixturevalue("plain")
        renew_drivers(pool.db)
        assert "plain" in list(pool("SR.get_supported_types"))
    finally:
        pool.close()
