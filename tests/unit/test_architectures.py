"""What an architecture provides, that it does, and that nobody outside reaches past it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from hypervisor import arch
from hypervisor.arch import clock, kind, vcpu
from hypervisor.arch.x86_64.clock import Clock
from hypervisor.arch.x86_64.kinds import PV, PVH
from hypervisor.memory.guest_memory import Memory
from tests.unit.test_layers import imports

FOLDERS = sorted(path.name for path in Path(arch.__path__[0]).iterdir() if (path / "__init__.py").exists())

PV_HYPERCALLS = ("hypervisor/hypercalls/pv.py", "hypervisor/hypercalls/grant_map.py")
"""Those of guests that only x86 has."""


class Nothing:
    """A platform of vCPUs that never run."""

    def hypercall(self, cpu: vcpu.VCPU, number: int, arguments: Sequence[int]) -> int:
        raise AssertionError

    def port_in(self, port: int, size: int) -> int:
        raise AssertionError

    def port_out(self, port: int, size: int, value: int) -> None:
        raise AssertionError

    def write_page(self, address: int, content: bytes) -> None:
        raise AssertionError

    def reset_cpu(self, number: int) -> None:
        raise AssertionError

    def start_cpu(self, number: int, page: int) -> None:
        raise AssertionError

    def wake_cpu(self, number: int) -> None:
        raise AssertionError


def beyond(names: frozenset[str], folder: str) -> set[str]:
    """Return what of these names reaches into an architecture past what it provides."""
    open_to_all = tuple(f"hypervisor.arch.{folder}.{module}" for module in (*arch.PROVIDED, *arch.X86_ONLY))
    packages = tuple(f"hypervisor.arch.{folder}{module}" for module in ("", ".cpu"))
    return {
        name
        for name in names
        if name.startswith(f"hypervisor.arch.{folder}")
        and name not in open_to_all
        and not name.startswith(tuple(f"{each}." for each in open_to_all))
        and name not in packages
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_architecture_provides_all(folder: str) -> None:
    """Another one is not asked for what only x86 has."""
    modules = (*arch.PROVIDED, *(arch.X86_ONLY if folder == "x86_64" else ()))
    assert [name for name in modules if find_spec(f"hypervisor.arch.{folder}.{name}") is None] == []


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("package", ["hypervisor", "xapi"])
def test_nobody_reaches_past_what_an_architecture_provides(package: str, folder: str) -> None:
    """So a second one can stand beside it."""
    reached = {
        path: found
        for path, names in imports(package).items()
        if not path.startswith("hypervisor/arch/") and (found := beyond(names, folder))
    }
    assert reached == {}


def test_an_import_of_a_register_is_past_what_an_architecture_provides() -> None:
    """The rule above can fail."""
    assert beyond(frozenset({"hypervisor.arch.x86_64.cpu.overlay.RAX"}), "x86_64")
    assert not beyond(frozenset({"hypervisor.arch.x86_64.kinds.PV", "hypervisor.arch.x86_64.entry"}), "x86_64")


def test_a_domain_knows_no_architecture() -> None:
    """Nor do its scheduling, its memory, its devices and the hypercalls that all kinds of guests have."""
    users = {
        path
        for path, names in imports("hypervisor").items()
        if any(name.startswith("hypervisor.arch.x86_64") for name in names)
    }
    assert {path.split("/")[1].removesuffix(".py") for path in users} == {
        *("__main__", "arch", "host", "hypercalls", "loader", "migration", "toolstack")
    }
    assert {path for path in users if "/hypercalls/" in path} == set(PV_HYPERCALLS)


def test_only_loaders_hypercalls_and_migration_know_what_only_x86_has() -> None:
    """What only x86 has is asked for where its own kinds of guests are served."""
    names = tuple(f"hypervisor.arch.x86_64.{module}" for module in arch.X86_ONLY)
    users = (path for path, found in imports("hypervisor").items() if any(each.startswith(names) for each in found))
    places = {path.split("/")[1] for path in users}
    assert places == {"arch", "hypercalls", "loader", "migration"}


@pytest.mark.parametrize("made", [PVH, PV], ids=lambda made: made.name)
@pytest.mark.parametrize("count", [1, 3])
def test_a_kind_makes_the_vcpus_of_a_domain(made: kind.Kind, count: int) -> None:
    """All off, in their order; those that share an engine are closed with the first."""
    memory = Memory(4 << 20)
    time: clock.Clock = Clock()
    cpus: Sequence[vcpu.VCPU] = made.vcpus(count, memory, Nothing(), time, 1 << 20, (), "a CPU")
    assert [cpu.number for cpu in cpus] == list(range(count)) and not any(cpu.crash for cpu in cpus)
    assert made.shares(count) == (made is PVH and count > 1)
    for cpu in cpus:
        cpu.close()
    memory.close()
