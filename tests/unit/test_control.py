"""What the toolstack says and hears by xenstore, against a guest that the test plays."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.api import Shutdown
from hypervisor.toolstack.control import DEEPEST, MOST_BYTES, MOST_KEYS, MOST_VISITS, Control, Progress, may_be_told
from hypervisor.xenstore.client import Client
from hypervisor.xenstore.operations import View
from hypervisor.xenstore.permissions import NONE, READ, Caller, Permissions
from hypervisor.xenstore.quotas import Quotas
from hypervisor.xenstore.store import Store

DOMID = 5
HOME = f"/local/domain/{DOMID}"
OWN = Permissions(DOMID, NONE)


class Guest:
    """A guest's home, as the toolstack makes it, and a guest that reads and writes with its own rights."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.store = Store(quotas)
        readable = Permissions(0, NONE, ((DOMID, READ),))
        for key, permissions in {
            **dict.fromkeys(("", "/control", "/memory", "/memory/target"), readable),
            **dict.fromkeys(("/attr", "/data", "/drivers", "/feature", "/memory/meminfo"), OWN),
            **dict.fromkeys(("/control/shutdown", "/control/sysrq", "/control/feature-suspend"), OWN),
        }.items():
            self.store.write(HOME + key, "")
            self.store.set_perms(HOME + key, permissions)
        view = View(self.store.tree, Caller(DOMID), self.store.quotas)
        self._client = Client(view, lambda: self.store.publish(view))
        self.changes = 0
        self.control = Control(self.store, DOMID, self.changed)

    def changed(self) -> None:
        self.changes += 1

    def write(self, key: str, value: str | bytes = "x") -> None:
        self._client.write(f"{HOME}/{key}", value)

    def read(self, key: str) -> str | None:
        return self._client.read_text(f"{HOME}/{key}")

    def remove(self, key: str) -> None:
        self._client.rm(f"{HOME}/{key}")

    def metrics(self) -> dict[str, str]:
        return dict(self.control.metrics().values)


@pytest.mark.parametrize("how", [Shutdown.POWEROFF, Shutdown.REBOOT, Shutdown.SUSPEND])
def test_a_request_is_acknowledged_when_the_key_is_emptied(how: Shutdown) -> None:
    """Once, by whatever the guest does afterwards."""
    guest, heard = Guest(), []
    request = guest.control.request(how, lambda: heard.append(how))
    assert guest.read("control/shutdown") == how.value and request.progress is Progress.WAITING and not heard
    guest.write("control/shutdown", "")
    assert (request.progress, heard) == (Progress.ACKNOWLEDGED, [how])
    guest.write("control/shutdown", "x")
    guest.write("control/shutdown", "")
    request.withdraw()
    assert (request.progress, heard) == (Progress.ACKNOWLEDGED, [how])


def test_a_guest_that_removes_the_key_has_acknowledged() -> None:
    """And can do so again: the node is the guest's when it is made anew."""
    guest = Guest()
    for _ in range(2):
        request = guest.control.request(Shutdown.REBOOT)
        guest.remove("control/shutdown")
        assert request.progress is Progress.ACKNOWLEDGED


def test_another_value_is_no_acknowledgement() -> None:
    """Only an empty key is one."""
    guest = Guest()
    request = guest.control.request(Shutdown.SUSPEND)
    guest.write("control/shutdown", "nonsense")
    assert request.progress is Progress.WAITING


def test_a_domain_that_goes_has_acknowledged_nothing() -> None:
    """The toolstack removes the home."""
    guest, heard = Guest(), []
    request = guest.control.request(Shutdown.POWEROFF, lambda: heard.append(1))
    guest.store.rm(HOME)
    assert (request.progress, heard) == (Progress.WITHDRAWN, [])


@pytest.mark.parametrize("close", [False, True])
def test_a_request_can_be_withdrawn(close: bool) -> None:
    """The guest finds an empty key, and emptying it again says nothing."""
    guest, heard = Guest(), []
    request = guest.control.request(Shutdown.POWEROFF, lambda: heard.append(1))
    guest.control.close() if close else request.withdraw()
    assert guest.read("control/shutdown") == "" and request.progress is Progress.WITHDRAWN
    guest.write("control/shutdown", "")
    assert not heard


def test_a_second_request_takes_the_place_of_the_first() -> None:
    """One acknowledgement is for the second only."""
    guest, heard = Guest(), []
    first = guest.control.request(Shutdown.REBOOT, lambda: heard.append("first"))
    second = guest.control.request(Shutdown.POWEROFF, lambda: heard.append("second"))
    assert guest.read("control/shutdown") == "poweroff" and first.progress is Progress.WITHDRAWN
    guest.write("control/shutdown", "")
    assert heard == ["second"] and second.progress is Progress.ACKNOWLEDGED


def test_a_request_in_a_callback_is_heard_too() -> None:
    """As a toolstack does that asks again at once."""
    guest, requests = Guest(), []
    guest.control.request(Shutdown.SUSPEND, lambda: requests.append(guest.control.request(Shutdown.POWEROFF)))
    guest.write("control/shutdown", "")
    assert (guest.read("control/shutdown"), requests[0].progress) == ("poweroff", Progress.WAITING)
    guest.write("control/shutdown", "")
    assert requests[0].progress is Progress.ACKNOWLEDGED


@pytest.mark.parametrize("how", [Shutdown.CRASH, Shutdown.WATCHDOG])
def test_a_guest_is_not_asked_to_crash(how: Shutdown) -> None:
    """There is no such request."""
    with pytest.raises(ValueError):
        Guest().control.request(how)


