"""Messages of pool that concern the pool's own settings; hosts joining and HA come later."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

from xapi.access.directory import Directory, DirectoryError
from xapi.access.sessions import Sessions
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL, Ref
from xapi.storage.unfinished import durable


def _set(call: Call, ref: Ref[records.pool], **fields: object) -> None:
    row = call.db.pool[ref]
    for name, value in fields.items():
        setattr(row, name, value)


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise errors.INVALID_VALUE(name, str(value))
    return value


@message("pool.set_local_auth_max_threads")
def set_local_auth_max_threads(call: Call, self: Ref[records.pool], value: int) -> None:
    """Set how many local logins are checked at a time, 1 to 8."""
    _set(call, self, local_auth_max_threads=_within("local_auth_max_threads", value, 1, 8))


@message("pool.set_ext_auth_max_threads")
def set_ext_auth_max_threads(call: Call, self: Ref[records.pool], value: int) -> None:
    """Set how many external logins are checked at a time, 1 to 8."""
    _set(call, self, ext_auth_max_threads=_within("ext_auth_max_threads", value, 1, 8))


@message("pool.set_ext_auth_cache_enabled")
def set_ext_auth_cache_enabled(call: Call, self: Ref[records.pool], value: bool) -> None:
    """Say whether external logins may be remembered."""
    _set(call, self, ext_auth_cache_enabled=value)


@message("pool.set_ext_auth_cache_size")
def set_ext_auth_cache_size(call: Call, self: Ref[records.pool], value: int) -> None:
    """Set how many external logins may be remembered."""
    _set(call, self, ext_auth_cache_size=_within("ext_auth_cache_size", value, 1, 2**31))


@message("pool.set_ext_auth_cache_expiry")
def set_ext_auth_cache_expiry(call: Call, self: Ref[records.pool], value: int) -> None:
    """Set how many seconds external logins may be remembered."""
    _set(call, self, ext_auth_cache_expiry=_within("ext_auth_cache_expiry", value, 1, 2**31))


@message("pool.set_telemetry_next_collection")
def set_telemetry_next_collection(call: Call, self: Ref[records.pool], value: datetime) -> None:
    """Say when telemetry may be collected next; this toolstack never collects any."""
    _set(call, self, telemetry_next_collection=value)


@message("pool.reset_telemetry_uuid")
def reset_telemetry_uuid(call: Call, self: Ref[records.pool]) -> None:
    """Replace the pool's telemetry identifier by a random one."""
    pool = call.db.pool[self]
    if pool.telemetry_uuid in call.db.secret:
        call.db.secret.delete(pool.telemetry_uuid)
    pool.telemetry_uuid = call.db.secret.create(value=str(uuid.uuid4()))._ref


@message("pool.configure_update_sync")
def configure_update_sync(
    call: Call, self: Ref[records.pool], update_sync_frequency: str, update_sync_day: int
) -> None:
    """Set when updates would be looked for: daily, or on one day (0 to 6) of the week."""
    if not 0 <= update_sync_day <= 6:
        raise errors.INVALID_UPDATE_SYNC_DAY(str(update_sync_day))
    day = 0 if update_sync_frequency == "daily" else update_sync_day
    _set(call, self, update_sync_frequency=update_sync_frequency, update_sync_day=day)


@message("pool.set_update_sync_enabled")
def set_update_sync_enabled(call: Call, self: Ref[records.pool], value: bool) -> None:
    """Switch the regular look for updates; it needs a repository to look at."""
    if value and not call.db.pool[self].repositories:
        raise errors.NO_REPOSITORIES_CONFIGURED()
    _set(call, self, update_sync_enabled=value)


