"""A declared inventory: what a new pool consists of, as frozen values, read from TOML.

Every table and key is optional; a file that says nothing declares one host. Names are how tables
refer to each other. A size is a number of bytes or a text such as "16 GiB".

    [pool]       name, description, tags, other_config; default_sr: name of the SR that new disks go
                 to ("" for none; the first host's local storage unless said otherwise)
    [[host]]     name, description, address, cpus, sockets, cpu_model, cpu_mhz, memory,
                 control_domain_memory, tags, other_config; local_storage: size of the SR that the
                 installation makes, 0 for none; local_storage_type: ext, lvm or file
    [[host.nic]] device, mac, network, management, ip, netmask, gateway, dns, speed (Mbit/s);
                 without a network a card gets the pool-wide network of its device
    [[network]]  name, description, bridge, mtu, tags, other_config
    [[sr]]       name, description, type (nfs), content_type, shared (true), host (of one that is not shared),
                 size, device_config, tags, other_config; an ISO library when the file has no [[sr]]
    [[sr.vdi]]   name, description, size, read_only, sharable, tags, other_config
    [[vm]]       name, description, from (name of a default template), template (true for a template
                 of one's own), host (affinity), memory, vcpus, tags, folder, other_config
    [[vm.disk]]  either size and sr (a new image, on the default SR unless said), or vdi (name of a
                 declared one); name, bootable, read_only, cd (a drive, empty without vdi)
    [[vm.nic]]   network (the first host's management network unless said), mac

Names of SRs and VDIs must be unique to be referred to. The local storage of a host is
"Local storage on HOST", or "Local storage" when only one host has some; the network that comes with
a card is "Pool-wide network associated with eth0" and so on. Control domains, tools, drives and
default templates come by themselves. `deploy/inventory.example.toml` shows all this.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from xapi.host.driver import types
from xapi.inventory.templates import default_templates, read_size

T = TypeVar("T")
GIB = 2**30
Size: TypeAlias = int
"""Bytes; in a file also a text with a unit."""


class DeclarationError(Exception):
    """A declaration is wrong; the text is ``file: key path: what``."""


@dataclass(frozen=True, slots=True)
class HostNIC:
    device: str = ""
    mac: str = ""
    network: str = ""
    management: bool = False
    ip: str = ""
    netmask: str = ""
    gateway: str = ""
    dns: str = ""
    speed: int = 1000


@dataclass(frozen=True, slots=True)
class Host:
    name: str = "kronos"
    description: str = "Default install"
    address: str = "127.0.0.1"
    cpus: int = 4
    sockets: int = 1
    cpu_model: str = "Kronos virtual CPU"
    """What guests find their CPUs called: CPUID has room for 47 characters of ASCII."""
    cpu_mhz: int = 2394
    """Counts only where no guests can run: elsewhere it is the machine's own."""
    memory: Size = 16 * GIB
    control_domain_memory: Size = 2 * GIB
    local_storage: Size = 200 * GIB
    local_storage_type: str = "ext"
    tags: tuple[str, ...] = ()
    other_config: Mapping[str, str] = field(default_factory=dict)
    nics: tuple[HostNIC, ...] = (HostNIC(),)


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    description: str = ""
    bridge: str = ""
    mtu: int = 1500
    tags: tuple[str, ...] = ()
    other_config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VDI:
    name: str
    size: Size
    description: str = ""
    read_only: bool = False
    sharable: bool = False
    tags: tuple[str, ...] = ()
    other_config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SR:
    name: str
    description: str = ""
    type: str = "nfs"
    content_type: str = ""
    """'': iso for an SR of type iso, else user"""
    shared: bool = True
    host: str = ""
    size: Size = 0
    device_config: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    other_config: Mapping[str, str] = field(default_factory=dict)
    vdis: tuple[VDI, ...] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    name: str = ""
    size: Size = 0
    sr: str = ""
    vdi: str = ""
    bootable: bool = False
    read_only: bool = False
    cd: bool = False


