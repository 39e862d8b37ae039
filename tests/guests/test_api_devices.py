"""Drives, cards and consoles through the API, each fact read back inside the demo guest."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import XenAPI

from tests.guests.served_pool import MIB, ReactorThread, ServedPool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPool]:
    """A daemon with its guests in this process."""
    thread = ReactorThread()
    served = ServedPool(thread, tmp_path_factory.mktemp("state"))
    yield served
    served.stop()


@pytest.fixture
def api(pool: ServedPool) -> Any:
    return pool.api


@pytest.fixture
def vm(pool: ServedPool, api: Any) -> Iterator[str]:
    """A VM that is gone afterwards."""
    ref = pool.make_vm()
    yield ref
    if api.VM.get_power_state(ref) != "Halted":
        api.VM.hard_shutdown(ref)
    api.VM.destroy(ref)


def failure(call: Any, *arguments: Any) -> list[str]:
    with pytest.raises(XenAPI.Failure) as caught:
        call(*arguments)
    details: list[str] = caught.value.details
    return details


def network(api: Any, label: str) -> str:
    """Return a network by a part of its name."""
    records = api.network.get_all_records()
    found: str = next(ref for ref, record in records.items() if label in record["name_label"])
    return found


# Drives


def test_a_disk_plugged_into_a_running_guest(pool: ServedPool, api: Any, vm: str) -> None:
    """The guest sees it where the API says, writes it, and finds the same after it was unplugged and plugged again."""
    shell = pool.boot(vm)
    vbd = pool.make_vbd(vm, pool.make_vdi(8 * MIB), userdevice="3")
    assert shell.run("disks")["disks"] == "0"
    api.VBD.plug(vbd)
    assert (api.VBD.get_device(vbd), api.VBD.get_currently_attached(vbd)) == ("xvdd", True)
    found = shell.until("disks", lambda said: "state=connected" in said.get("xvdd", ""))
    assert shell.fields(found["xvdd"])["bytes"] == str(8 * MIB)
    assert shell.run("fill xvdd 7")["bytes"] == str(8 * MIB)
    shell.run("flush xvdd")
    api.VBD.unplug(vbd)
    assert shell.run("disks")["disks"] == "0"
    api.VBD.set_userdevice(vbd, "xvda")
    api.VBD.plug(vbd)
    shell.until("disks", lambda said: "state=connected" in said.get("xvda", ""))
    assert shell.run("check xvda 7")["verify"] == "ok"
    api.VBD.unplug_force(vbd)
    assert api.VBD.get_currently_attached(vbd) is False
    assert shell.run("disks")["disks"] == "0"


def test_a_read_only_disk_is_read_only_inside(pool: ServedPool, api: Any, vm: str) -> None:
    """set_mode of a halted VM, seen by the guest of its next start."""
    vbd = pool.make_vbd(vm, pool.make_vdi())
    api.VBD.set_mode(vbd, "RO")
    shell = pool.boot(vm)
    assert shell.fields(shell.run("disks")["xvda"])["mode"] in ("ro", "r")
    assert "read-only" in shell.run("write xvda 0 4096")["error"]
    assert failure(api.VBD.set_mode, vbd, "RW")[0] == "VM_BAD_POWER_STATE"


def test_cds_come_and_go_in_a_running_guest(pool: ServedPool, api: Any, vm: str) -> None:
    """The drive stays; what the guest reads is the medium's."""
    medium, vbd = pool.make_vdi(4 * MIB), pool.make_vbd(vm)
    shell = pool.boot(vm)
    assert shell.fields(shell.run("disks")["xvda"])["cdrom"] == "1"
    before = shell.fields(shell.run("disks")["xvda"])["bytes"]
    api.VBD.insert(vbd, medium)
    assert api.VBD.get_empty(vbd) is False
    shell.until("disks", lambda said: shell.fields(said["xvda"])["bytes"] == str(4 * MIB))
    assert shell.run("read xvda 0 4096")["bytes"] == "4096"
    api.VBD.eject(vbd)
    assert (api.VBD.get_empty(vbd), api.VBD.get_VDI(vbd)) == (True, "OpaqueRef:NULL")
    shell.until("disks", lambda said: shell.fields(said["xvda"])["bytes"] == before)
    assert failure(api.VBD.eject, vbd) == ["VBD_IS_EMPTY", vbd]


# Cards


def test_a_card_plugged_into_a_running_guest(pool: ServedPool, api: Any, vm: str) -> None:
    """The guest has the MAC of the API, and an address of the internal network that the API tells."""
    internal = network(api, "Host internal")
    shell = pool.boot(vm)
    vif = pool.make_vif(vm, internal)
    api.VIF.plug(vif)
    said = shell.until("net", lambda said: "dhcp=bound" in said.get("eth0", ""))
    fields = shell.fields(said["eth0"])
    assert fields["mac"] == api.VIF.get_MAC(vif)
    assert fields["address"] == api.network.get_assigned_ips(internal)[vif]
    assert fields["address"].startswith("169.254.")
    assert shell.run("ping 169.254.0.1 1").get("received", "1") != "0"
    api.VIF.unplug(vif)
    assert shell.run("net")["nics"] == "0"
    assert failure(api.VIF.unplug, vif) == ["DEVICE_ALREADY_DETACHED", vif]


