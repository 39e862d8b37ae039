"""The settings of one daemon: one frozen value, from a TOML file and the command line.

Nothing here imports what takes long: a wrong option, --help and --version are answered at once.

The file has the long options as keys, with underscores, and some more that only it has::

    state = "/var/lib/xapi"
    listen = ["tcp:80:interface=192.0.2.10"]
    tls = ["tcp:443:interface=192.0.2.10"]
    database = "postgresql+psycopg:///xapi"
    inventory = "/etc/xapi/inventory.toml"
    log_level = "info"
    log_format = "json"                        # or "text"
    log_file = "/var/log/xapi/xapi.log"        # else standard error
    ready_file = "/run/xapi/ready"             # see xapi.process.readiness
    directory = "/etc/xapi/directory.toml"     # users for pool.enable_external_auth, see xapi.access.directory
    fragment_budget = 536870912                # bytes of rendered records to keep
    guest_directory = "/var/lib/xapi/guests"   # kernels and RAM disks that VMs may name
    storage_directory = "/srv/xapi"            # the hosts' local storage
    plugin_directory = "/etc/xapi.d/plugins"   # programs for host.call_plugin
    extension_directory = "/etc/xapi.d/extensions"  # programs for host.call_extension
    plugin_seconds = 3600                      # how long one may run
    workers = true                             # each host in a process of its own, which outlives this one
    stop_workers = true                        # but ends with it, when that is told to stop
    network_boot = "demo"                      # what boots from a network: a kernel's path, "demo", or "" for none

What the command line says goes before the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from platformdirs import user_state_path

BUDGET = 512 * 2**20
"""Bytes of rendered records that are kept."""
RESERVE = 64 * 2**20
"""Bytes of the database's file system that disks of VMs leave to it."""
SECONDS = 3600
"""How long a plugin or an extension may run."""
IN_MEMORY = "memory:"
"""In place of a database's URL: what is written is forgotten with the process."""
LOG_LEVELS = ("debug", "info", "warn", "error", "critical")
LOG_FORMATS = ("text", "json")


LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:([^:=\[\]]*|\[[^=\[\]]+\]|[0-9a-fA-F:.]+):)?([0-9]+)")
_HOST = re.compile(r"[0-9a-fA-F:]*:[0-9a-fA-F:.]*|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_TWISTED = re.compile(r"[a-z][\w.-]*:.", re.ASCII)


class ConfigError(Exception):
    """A setting is wrong; the text is one line for people."""


@dataclass(frozen=True)
class Config:
    """All settings. Endpoints are as `address_of` has them."""

    state: Path
    listen: tuple[str, ...] = ("127.0.0.1:8080",)
    tls: tuple[str, ...] = ("127.0.0.1:8443",)
    host_address: str = ""
    database: str = ""
    ephemeral: bool = False
    inventory: Path | None = None
    hosts: int = 1
    vms: int = 0
    seed: int | None = None
    root_password_file: Path | None = None
    log_level: str = "info"
    log_format: str = "text"
    log_file: Path | None = None
    ready_file: Path | None = None
    ready_fd: int | None = None
    directory: Path | None = None
    fragment_budget: int = BUDGET
    reserve: int = RESERVE
    guest_directory: Path | None = None
    storage_directory: Path | None = None
    network_boot: str = "demo"
    workers: bool = False
    stop_workers: bool = False
    plugin_directory: Path | None = None
    extension_directory: Path | None = None
    plugin_seconds: int = SECONDS

    @property
    def plugins(self) -> Path:
        """The directory of the programs that host.call_plugin runs."""
        return self.plugin_directory or self.state / "plugins"

    @property
    def extensions(self) -> Path:
        """The directory of the programs that host.call_extension runs."""
        return self.extension_directory or self.state / "extensions"

    @property
    def guests(self) -> Path:
        """The directory of the kernels that VMs may name."""
        return self.guest_directory or self.state / "guests"

    @property
    def storage(self) -> Path:
        """The directory of the hosts' local storage."""
        return self.storage_directory or self.state / "storage"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL; by default a SQLite file in the state directory."""
        return self.database or f"sqlite:///{self.state / 'xapi.db'}"

    @property
    def audit_log(self) -> Path:
        """The file of the audit trail."""
        return self.state / "audit.log"

    @property
    def workers_directory(self) -> Path:
        """The directory of the hosts' workers, a directory each by its uuid."""
        return self.state / "hosts"

    @property
    def socket(self) -> Path:
        """The Unix socket of local root."""
        return self.state / "xapi"


def address_of(text: str) -> tuple[str, int] | None:
    """Return host and port of ``port`` (on loopback), ``host:port``, ``[v6]:port`` or ``:port`` (on all of IPv4).

    None is for a text in Twisted's notation, of which only the look is checked. Raises ConfigError.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or text.startswith(("tcp:", "tcp6:", "ssl:", "unix:", "systemd:")):
        if not _TWISTED.match(text):
            raise ConfigError(f"endpoint {text}: is neither port, host:port nor one of Twisted's endpoint strings")
        return None
    host, port = match.groups()
    if int(port) > 65535:
        raise ConfigError(f"endpoint {text}: there is no port {port}")
    return (LOOPBACK if host is None else host.strip("[]")), int(port)


class _Version(argparse.Action):
    """Look the version up when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: object) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="say the version and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Say it, and end the program."""
        sys.stdout.write(f"{parser.prog} {version()}\n")
        parser.exit()