@dataclass(frozen=True, slots=True)
class NIC:
    network: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class VM:
    name: str
    description: str = ""
    from_: str = "Other install media"
    template: bool = False
    host: str = ""
    memory: Size = 0
    """0: as the default template that it is made from"""
    vcpus: int = 0
    """0: as the default template that it is made from"""
    tags: tuple[str, ...] = ()
    folder: str = ""
    other_config: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()
    nics: tuple[NIC, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    name: str = ""
    description: str = ""
    default_sr: str | None = None
    """None: the first host's local storage"""
    tags: tuple[str, ...] = ()
    other_config: Mapping[str, str] = field(default_factory=dict)


ISO_LIBRARY = SR("ISO library", type="iso", device_config={"location": "/var/opt/xen/iso", "legacy_mode": "true"})


@dataclass(frozen=True, slots=True)
class Declaration:
    """A whole inventory; `Declaration()` is one host as it is after an installation."""

    pool: Pool = Pool()
    hosts: tuple[Host, ...] = (Host(),)
    networks: tuple[Network, ...] = ()
    srs: tuple[SR, ...] = (ISO_LIBRARY,)
    vms: tuple[VM, ...] = ()


LOCAL_STORAGE = "Local storage"


def sr_names(declaration: Declaration) -> dict[str, Host | SR]:
    """Return what may stand for an SR: the host whose local storage it is, or a declared SR.

    A name that several SRs have is not among the keys.
    """
    local = [host for host in declaration.hosts if host.local_storage]
    known: list[tuple[str, Host | SR]] = [(f"{LOCAL_STORAGE} on {host.name}", host) for host in local]
    known += [(LOCAL_STORAGE, host) for host in local]
    known += [(sr.name, sr) for sr in declaration.srs]
    count = Counter(name for name, _ in known)
    return {name: owner for name, owner in known if count[name] == 1}


def default_sr(declaration: Declaration) -> str:
    """Return the name of the SR that new disks go to, '' for none."""
    given = declaration.pool.default_sr
    first = declaration.hosts[0]
    if given is None:
        return f"{LOCAL_STORAGE} on {first.name}" if first.local_storage else ""
    return given


def nic_device(at: int, nic: HostNIC) -> str:
    """Return the device of a host's n-th network card."""
    return nic.device or f"eth{at}"


def nic_network(at: int, nic: HostNIC) -> str:
    """Return the name of the network of a host's n-th network card."""
    return nic.network or f"Pool-wide network associated with {nic_device(at, nic)}"


def network_names(declaration: Declaration) -> set[str]:
    """Return the networks that VMs may name: the declared ones, and those that come by themselves."""
    declared = {network.name for network in declaration.networks}
    return declared.union(*({nic_network(at, nic) for at, nic in enumerate(h.nics)} for h in declaration.hosts))


def read_declaration(path: Path) -> Declaration:
    """Read a file. Raises DeclarationError."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise DeclarationError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{path}: {error}") from error
    return parse_declaration(text, str(path))


def parse_declaration(text: str, source: str) -> Declaration:
    """Read TOML; `source` names it in errors. Raises DeclarationError."""
    try:
        tables = tomllib.loads(text)
        declaration = _read_table(Declaration, tables, "")
        _check(declaration)
    except tomllib.TOMLDecodeError as error:
        raise DeclarationError(f"{source}: {error}") from error
    except _Wrong as error:
        raise DeclarationError(f"{source}: {error.path or 'file'}: {error.text}") from error
    return declaration


class _Wrong(Exception):
    def __init__(self, path: str, text: str) -> None:
        super().__init__(path, text)
        self.path, self.text = path, text


def _read_table(kind: type[T], table: object, path: str) -> T:
    """Return a dataclass of a TOML table; keys are its attributes, `from_` as `from`, lists singular."""
    if not isinstance(table, dict):
        raise _Wrong(path, "expected a table")
    values = {}
    known = {}
    attributes = fields(kind) if is_dataclass(kind) else ()
    for attribute in attributes:
        listed = _LISTED.get(str(attribute.type))
        known[attribute.name[:-1] if listed or attribute.name == "from_" else attribute.name] = attribute
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if key not in known:
            raise _Wrong(here, f"unknown key; known here: {', '.join(known)}")
        values[known[key].name] = _read_value(str(known[key].type), value, here)
    for attribute in attributes:
        given = attribute.name in values or attribute.default is not MISSING
        _require(given or attribute.default_factory is not MISSING, path, f"{attribute.name} must be given")
    return kind(**values)


def _read_value(kind: str, value: object, path: str) -> object:
    if kind == "Pool":
        return _read_table(Pool, value, path)
    if kind in _LISTED:
        if not isinstance(value, list):
            raise _Wrong(path, f"expected tables: write [[{path}]]")
        return tuple(_read_table(_LISTED[kind], item, f"{path}[{at}]") for at, item in enumerate(value))
    try:
        return _READERS[kind](value)
    except ValueError as error:
        raise _Wrong(path, str(error)) from None


def _exactly(kind: type[T], noun: str) -> Callable[[object], T]:
    def read(value: object) -> T:
        if type(value) is not kind or not isinstance(value, kind):
            raise ValueError(f"expected {noun}, got {value!r}")
        return value

    return read


_string = _exactly(str, "a text")


def _strings(value: object) -> tuple[str, ...]:
    return tuple(_string(item) for item in _exactly(list, "a list of texts")(value))


def _map(value: object) -> dict[str, str]:
    return {key: _string(item) for key, item in _exactly(dict, "a table of texts")(value).items()}


_READERS: Mapping[str, Callable[[object], object]] = {
    "str": _string,
    "str | None": _string,
    "int": _exactly(int, "a whole number"),
    "bool": _exactly(bool, "true or false"),
    "Size": read_size,
    "tuple[str, ...]": _strings,
    "Mapping[str, str]": _map,
}
_LISTED: Mapping[str, type] = {
    f"tuple[{kind.__name__}, ...]": kind for kind in (HostNIC, Host, Network, VDI, SR, Disk, NIC, VM)
}


def _require(good: bool, path: str, text: str) -> None:
    if not good:
        raise _Wrong(path, text)


def _unique(names: Iterable[str], path: str, key: str) -> None:
    seen: dict[str, int] = {}
    for at, name in enumerate(names):
        if name:
            _require(name not in seen, f"{path}[{at}].{key}", f"{name!r} is taken by {path}[{seen.get(name)}]")
            seen[name] = at


def _check(declaration: Declaration) -> None:
    """Check ranges, and what one table says of another."""
    hosts = {host.name for host in declaration.hosts}
    networks = {network.name for network in declaration.networks}
    _require(bool(hosts), "host", "a pool has at least one host")
    _unique((host.name for host in declaration.hosts), "host", "name")
    _unique((host.address for host in declaration.hosts), "host", "address")
    _unique((network.name for network in declaration.networks), "network", "name")
    _unique((network.bridge for network in declaration.networks), "network", "bridge")
    for at, host in enumerate(declaration.hosts):
        _check_host(host, f"host[{at}]", networks)
    for at, network in enumerate(declaration.networks):
        _require(68 <= network.mtu <= 65535, f"network[{at}].mtu", f"{network.mtu} is not within 68 to 65535")
        _require(len(network.bridge) <= 15, f"network[{at}].bridge", "longer than 15 characters")
        _require(network.bridge != "xenapi", f"network[{at}].bridge", "'xenapi' is the hosts' own")
    for at, sr in enumerate(declaration.srs):
        _check_sr(sr, f"sr[{at}]", hosts)
    for at, vm in enumerate(declaration.vms):
        _check_vm(vm, f"vm[{at}]", declaration)
    default = default_sr(declaration)
    _require(not default or default in sr_names(declaration), "pool.default_sr", f"not the name of one SR: {default!r}")


def _check_host(host: Host, path: str, networks: set[str]) -> None:
    _require(bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", host.name)), f"{path}.name", "not a host name")
    _check_address(host.address, f"{path}.address")
    _require(1 <= host.cpus <= 1024, f"{path}.cpus", f"{host.cpus} is not within 1 to 1024")
    whole = host.sockets >= 1 and host.cpus % host.sockets == 0
    _require(whole, f"{path}.sockets", f"{host.cpus} CPUs do not fill {host.sockets} sockets")
    _require(
        len(host.cpu_model) <= 47 and bool(re.fullmatch(r"[!-~]+( [!-~]+)*", host.cpu_model)),
        f"{path}.cpu_model",
        "not up to 47 characters of ASCII in words with one space between them, which is what a CPU can say",
    )
    _require(host.cpu_mhz >= 1, f"{path}.cpu_mhz", f"{host.cpu_mhz} is not positive")
    _require(host.memory >= GIB, f"{path}.memory", "less than 1 GiB")
    spare = 0 < host.control_domain_memory <= host.memory // 2
    _require(spare, f"{path}.control_domain_memory", "not within 0 and half of the host's memory")
    kinds = [driver.type for driver in types().values() if driver.local is not None]
    _require(host.local_storage_type in kinds, f"{path}.local_storage_type", f"not one of {', '.join(kinds)}")
    _require(bool(host.nics), f"{path}.nic", "a host has at least one network card")
    _require(sum(nic.management for nic in host.nics) <= 1, f"{path}.nic", "two management cards")
    _unique((nic_device(at, nic) for at, nic in enumerate(host.nics)), f"{path}.nic", "device")
    _unique((nic.network for nic in host.nics), f"{path}.nic", "network")
    for at, nic in enumerate(host.nics):
        here = f"{path}.nic[{at}]"
        _require(not nic.network or nic.network in networks, f"{here}.network", f"no network {nic.network!r}")
        _require(nic.speed >= 0, f"{here}.speed", f"{nic.speed} is negative")
        _check_mac(nic.mac, f"{here}.mac")
        for key in ("ip", "netmask", "gateway"):
            if getattr(nic, key):
                _check_address(getattr(nic, key), f"{here}.{key}")


def _check_sr(sr: SR, path: str, hosts: set[str]) -> None:
    _require(sr.type in types(), f"{path}.type", f"{sr.type!r} is not one of {', '.join(types())}")
    _require(not (sr.shared and sr.host), f"{path}.host", "a shared SR is on all hosts")
    _require(sr.shared or sr.host in hosts, f"{path}.host", f"no host {sr.host!r}")
    for at, vdi in enumerate(sr.vdis):
        _require(vdi.size > 0, f"{path}.vdi[{at}].size", "not positive")


def _check_vm(vm: VM, path: str, declaration: Declaration) -> None:
    names = sr_names(declaration)
    images = Counter(vdi.name for sr in declaration.srs for vdi in sr.vdis)
    networks = network_names(declaration)
    hosts = {host.name for host in declaration.hosts}
    _require(vm.from_ in default_templates(), f"{path}.from", f"no default template {vm.from_!r}")
    _require(not vm.host or vm.host in hosts, f"{path}.host", f"no host {vm.host!r}")
    _require(0 <= vm.vcpus <= 64, f"{path}.vcpus", f"{vm.vcpus} is not within 1 to 64")
    _require(not vm.folder or vm.folder.startswith("/"), f"{path}.folder", "does not begin with /")
    _require(len(vm.disks) <= 255, f"{path}.disk", "more than 255 disks")
    _require(len(vm.nics) <= 16, f"{path}.nic", "more than 16 network cards")
    for at, disk in enumerate(vm.disks):
        here = f"{path}.disk[{at}]"
        _require(not disk.vdi or images[disk.vdi] == 1, f"{here}.vdi", f"not the name of one VDI: {disk.vdi!r}")
        if disk.cd or disk.vdi:
            _require(not disk.size and not disk.sr, here, "size and sr are of a new image")
        else:
            _require(disk.size > 0, here, "either size or vdi must be given")
            _require(not disk.sr or disk.sr in names, f"{here}.sr", f"not the name of one SR: {disk.sr!r}")
            _require(bool(disk.sr or default_sr(declaration)), f"{here}.sr", "the pool has no default SR")
    for at, nic in enumerate(vm.nics):
        here = f"{path}.nic[{at}]"
        _require(not nic.network or nic.network in networks, f"{here}.network", f"no network {nic.network!r}")
        _check_mac(nic.mac, f"{here}.mac")


def _check_mac(mac: str, path: str) -> None:
    good = re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", mac)
    _require(not mac or bool(good), path, f"{mac!r} is no unicast address in lower case with colons")


def _check_address(address: str, path: str) -> None:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise _Wrong(path, f"{address!r} is no IPv4 address") from None
