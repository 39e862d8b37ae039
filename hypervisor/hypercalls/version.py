"""xen_version: who we are and what we can do (public/version.h, public/features.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.errors import ENOSYS, XenError

MAJOR, MINOR = 4, 17
_FEATURES = {
    # XENFEAT_* of a translated guest with hardware virtualisation: auto_translated_physmap,
    # supervisor_mode_kernel, mmu_pt_update_preserve_ad, hvm_callback_vector, hvm_safe_pvclock, hvm_pirqs is off.
    "hvm": 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9,
}


def xen_version(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Answer one of the questions of XENVER_*."""
    command, buffer = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == 0:
        return MAJOR << 16 | MINOR
    if command == 6:  # get_features: struct {uint32_t submap_idx, submap}
        index = struct.unpack("<I", cpu.read(buffer, 4))[0]
        cpu.write(buffer + 4, struct.pack("<I", _FEATURES["hvm"] if index == 0 else 0))
        return 0
    if command == 7:
        return 4096
    text = _TEXTS.get(command)
    if text is None:
        raise XenError(ENOSYS)
    if command == 8:  # guest_handle: the domain's uuid
        text = domain.uuid_bytes
    cpu.write(buffer, text)
    return 0


_TEXTS = {
    1: b".0-kronos".ljust(16, b"\0"),
    2: b"kronos".ljust(64, b"\0")
    + b"nobody".ljust(16, b"\0")
    + b"nowhere".ljust(32, b"\0")
    + b"never".ljust(32, b"\0"),
    3: b"xen-3.0-x86_64 hvm-3.0-x86_64".ljust(1024, b"\0"),
    4: b"".ljust(64, b"\0"),
    5: struct.pack("<Q", 0),
    8: b"",
}