def address(api: Any, pool: ServedPool, vm: str, vif: str, text: str) -> None:
    """Have the guest's agent take an address, once it is there."""
    pool.shell(vm).until("xenstore read control/feature-static-ip-setting", lambda said: True)
    api.VIF.configure_ipv4(vif, "Static", text, "")


def shown(text: str, said: dict[str, str]) -> bool:
    return text in said["eth0"]


@pytest.fixture
def pair(pool: ServedPool, api: Any) -> Iterator[Any]:
    """Two running guests with a card each on a new silent network: (refs, cards, network)."""
    net = api.network.create({"name_label": "pair", "name_description": "", "MTU": "1500", "other_config": {}})
    vms = [pool.make_vm(f"pair{number}") for number in range(2)]
    vifs = [pool.make_vif(vm, net) for vm in vms]
    shells = [pool.boot(vm) for vm in vms]
    for number, vif in enumerate(vifs):
        api.VIF.configure_ipv4(vif, "Static", f"192.0.2.{number + 1}/24", "")
        expected = f"address=192.0.2.{number + 1} "
        shells[number].until("net", partial(shown, expected))
    yield shells, vms, vifs, net
    for vm in vms:
        api.VM.hard_shutdown(vm)
        api.VM.destroy(vm)
    api.network.destroy(net)


def hears(shell: Any, target: str) -> bool:
    """Tell whether a guest gets an answer to a ping."""
    said = shell.run(f"ping {target} 1")
    return "error" not in said and said.get("received") not in (None, "0")


def test_guests_of_one_network_reach_each_other(pool: ServedPool, api: Any, pair: Any) -> None:
    """And not when one moves away, until it is back; addresses were given by the API."""
    shells, _, vifs, net = pair
    assert hears(shells[0], "192.0.2.2")
    other = api.network.create({"name_label": "other", "name_description": "", "MTU": "1500", "other_config": {}})
    api.VIF.move(vifs[1], other)
    assert not hears(shells[0], "192.0.2.2")
    api.VIF.move(vifs[1], net)
    assert hears(shells[0], "192.0.2.2")
    api.network.destroy(other)


def test_a_locked_card_keeps_to_its_addresses(pool: ServedPool, api: Any, pair: Any) -> None:
    """disabled hears nothing; locked speaks from what is allowed, alone or by a prefix."""
    shells, _, vifs, _ = pair
    api.VIF.set_locking_mode(vifs[0], "disabled")
    assert not hears(shells[1], "192.0.2.1")
    api.VIF.set_locking_mode(vifs[0], "locked")
    assert not hears(shells[1], "192.0.2.1")
    api.VIF.add_ipv4_allowed(vifs[0], "192.0.2.1")
    assert hears(shells[1], "192.0.2.1")
    api.VIF.set_ipv4_allowed(vifs[0], ["192.0.2.0/24"])
    assert hears(shells[1], "192.0.2.1")
    api.VIF.set_ipv4_allowed(vifs[0], ["198.51.100.0/24"])
    assert not hears(shells[1], "192.0.2.1")
    api.VIF.set_locking_mode(vifs[0], "unlocked")
    assert hears(shells[1], "192.0.2.1")


def test_a_static_address_is_there_after_a_reboot(pool: ServedPool, api: Any, pair: Any) -> None:
    """The setting belongs to the card, and is told to the next guest too."""
    _, vms, _, _ = pair
    api.VM.hard_reboot(vms[0])
    pool.shell(vms[0]).until("net", lambda said: "address=192.0.2.1 " in said.get("eth0", ""))


# Consoles


def test_a_console_has_a_past_and_goes_on(pool: ServedPool, api: Any, vm: str) -> None:
    """Output from the boot on; what is typed by one is heard by all; following ends when one leaves."""
    first = pool.boot(vm)
    second = pool.shell(vm)
    assert second.stream is first.stream and bytes(second._heard).count(b"demo") >= 1
    first.run("info")
    second.wait_for(lambda: b"info" in second._heard, "the other hears nothing")
    second.close()
    assert first.run("net")["nics"] == "0"
    assert b"nics" not in second._heard
    records = [api.console.get_record(ref) for ref in api.VM.get_consoles(vm)]
    assert {record["protocol"] for record in records} == {"rfb", "vt100"}
    api.VM.hard_shutdown(vm)
    assert api.VM.get_consoles(vm) == []
