"""The handshake: every way in, out and round again."""

from __future__ import annotations

from typing import Any

import pytest

from hypervisor.split.block_request import WRITE
from hypervisor.xenstore.errors import Exists
from hypervisor.xenstore.permissions import NONE, READ, Permissions
from tests.unit.block_front import Front, request


def error_of(front: Front) -> str | None:
    return front.store.read_text(f"/local/domain/0/error/backend/vbd/1/{front.device.number}/error")


def test_the_layout_is_libxls() -> None:
    """Each side finds the other by its own directory, and may read but not write the other's."""
    front = Front()
    front.backend.plug()
    assert front.backend.front == "/local/domain/1/device/vbd/51712"
    assert front.backend.back == "/local/domain/0/backend/vbd/1/51712"
    assert front.store.read_text(f"{front.backend.front}/backend") == front.backend.back
    assert front.back("frontend") == front.backend.front
    assert (front.back("online"), front.back("state"), front.back("hotplug-status")) == ("1", "2", "connected")
    assert front.store.get_perms(f"{front.backend.front}/state") == Permissions(1, NONE, ((0, READ),))
    assert front.store.get_perms(f"{front.backend.back}/state") == Permissions(0, NONE, ((1, READ),))


def test_a_front_connects_and_closes_and_comes_back() -> None:
    """As a kernel started by kexec does it: Closing, Closed, Initialising, and all over."""
    front = Front().connect()
    assert front.back("state") == "4"
    front.write("state", 4)
    front.write("state", 5)
    assert front.back("state") == "5"
    front.write("state", 6)
    assert front.back("state") == "6"
    assert front.domain.events.channels[front.port].notify is None
    front.write("state", 1)
    assert front.back("state") == "2"
    front.connect()
    assert front.states == [2, 4, 5, 6, 2, 4]


def test_a_front_that_begins_anew_without_closing_is_reset() -> None:
    """A crashed kernel says nothing before its successor writes Initialising."""
    front = Front().connect()
    front.write("state", 1)
    assert front.back("state") == "2" and front.granted(8) == 1
    assert front.connect().back("state") == "4"


def test_the_ring_is_in_use_while_connected_only() -> None:
    """The grant's marks tell the guest when it may take the page back."""
    front = Front().connect()
    assert front.granted(8) == 1 | 8 | 16
    front.write("state", 6)
    assert front.granted(8) == 1


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ring-ref", "x", "ring-ref is no number"),
        ("ring-ref", "-1", "ring-ref is no number"),
        ("ring-ref", "9" * 30, "ring-ref is no number"),
        ("ring-ref", "77", "cannot be mapped"),
        ("event-channel", "3000", "cannot be mapped"),
        ("event-channel", "0", "is not in"),
        ("ring-page-order", "5", "is not in"),
        ("multi-queue-num-queues", "5", "is not in"),
        ("multi-queue-num-queues", "2", "queue-0/ring-ref is missing"),
        ("protocol", "alpha", "protocol 'alpha' is unknown"),
    ],
)
def test_keys_that_cannot_be_used_end_in_an_error_node_and_closing(key: str, value: str, said: str) -> None:
    """Nothing stays mapped, and a front that mends its ways may come again."""
    front = Front()
    front.backend.plug()
    keys: dict[str, Any] = {key.replace("-", "_"): value}
    front.connect(**keys)
    assert front.back("state") == "5"
    assert said in (error_of(front) or "")
    assert front.granted(8) == 1
    front.store.rm(f"{front.backend.front}/{key}")
    front.write("state", 6)
    front.write("state", 1)
    assert front.connect().back("state") == "4"


@pytest.mark.parametrize("state", ["", "9", "44", "-1", "x", "²", "\x00"])
def test_a_state_that_is_none_is_an_error(state: str) -> None:
    """The back closes; it does not guess."""
    front = Front().connect()
    front.write("state", state)
    assert front.back("state") == "5" and "state is none" in (error_of(front) or "")


