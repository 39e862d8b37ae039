"""Guests that come with the hypervisor: the demo guest, whose sources are in ``demo/``, and one that only speaks.

The demo guest is a small kernel of our own (C and assembly, built by ``make guests``) that starts by PVH, drives
split disks and NICs, balloons, follows what the toolstack asks for and has a shell on its console; `DEMO_MEMORY` bytes
are plenty for it.
"""

from __future__ import annotations

from pathlib import Path

DEMO_KERNEL = Path(__file__).with_name("demo.elf")
"""The built kernel, for `api.DirectBoot`."""
UNBOOTABLE_KERNEL = Path(__file__).with_name("unbootable.elf")
"""What a domain with nothing to boot runs: it says its command line on the console, and then nothing for ever."""
DEMO_MEMORY = 4 << 20
DEMO_PROMPT = b"demo> "
"""What its shell prints when it is ready for a command."""
