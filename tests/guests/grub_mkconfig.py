"""Debian's own generator of grub.cfg, run for kernels in a directory instead of those of this machine.

The package grub-common is fetched as the kernels are. Its scripts 00_header and 10_linux run unchanged but for
the directory in which they look; grub-probe, which would look at this machine's disks, is told what to answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.guests.conftest import CACHE, PACKAGES

_PACKAGE = "grub-common"
_PROBE = """#!/bin/sh
for word; do case $word in
    --target=*) target=${word#--target=};; -t) next=1;; *) [ -z "$next" ] || target=$word; next=;;
esac; done
case $target in
device) echo /dev/xvda1;; fs_uuid) echo "$GRUB_DEVICE_UUID";; fs) echo ext2;; partmap) echo msdos;;
hints_string) echo "--hint-bios=hd0,msdos1 --hint-efi=hd0,msdos1 --hint-baremetal=ahci0,msdos1";;
compatibility_hint) echo hd0,msdos1;; drive) echo "(hd0,msdos1)";; abstraction | cryptodisk_uuid) ;; *) exit 1;;
esac
"""


def _fetched() -> Path:
    """Return the unpacked package; skip where it cannot be had."""
    root = CACHE / _PACKAGE
    if not root.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.skip(f"there is no apt to fetch {_PACKAGE} with")
        PACKAGES.mkdir(parents=True, exist_ok=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            fetch = ["apt-get", "download", "-q", _PACKAGE]
            done = subprocess.run(fetch, cwd=PACKAGES, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{_PACKAGE} could not be fetched: {done.stderr.strip()[-200:]}")
            unpacked = Path(directory) / "root"
            package = next(PACKAGES.glob(f"{_PACKAGE}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True, timeout=60)
            unpacked.rename(root)
    return root


def generate(work: Path, kernels: list[str], uuid: str, *, default: str = "saved", line: str = "quiet") -> str:
    """Return the grub.cfg for kernels of some versions on the file system of a uuid."""
    package, tools, boot = _fetched(), work / "tools", work / "boot"
    tools.mkdir()
    boot.mkdir()
    for version in kernels:
        (boot / f"vmlinuz-{version}").write_bytes(b"kernel")
        (boot / f"initrd.img-{version}").write_bytes(b"initrd")
    scripts = {
        "probe": _PROBE,
        "relative": f'#!/bin/sh\nfor last; do :; done; echo "${{last#{work}}}"\n',
        "00_header": (package / "etc/grub.d/00_header").read_text().replace("/usr/share/grub/unicode.pf2", "/none"),
        "10_linux": (package / "etc/grub.d/10_linux")
        .read_text()
        .replace("/boot/vmlinu", f"{boot}/vmlinu")
        .replace(" /vmlinu", " /none")
        .replace(" /boot/kernel", " /none"),
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    settings = {
        "pkgdatadir": str(package / "usr/share/grub"),
        "grub_probe": str(tools / "probe"),
        "grub_mkrelpath": str(tools / "relative"),
        **{f"GRUB_DEVICE{which}": "/dev/xvda1" for which in ("", "_BOOT")},
        **{f"GRUB_DEVICE{which}_UUID": uuid for which in ("", "_BOOT")},
        "GRUB_FS": "ext2",
        "GRUB_DISTRIBUTOR": "Debian",
        "GRUB_DEFAULT": default,
        "GRUB_TIMEOUT": "5",
        "GRUB_CMDLINE_LINUX_DEFAULT": line,
        "GRUB_CMDLINE_LINUX": "",
        "PATH": os.environ["PATH"],
    }
    parts = []
    for name in ("00_header", "10_linux"):
        done = subprocess.run(["sh", str(tools / name)], env=settings, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        parts.append(f"### BEGIN /etc/grub.d/{name} ###\n{done.stdout}### END /etc/grub.d/{name} ###\n")
    return "".join(parts)
