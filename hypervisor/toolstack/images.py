"""Files of saved domains: written durably or not at all, and read as what somebody may have changed.

With the domain goes what its guest has told of itself: it does so when it boots, and not again when it is restored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path

from hypervisor.api import Code, DomainConfig, HostError
from hypervisor.disks.disk import SECTOR
from hypervisor.domains.domain import Domain
from hypervisor.host import Host, NoMemory
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.records import ImageError
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from hypervisor.toolstack import builder
from hypervisor.toolstack.control import may_be_told


def write(host: Host, domain: Domain, said: Mapping[str, str], path: Path) -> int:
    """Write a domain that has suspended itself into a new file; return its length. Raises HostError."""
    unfinished = path.with_name(f".new-{path.name}")
    try:
        with unfinished.open("xb") as file:
            length = save(host, domain, file, json.dumps(dict(said)).encode())
            length += -length % SECTOR  # it is copied as a disk is
            file.truncate(length)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except NotSuspended as error:
        unfinished.unlink(missing_ok=True)
        raise HostError(Code.NOT_SUSPENDED, str(error)) from error
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise HostError(Code.NO_SPACE if error.errno == ENOSPC else Code.FAILED, f"{path}: {error.strerror}") from error
    return length


def read(host: Host, config: DomainConfig, path: Path) -> tuple[Domain, str, dict[str, str]]:
    """Return a new domain as it was saved, its kind, and what its guest has said. Raises HostError."""
    try:
        with path.open("rb") as file:
            image = Image(file)
            said = _said(image.config)
            domain = image.build(host, config.uuid, builder.code_cache(config.memory_max))
    except ImageError as error:
        raise HostError(Code.BAD_IMAGE, f"{path}: {error}") from error
    except NoMemory as error:
        raise HostError(Code.NO_MEMORY, str(error)) from error
    except OSError as error:
        raise HostError(Code.BAD_IMAGE, f"{path}: {error.strerror}") from error
    return domain, "pv" if image.shape.is_pv else "pvh", said


def _said(config: bytes) -> dict[str, str]:
    """Read what `write` put beside a domain. Raises ImageError."""
    try:
        found = json.loads(config)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ImageError("what the guest has said is damaged")
    if not may_be_told(found):
        raise ImageError("the guest has said what no guest may say")
    return found
