"""What hosts and pool say of their CPUs: what guests find there, in the words of xapi.

A declaration gives the CPUs' number and their name, which is what guests read too; all else is the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypervisor.api import Processor
from xapi.host.machine import processor
from xapi.store.memory import Store

_COMMON = ("vendor", "features_pv", "features_hvm", "features_pv_host", "features_hvm_host")


def cpu_info(name: str, cpus: int, sockets: int, mhz: int) -> dict[str, str]:
    """Return host.cpu_info of a host with CPUs of a name; `mhz` counts where the true frequency is not known."""
    found = processor(name)
    return {
        "cpu_count": str(cpus),
        "socket_count": str(sockets),
        "threads_per_core": "1",
        "nr_nodes": "1",
        "speed": f"{found.mhz or mhz}.000",
        **_told(found),
    }


def _told(found: Processor) -> dict[str, str]:
    return {
        "vendor": found.vendor,
        "modelname": found.name,
        "family": str(found.family),
        "model": str(found.model),
        "stepping": str(found.stepping),
        "flags": found.flags,
        "features": found.features,
        "features_pv": found.features_pv,
        "features_hvm": found.features_hvm,
        "features_pv_host": found.features_pv,
        "features_hvm_host": found.features_hvm,
    }


def of_one_cpu(info: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of a host_cpu whose host says this of its CPUs."""
    return {
        **{name: info[name] for name in ("vendor", "modelname", "stepping", "flags", "features")},
        "speed": int(info["speed"].partition(".")[0]),
        "family": int(info["family"]),
        "model": int(info["model"]),
    }


def pool_cpu_info(store: Store) -> dict[str, str]:
    """Return what the CPUs of all hosts have in common, and how many there are."""
    hosts = [host.cpu_info for host in store.host]
    counts = {key: str(sum(int(info[key]) for info in hosts)) for key in ("cpu_count", "socket_count")}
    return {**counts, **{key: hosts[0][key] for key in _COMMON}}


def _another_speed(mhz: int, told: str) -> bool:
    """Whether a frequency is other than one that was told, and not the same measured again: that differs by 0.1 %."""
    megahertz = told.partition(".")[0]
    return mhz > 0 and not (megahertz.isdigit() and abs(mhz - int(megahertz)) * 100 <= mhz)


def tell(db: Store) -> None:
    """Have all hosts say what guests find now: a state may come from another machine, or another version."""
    with db.atomic():
        for host in db.host:
            old = host.cpu_info
            info = dict(old) | _told(found := processor(old.get("modelname", "")))
            if _another_speed(found.mhz, old.get("speed", "")):
                info["speed"] = f"{found.mhz}.000"
            if info != old:
                host.cpu_info = info
            for ref in host.host_CPUs:
                cpu = db.host_cpu[ref]
                for name, value in of_one_cpu(info).items():
                    if getattr(cpu, name) != value:
                        setattr(cpu, name, value)
        for pool in db.pool:
            if pool.cpu_info != (common := pool_cpu_info(db)):
                pool.cpu_info = common