def test_support_is_what_the_guest_says() -> None:
    """The toolstack's empty key says nothing."""
    guest = Guest()
    assert not guest.control.supports(Shutdown.SUSPEND)
    guest.write("control/feature-suspend", "1")
    assert guest.control.supports(Shutdown.SUSPEND) and not guest.control.supports(Shutdown.REBOOT)


def test_the_memory_target_is_written() -> None:
    """For the guest to read."""
    guest = Guest()
    guest.control.set_memory_target(1 << 20)
    assert guest.read("memory/target") == "1048576"
    for kib in (0, -4):
        with pytest.raises(ValueError):
            guest.control.set_memory_target(kib)


def test_what_metrics_return_may_be_told() -> None:
    """And nothing else: an image of a guest that says more is not one of ours."""
    guest = Guest()
    for key in ("data/a", "attr/b/c", "memory/meminfo", "control/feature-suspend"):
        guest.write(key, "1")
    assert may_be_told(guest.control.metrics().values) and may_be_told({})
    for name in ("name", "control/shutdown", "data/no key", "/data", "data/", "", "../x"):
        assert not may_be_told({name: ""}), name
    assert not may_be_told({f"data/{number}": "" for number in range(MOST_KEYS + 1)})
    assert not may_be_told({"data/a": "v" * MOST_BYTES})


def test_metrics_are_what_the_guest_wrote() -> None:
    """All trees, no directories, no keys of the toolstack's, no unset features."""
    guest = Guest()
    assert guest.metrics() == {}
    said = {
        "attr/PVAddons/MajorVersion": "8",
        "attr/os/spmajor": "1",
        "attr/vif/0/ipv4/0": "192.0.2.7",
        "attr/vif/0/ipv6/0": "2001:db8::7",
        "attr/eth0/ip": "192.0.2.7",
        "data/os_name": "Debian",
        "data/empty": "",
        "data/meminfo_free": "1234",
        "data/updated": "now",
        "drivers/0": "XenServer XENBUS 9.1.9.105 ",
        "feature/hotplug/vbd": "1",
        "memory/meminfo": "12",
        "control/feature-suspend": "1",
    }
    for key, value in said.items():
        guest.write(key, value)
    guest.control.set_memory_target(4096)
    guest.control.request(Shutdown.REBOOT)
    assert guest.metrics() == said and guest.control.metrics().complete


def test_changes_are_told_once_until_they_are_read() -> None:
    """Not before the first reading, and not for what we write ourselves."""
    guest = Guest()
    guest.write("data/a")
    assert guest.changes == 0
    guest.metrics()
    for key in ("data/a", "attr/b/c", "control/feature-suspend"):
        guest.write(key)
    assert guest.changes == 1
    for number, key in enumerate(("memory/meminfo", "drivers/1", "feature/x", "control/feature-suspend"), 2):
        guest.metrics()
        guest.write(key, "2")
        assert guest.changes == number, key
    guest.metrics()
    guest.control.set_memory_target(4096)
    guest.control.request(Shutdown.REBOOT)
    guest.write("control/shutdown", "")
    assert guest.changes == 5
    guest.remove("data/a")
    assert guest.changes == 6
    guest.metrics()
    guest.control.close()
    guest.write("data/a")
    assert guest.changes == 6


def test_what_xml_cannot_carry_is_replaced() -> None:
    """Bytes that are no UTF-8, control characters, half of a pair."""
    guest = Guest()
    guest.write("data/bad", b"a\x00\x01\x1f\xff\xed\xa0\x80\xef\xbf\xbf\tb\n\xc3\xa9\xf0\x9f\x98\x80")
    value = guest.metrics()["data/bad"]
    assert value.startswith("a\ufffd\ufffd\ufffd") and value.endswith("\ufffd\tb\né😀")


@given(st.binary(max_size=200))
def test_any_value_can_be_put_into_xml(value: bytes) -> None:
    """The parser is the judge."""
    guest = Guest()
    guest.write("data/bad", value)
    ElementTree.fromstring(f"<a><![CDATA[{guest.metrics()['data/bad'].replace(']]>', '')}]]></a>")


def test_a_guest_that_writes_much_is_cut_short() -> None:
    """Many keys, large values, deep paths, many empty directories: each within its limit, and it is said."""
    roomy = Quotas(nodes=100_000)
    many = Guest(roomy)
    for number in range(MOST_KEYS + 1):
        many.write(f"data/key{number}")
    found = many.control.metrics()
    assert len(found.values) == MOST_KEYS and not found.complete

    large = Guest(roomy)
    for number in range(40):
        large.write(f"data/key{number}", "x" * 2000)
    found = large.control.metrics()
    assert 0 < sum(len(key) + len(value) for key, value in found.values.items()) <= MOST_BYTES and not found.complete

    deep = Guest(roomy)
    deep.write("data" + "/a" * (DEEPEST - 1), "seen")
    assert deep.control.metrics().complete and "seen" in deep.metrics().values()
    deep.write("data" + "/a" * 500, "hidden")
    deep.write("data/b", "after")
    found = deep.control.metrics()
    assert not found.complete and "hidden" not in found.values.values() and found.values["data/b"] == "after"

    wide = Guest(roomy)
    for number in range(MOST_VISITS + 1):
        wide.write(f"attr/{number}", "")
    found = wide.control.metrics()
    assert not found.complete and len(found.values) <= MOST_KEYS


def test_a_missing_tree_is_nothing() -> None:
    """A guest may remove what it owns."""
    guest = Guest()
    for tree in ("attr", "data", "drivers", "feature", "memory/meminfo"):
        guest.remove(tree)
    assert guest.control.metrics().values == {} and guest.control.metrics().complete
