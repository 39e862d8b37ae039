"""The README's commands for guests do what it says, as written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypervisor.disks import raw
from tests.guests.conftest import LinuxFiles

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text("utf-8").partition("## A guest by hand\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def run(block: str, tmp_path: Path) -> str:
    """Run a block, with its files in a folder of the test's, and end the guest; return what was shown."""
    block = block.replace("/tmp/", f"{tmp_path}/").replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-euc", block], input="poweroff\r", capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stderr.endswith("hypervisor: the guest is down: poweroff\n")
    return done.stdout


def test_the_section_has_three_blocks() -> None:
    """Which are those that are run here."""
    assert len(BLOCKS) == 3 and all("-m hypervisor boot" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS[:2], ids=("alone", "with devices"))
def test_the_demo_guest_boots(block: str, tmp_path: Path) -> None:
    """With and without a disk and a card."""
    assert run(block, tmp_path).startswith("Kronos demo guest")


def test_the_linux_guest_boots(linux_files: LinuxFiles, tmp_path: Path) -> None:
    """Its disk is mounted. The packages are in the cache already."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4 to make a file system with")
    raw.create(tmp_path / "disk.img", 64 << 20).close()
    shown = run(BLOCKS[2], tmp_path)
    assert "initrd are ready" in shown and "mounted /dev/xvda on /mnt" in shown and "guest ready after" in shown
