"""The hypervisor's own log."""

from __future__ import annotations

import re

from hypervisor.console_ring import LINES, ConsoleRing
from hypervisor.domains.life import Reason
from tests.machines import machine

MIB = 1 << 20
UUID = "00000000-0000-4000-8000-000000000001"


def test_what_happens_to_domains_stands_in_the_log() -> None:
    """Where Xen would say it: the machine, and a domain's birth, why it went down, and its end."""
    with machine(64 * MIB, 2) as host:
        domain = host.create([(0, 16 * MIB)], vcpus=2, uuid_text=UUID)
        with host.lock:
            domain.life.crash = "triple fault"
            domain.life.shut_down(Reason.CRASH)
        host.destroy(domain)
        lines = [re.sub(r"\[.*?\] ", "", line) for line in host.console_ring.text().splitlines()]
    assert lines == [
        "(XEN) System RAM: 64MB; pCPUs: 2",
        f"(XEN) d1: PVH domain {UUID}, 16MB, vCPUs: 2",
        "(XEN) d1: crash: triple fault",
        "(XEN) d1: destroyed",
    ]


def test_the_log_keeps_the_newest_lines_with_their_times() -> None:
    ring = ConsoleRing(lambda: 1_769_850_307 * 10**9)
    for number in range(LINES + 5):
        ring.write(str(number))
    lines = ring.text().splitlines()
    assert len(lines) == LINES and lines[0] == "(XEN) [2026-01-31 09:05:07] 5"