def test_a_ring_changed_while_connected_is_an_error() -> None:
    """The front must close first."""
    front = Front().connect()
    front.write("state", 4)
    front.write("ring-ref", 9)
    assert front.back("state") == "5" and "ring-ref changed" in (error_of(front) or "")
    assert front.granted(8) == 1


def test_keys_that_nobody_read_may_change() -> None:
    """Only what was used must stay."""
    front = Front().connect()
    front.write("note", "hello")
    assert front.back("state") == "4"


def test_a_front_that_removes_its_directory_has_closed() -> None:
    """Whatever it removes is its own."""
    front = Front().connect()
    front.store.rm(front.backend.front)
    assert front.back("state") == "6" and front.granted(8) == 1


def test_unplug_waits_for_the_front() -> None:
    """Closing is asked for, Closed answered with the removal of all nodes."""
    front, done = Front().connect(), []
    front.write("state", 4)
    front.backend.unplug(lambda: done.append(True))
    assert (front.back("state"), front.back("online"), done) == ("5", "0", [])
    front.write("state", 5)
    front.write("state", 6)
    assert done == [True] and front.backend.gone
    assert not front.store.exists(front.backend.front)
    assert not front.store.exists("/local/domain/0/backend/vbd/1")
    assert front.domain.at_end == []


def test_unplug_of_what_no_driver_took_is_done_at_once() -> None:
    """There is nobody to wait for."""
    front, done = Front(), []
    front.backend.plug()
    front.backend.unplug(lambda: done.append(True))
    assert done == [True] and not front.store.exists(front.backend.back)


def test_a_tool_that_writes_closing_unplugs() -> None:
    """As libxl does it, by the back's own nodes."""
    front = Front().connect()
    front.store.write(f"{front.backend.back}/state", "5")
    front.write("state", 6)
    assert front.backend.gone


def test_forced_removal_asks_nobody_but_waits_for_the_transfer_under_way() -> None:
    """The nodes go at once; what waited fails, and what comes, until the guest closes its event channel."""
    front, done = Front().connect(), []
    slot = request(WRITE, 0, [(front.grant(40, 300), 0, 0)])
    front.push(slot, slot)
    front.backend.remove(lambda: done.append(True))
    assert not front.store.exists(front.backend.front) and not front.store.exists(front.backend.back)
    assert done == []
    assert [status for _, _, status in front.run()] == [-1, -1] and done == [True]
    assert front.do(slot) == [-1] and front.device.counters.writes == 0
    assert front.granted(8) == 25
    front.domain.events.close(front.port)
    assert front.granted(8) == 1


def test_closing_waits_for_requests_that_were_taken() -> None:
    """The guest may reuse its memory after Closed, so Closed waits."""
    front = Front().connect()
    front.push(request(WRITE, 0, [(front.grant(40, 300), 0, 0)]))
    front.write("state", 6)
    assert front.back("state") == "4"
    front.run()
    assert front.back("state") == "6" and front.device.counters.writes == 1


def test_restart_takes_new_rings_after_a_resume() -> None:
    """The old keys do not count as changed."""
    front = Front().connect()
    front.write("state", 4)
    front.backend.restart()
    assert front.granted(8) == 1
    front.connect(first_ref=9)
    assert front.back("state") == "4" and front.granted(9) == 25


def test_two_devices_of_one_number_are_refused() -> None:
    """The second finds the first's nodes."""
    front = Front().connect()
    with pytest.raises(Exists):
        type(front.backend)(front.domain, front.store, front.device, front.device.number).plug()
    assert front.back("state") == "4"


def test_destroying_the_domain_removes_its_devices() -> None:
    """Memory is freed only when nothing uses it any more."""
    front = Front().connect()
    front.host.destroy(front.domain)
    assert front.backend.gone and not front.store.exists(front.backend.back)
