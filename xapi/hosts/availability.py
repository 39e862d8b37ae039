"""What hosts do beyond their records: whether they take VMs, and what they are called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xapi.datamodel import errors

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

STAYS_DISABLED = "auto_enable"
"""Key of a host's other_config, "false" where a restart does not enable it again; xapi keeps this in a file."""
_LONGEST_NAME = 255
_NAME = re.compile(r"[A-Za-z0-9.]([A-Za-z0-9.-]*[A-Za-z0-9.])?")


def is_live(db: Store, host: records.host) -> bool:
    """Tell whether a host is there."""
    metrics = db.host_metrics.get(host.metrics)
    return metrics is not None and metrics.live


def assert_live(db: Store, host: records.host) -> None:
    """Raise HOST_OFFLINE for a host that is not there."""
    if not is_live(db, host):
        raise errors.HOST_OFFLINE(host._ref)


def disable(host: records.host, *, auto_enable: bool) -> None:
    """Have a host take no more VMs, until it is enabled or, with `auto_enable`, the daemon starts again."""
    if host.enabled:
        host.enabled = False
        if not auto_enable:
            host.other_config = {**host.other_config, STAYS_DISABLED: "false"}


def enable(host: records.host) -> None:
    """Have a host take VMs again. Raises HOST_PENDING_MANDATORY_GUIDANCE_NOT_EMPTY."""
    if host.enabled:
        return
    if host.pending_guidances:
        raise errors.HOST_PENDING_MANDATORY_GUIDANCE_NOT_EMPTY(host._ref)
    host.enabled = True
    host.other_config = {key: value for key, value in host.other_config.items() if key != STAYS_DISABLED}


def started(db: Store) -> None:
    """Enable the hosts that a client has disabled for no longer than until the daemon starts."""
    with db.atomic():
        for host in list(db.host):
            if not host.enabled and host.other_config.get(STAYS_DISABLED) != "false" and not host.pending_guidances:
                host.enabled = True


def rename(db: Store, host: records.host, hostname: str) -> None:
    """Give a host another name, by which its control domain goes too. Raises HOST_NAME_INVALID."""
    if not hostname:
        raise errors.HOST_NAME_INVALID("hostname empty")
    if len(hostname) > _LONGEST_NAME:
        raise errors.HOST_NAME_INVALID("hostname is too long")
    if not _NAME.fullmatch(hostname):
        raise errors.HOST_NAME_INVALID("hostname contains invalid characters")
    host.hostname = hostname
    domain = db.VM.get(host.control_domain)
    if domain is not None:
        domain.name_label = f"Control domain on host: {hostname}"