def version() -> str:
    """Return the version of the installed package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("kronos-xapi")
    except PackageNotFoundError:  # a checkout on PYTHONPATH
        return "of a checkout"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise ConfigError: a wrong option is told like any other wrong setting."""
        raise ConfigError(message)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    options = _Parser(
        prog="xapi",
        description="A XenAPI toolstack that needs no Xen host: serves the API over HTTP, HTTPS and a Unix socket.",
    )
    add = options.add_argument
    add("--config", type=Path, metavar="FILE", help="read settings from a TOML file (see xapi.process.config)")
    add("--state", type=Path, metavar="DIR", help="directory of database, certificate, socket and password "
        f"(default: {user_state_path('xapi')})")  # fmt: skip
    add("--listen", action="append", metavar="ENDPOINT", help="serve HTTP at a port of 127.0.0.1, host:port, :port "
        "for every address, or a Twisted endpoint string; repeatable (default: 127.0.0.1:8080)")  # fmt: skip
    tls = options.add_mutually_exclusive_group()
    tls.add_argument("--tls", action="append", metavar="ENDPOINT", help="serve HTTPS likewise, with "
        "STATE/xapi-ssl.pem (default: 127.0.0.1:8443)")  # fmt: skip
    tls.add_argument("--no-tls", dest="tls", action="store_const", const=[], help="serve no HTTPS")
    add("--host-address", metavar="ADDRESS", help="address or name by which clients reach this daemon, for "
        "host.address, consoles and the certificate, where a NAT hides it (default: where it listens)")  # fmt: skip
    add("--database", metavar="URL", help="SQLAlchemy URL, such as postgresql+psycopg://user@host/name "
        "(default: SQLite in STATE/xapi.db)")  # fmt: skip
    add("--ephemeral", action="store_true", default=None, help="keep nothing: a new pool, with its records in memory "
        "and its disks in a temporary directory that goes at the end")  # fmt: skip
    add("--inventory", type=Path, metavar="FILE", help="what a new pool consists of (default: one host)")
    add("--hosts", type=int, metavar="N", help="hosts of a new pool, for scale tests (default: 1)")
    add("--vms", type=int, metavar="N", help="halted VMs of a new pool, for scale tests (default: 0)")
    add("--workers", action="store_true", default=None, help="run each host in a process of its own, which goes on "
        "with its guests when this one ends or is killed, and is found again by the next")  # fmt: skip
    add("--stop-workers", action="store_true", default=None, help="when told to stop, end them and their guests too "
        "(always so with --ephemeral)")  # fmt: skip
    add("--seed", type=int, metavar="S", help="make uuids, references and MAC addresses follow from a number: "
        "the same calls then make the same objects (sessions and secrets excepted)")  # fmt: skip
    add("--reserve", type=int, metavar="BYTES", help="what disks of VMs leave free on the file system of the state "
        f"and the database, at most an eighth of it; 0 for nothing (default: {RESERVE})")  # fmt: skip
    add("--root-password-file", type=Path, metavar="FILE", help="root's password at the first start (else "
        "XAPI_ROOT_PASSWORD, else one is generated, printed and kept in STATE/root-password)")  # fmt: skip
    add("--ready-file", type=Path, metavar="FILE", help="when all is served, write its addresses there as JSON; "
        "the file goes when the daemon ends")  # fmt: skip
    add("--ready-fd", type=int, metavar="N", help="write the same as one line to an open file descriptor")
    add("--version", action=_Version)
    add("--log-level", choices=LOG_LEVELS, metavar="L", help=f"one of {', '.join(LOG_LEVELS)}: info is who comes and "
        "goes, what changes, fails or takes long; debug is every call (default: info)")  # fmt: skip
    add("--log-format", choices=LOG_FORMATS, metavar="F", help="text, or json: an object a line (default: text)")
    add("--log-file", type=Path, metavar="FILE", help="write the log there and not to standard error; 16 MiB and 5 "
        "older files FILE.1 to FILE.5 are kept, and a file that logrotate has moved is made anew")  # fmt: skip
    return options


