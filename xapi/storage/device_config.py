"""The device_config of PBDs: its passwords become secrets, and go with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault

if TYPE_CHECKING:
    from xapi.store.memory import Store

MASTER = "SRmaster"
"""A key that storage drivers are given besides, which nobody may set."""
PASSWORD, SECRET = "password", "password_secret"


def kept(db: Store, given: Mapping[str, str]) -> dict[str, str]:
    """Return a device_config as a PBD keeps it: each password in a secret of its own, named by ``<key>_secret``.

    Raises VALUE_NOT_SUPPORTED, UUID_INVALID for a secret that does not exist. Under `atomic`.
    """
    if MASTER in given:
        raise errors.VALUE_NOT_SUPPORTED(MASTER, given[MASTER], "This key is for internal use only")
    config = {}
    for key, value in given.items():
        if key.endswith(PASSWORD):
            config[f"{key}_secret"] = db.secret.create(value=value).uuid
        elif key.endswith(SECRET):
            config[key] = db.secret.create(value=db.secret.by_uuid(value).value).uuid
        else:
            config[key] = value
    return config


def forget_secrets(db: Store, config: Mapping[str, str]) -> None:
    """Remove the secrets that a map names."""
    for key, uuid in config.items():
        if key.endswith(SECRET):
            with suppress(Fault):
                db.secret.delete(db.secret.by_uuid(uuid)._ref)
