"""The daemon where guests cannot run: another machine, no Unicorn, another one. All else of the API is served."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import CHECKOUT, Daemon

Start = Callable[..., Daemon]

MACHINES = {
    "arm64": (
        "import platform; platform.machine = lambda: 'aarch64'",
        "it needs an x86-64 machine, and this is aarch64",
    ),
    "no unicorn": (
        "import sys; sys.modules['unicorn'] = None",
        "the Python package unicorn is not installed",
    ),
    "another unicorn": (
        "import unicorn; unicorn.__version__ = '2.1.5'",
        "Unicorn 2.1.5 is installed; this program needs exactly 2.1.4",
    ),
    "another build": (
        "from hypervisor.arch.x86_64.cpu import overlay; overlay._EFER += 16",
        "Unicorn does not behave as the build known here: ",
    ),
}


def a_vm(api: Any) -> str:
    """Return a VM that would start where guests can run."""
    vm: str = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "a guest")
    api.VM.provision(vm)
    return vm


@pytest.mark.parametrize(("first", "why"), MACHINES.values(), ids=MACHINES)
def test_the_api_is_served_where_guests_cannot_run(start: Start, clients: Clients, first: str, why: str) -> None:
    """Disks are files, networks are made, one line of the log says why, and VM.start answers one error."""
    daemon = start(first=first).ready()
    api = clients.root(daemon).xenapi
    (storage,) = api.SR.get_by_name_label("Local storage")
    disk = api.VDI.create(
        {
            "SR": storage, "name_label": "a disk", "virtual_size": str(64 << 20), "type": "user", "sharable": False,
            "read_only": False, "other_config": {},
        }
    )  # fmt: skip
    assert (daemon.state / "storage" / storage_uuid(api, storage) / f"{api.VDI.get_uuid(disk)}.vhd").stat().st_size
    network = api.network.create({"name_label": "a network", "MTU": "1500", "other_config": {}, "bridge": ""})
    assert api.network.get_name_label(network) == "a network"
    vm = a_vm(api)
    for boots in ("hvm", "pv", "pvh"):
        api.VM.set_domain_type(vm, boots)
        with pytest.raises(XenAPI.Failure) as caught:
            api.VM.start(vm, False, False)
        assert caught.value.details == ["VM_HVM_REQUIRED", vm]
    assert api.VM.get_power_state(vm) == "Halted"
    (host,) = api.host.get_all()
    assert api.host.get_capabilities(host) == []
    log = daemon.stop()
    assert len([line for line in log if why in line]) == 1
    assert not [line for line in log if "Traceback" in line]


def storage_uuid(api: Any, storage: str) -> str:
    """Return the uuid of a storage repository."""
    uuid: str = api.SR.get_uuid(storage)
    return uuid


def test_a_state_that_comes_from_such_a_machine_runs_guests_elsewhere(start: Start, clients: Clients) -> None:
    """What the host says of itself is looked at anew at each start."""
    first, _ = MACHINES["arm64"]
    daemon = start(first=first).ready()
    vm = a_vm(clients.root(daemon).xenapi)
    daemon.stop()
    again = start().ready()
    api = clients.root(again).xenapi
    assert "hvm-3.0-x86_64" in api.host.get_capabilities(api.host.get_all()[0])
    api.VM.start(vm, False, False)
    assert api.VM.get_power_state(vm) == "Running"
    api.VM.hard_shutdown(vm)
    again.stop()


@pytest.mark.parametrize(("first", "why"), MACHINES.values(), ids=MACHINES)
def test_the_hypervisor_s_command_says_so_in_one_line(first: str, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\nfrom hypervisor.__main__ import main\nexit(main())", "boot", "--demo"],
        capture_output=True, text=True, cwd=CHECKOUT, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"hypervisor: guests cannot run here: {why}")
    assert done.stderr.count("\n") == 1