def from_command_line(arguments: Sequence[str] | None = None) -> Config:
    """Return the settings for a command line. Raises ConfigError; --help ends the program."""
    given = vars(parser().parse_args(arguments))
    path = given.pop("config")
    settings = {} if path is None else read_file(path)
    settings |= {name: value for name, value in given.items() if value is not None}
    return make(settings)


def read_file(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            settings = tomllib.load(file)
    except (OSError, ValueError) as error:  # ValueError: no TOML, or no UTF-8
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    known = {field.name: field for field in dataclasses.fields(Config)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{path}: {name} is no setting; there are {', '.join(known)}")
        wanted = _KINDS.get(name, str)
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise ConfigError(f"{path}: {name} must be a {wanted.__name__}")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{path}: {name} must be a list of strings")
    return settings


_KINDS: Mapping[str, type] = {
    "listen": list,
    "tls": list,
    "hosts": int,
    "vms": int,
    "seed": int,
    "fragment_budget": int,
    "reserve": int,
    "plugin_seconds": int,
    "ready_fd": int,
    "ephemeral": bool,
    "workers": bool,
    "stop_workers": bool,
}


def make(settings: Mapping[str, Any]) -> Config:
    """Return a Config of plain values. Raises ConfigError."""
    values = dict(settings)
    for name in (
        "state",
        "inventory",
        "root_password_file",
        "log_file",
        "ready_file",
        "directory",
        "guest_directory",
        "storage_directory",
        "plugin_directory",
        "extension_directory",
    ):
        if values.get(name) is not None:
            values[name] = Path(values[name]).absolute()
    if values.get("ephemeral") and (values.get("state") or values.get("database")):
        raise ConfigError("ephemeral keeps nothing; neither state nor database can be given with it")
    values.setdefault("state", user_state_path("xapi"))
    for name in ("listen", "tls"):
        if name in values:
            values[name] = tuple(endpoint for endpoint in values[name] if endpoint)
            for endpoint in values[name]:
                address_of(endpoint)
    config = Config(**values)
    if config.host_address and not _HOST.fullmatch(config.host_address):
        raise ConfigError(
            f"host_address {config.host_address}: is neither an address nor a host's name, without a port"
        )
    if config.hosts < 1 or config.vms < 0:
        raise ConfigError("a pool has at least 1 host and 0 VMs")
    if config.ready_fd is not None and config.ready_fd < 0:
        raise ConfigError("ready_fd must be a file descriptor's number")
    if config.reserve < 0:
        raise ConfigError("reserve must be at least 0")
    if config.plugin_seconds < 1:
        raise ConfigError("plugin_seconds must be at least 1")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level must be one of {', '.join(LOG_LEVELS)}")
    if config.log_format not in LOG_FORMATS:
        raise ConfigError(f"log_format must be one of {', '.join(LOG_FORMATS)}")
    return config