@message("pool.configure_repository_proxy")
def configure_repository_proxy(call: Call, self: Ref[records.pool], url: str, username: str, password: str) -> None:
    """Set the proxy on the way to the repositories; user and password come together or not at all."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.path not in ("", "/") or parts.query:
        raise errors.INVALID_REPOSITORY_PROXY_URL(url)
    if bool(username) != bool(password) or re.search(r"[\x00-\x1f]", username + password):
        raise errors.INVALID_REPOSITORY_PROXY_CREDENTIAL()
    _forget_proxy_password(call, self)
    secret = call.db.secret.create(value=password)._ref if password else NULL
    _set(call, self, repository_proxy_url=url, repository_proxy_username=username, repository_proxy_password=secret)


@message("pool.disable_repository_proxy")
def disable_repository_proxy(call: Call, self: Ref[records.pool]) -> None:
    """Go to the repositories without a proxy."""
    _forget_proxy_password(call, self)
    _set(call, self, repository_proxy_url="", repository_proxy_username="", repository_proxy_password=NULL)


def _forget_proxy_password(call: Call, ref: Ref[records.pool]) -> None:
    secret = call.db.pool[ref].repository_proxy_password
    if secret in call.db.secret:
        call.db.secret.delete(secret)


@message("pool.add_to_guest_agent_config")
def add_to_guest_agent_config(call: Call, self: Ref[records.pool], key: str, value: str) -> None:
    """Add a setting for the agents inside guests."""
    present: Mapping[str, str] = call.db.pool[self].guest_agent_config
    if key in present:
        raise errors.MAP_DUPLICATE_KEY("pool", "guest_agent_config", self, key)
    _set(call, self, guest_agent_config={**present, key: value})


@message("pool.remove_from_guest_agent_config")
def remove_from_guest_agent_config(call: Call, self: Ref[records.pool], key: str) -> None:
    """Remove a setting for the agents inside guests."""
    present: Mapping[str, str] = call.db.pool[self].guest_agent_config
    _set(call, self, guest_agent_config={k: v for k, v in present.items() if k != key})


@message("pool.has_extension")
def has_extension(call: Call, self: Ref[records.pool], name: str) -> bool:
    """Tell whether every host has an extension; none has any yet."""
    _ = call.db.pool[self]
    return False


@message("pool.is_slave")
def is_slave(call: Call, host: Ref[records.host]) -> bool:
    """Tell whether the daemon that answers is a supporter: one daemon is its pool's coordinator."""
    _ = call.db.host[host]
    return False


@message("pool.sync_database")
async def sync_database(call: Call) -> None:
    """Return when all changes so far are durable."""
    await durable(call.db)


@message("pool.test_archive_target")
def test_archive_target(call: Call, self: Ref[records.pool], config: Mapping[str, str]) -> str:
    """Answer as xapi does since protection policies are gone."""
    raise errors.MESSAGE_REMOVED()


@message("pool.enable_external_auth")
async def enable_external_auth(
    call: Call, pool: Ref[records.pool], config: Mapping[str, str], service_name: str, auth_type: str
) -> None:
    """Let users of a directory log in; the one type here is ``file``, the directory of the configuration."""
    row = call.db.pool[pool]
    for host in call.db.host:
        if host.external_auth_type:
            raise errors.POOL_AUTH_ALREADY_ENABLED(host._ref)
    if auth_type != "file":
        raise errors.AUTH_UNKNOWN_TYPE(auth_type)
    path = call[Sessions].directory_path
    if path is None:
        raise errors.POOL_AUTH_ENABLE_FAILED(row.master, "The configuration names no directory file")
    try:
        directory = await call[Sessions].in_thread(Directory, path)
    except DirectoryError as error:
        raise errors.POOL_AUTH_ENABLE_FAILED(row.master, str(error)) from None
    with call.db.atomic():
        for host in call.db.host:
            host.external_auth_type = auth_type
            host.external_auth_service_name = service_name
            host.external_auth_configuration = config
    call[Sessions].directory = directory


@message("pool.disable_external_auth")
def disable_external_auth(call: Call, pool: Ref[records.pool], config: Mapping[str, str]) -> None:
    """Let only local accounts log in; the sessions of other users end."""
    _ = call.db.pool[pool]
    for host in call.db.host:
        host.external_auth_type = host.external_auth_service_name = ""
        host.external_auth_configuration = {}
    call[Sessions].directory = None
    for session in [session for session in call.db.session if session.subject != NULL]:
        call[Sessions].end(session)


@message("pool.detect_nonhomogeneous_external_auth")
def detect_nonhomogeneous_external_auth(call: Call, pool: Ref[records.pool]) -> None:
    """Look for hosts with other settings of external authentication: one daemon sets them all alike."""
    _ = call.db.pool[pool]


@message("pool.disable_ssl_legacy")
def disable_ssl_legacy(call: Call, self: Ref[records.pool]) -> None:
    """Serve no old kinds of TLS, which is how it is."""
    _ = call.db.pool[self]


@message("pool.set_uefi_certificates")
def set_uefi_certificates(call: Call, self: Ref[records.pool], value: str) -> None:
    """Refuse, as xapi does."""
    _ = call.db.pool[self]
    raise errors.OPERATION_NOT_ALLOWED("To set UEFI certificates use: `Pool.set_custom_uefi_certificates`")


@message("pool.recover_slaves")
def recover_slaves(call: Call) -> tuple[Ref[records.host], ...]:
    """Return no supporter that has been told anew who the coordinator is: one daemon has no others."""
    return ()


@message("pool.get_license_state")
def get_license_state(call: Call, self: Ref[records.pool]) -> Mapping[str, str]:
    """Return the edition of the hosts, and when the first of their licences ends."""
    edition = call.db.host[call.db.pool[self].master].edition
    ends = [host.license_params.get("expiry") for host in call.db.host if host.edition == edition]
    return {"edition": edition, "expiry": min(filter(None, ends), default="never")}
