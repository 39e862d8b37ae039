"""The daemon as a process: how it starts, refuses to start, ends, and what it keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon, refused

Start = Callable[..., Daemon]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(start: Start, clients: Clients, number: int) -> None:
    """Status 0, nothing about errors, the socket gone, though a client is connected and waits."""
    daemon = start().ready()
    clients.root(daemon).xenapi.pool.get_all()
    log = daemon.stop(number)
    assert not [line for line in log if "error" in line.lower() or "Traceback" in line]
    assert not daemon.socket.exists()


def test_a_second_term_does_not_disturb_a_clean_end(start: Start) -> None:
    """A service manager and a process group both tell it."""
    daemon = start().ready()
    daemon.process.send_signal(signal.SIGTERM)
    log = daemon.stop(signal.SIGTERM)
    assert not [line for line in log if "error" in line.lower() or "Traceback" in line]


def test_listening_and_files(start: Start) -> None:
    """What it keeps is its owner's alone."""
    daemon = start("--tls", "127.0.0.1:0").ready()
    assert mode(daemon.state) == 0o700
    kept = {path.name: mode(path) for path in daemon.state.iterdir()}
    assert {"xapi", "xapi.db", "xapi-ssl.pem", "passwords.json", "ptoken", "lock"} <= set(kept)
    assert {name: bits for name, bits in kept.items() if bits & 0o077 and name != "lock"} == {}
    daemon.stop()


@pytest.mark.parametrize("offered", [(), ("h2", "http/1.1"), ("http/1.0",)], ids=str)
def test_tls_is_agreed_on_with_who_offers_protocols_and_who_does_not(daemon: Daemon, offered: tuple[str, ...]) -> None:
    """curl, Node.js and Go offer some by ALPN, Python's XenAPI none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if offered:
        context.set_alpn_protocols(list(offered))
    address = urlsplit(daemon.https)
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as plain,
        context.wrap_socket(plain) as wire,
    ):
        assert wire.selected_alpn_protocol() == (offered[-1] if offered else None)
        wire.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert wire.recv(9) == b"HTTP/1.1 "


def test_start_after_a_crash(start: Start, clients: Clients) -> None:
    """kill -9 leaves socket and lock behind; neither is in the way, and what was answered is there."""
    daemon = start().ready()
    api = clients.root(daemon).xenapi
    (pool,) = api.pool.get_all()
    api.pool.set_name_label(pool, "before the crash")
    daemon.kill()
    assert daemon.socket.exists()
    again = start().ready()
    local = clients(again.socket)
    local.login_with_password("", "")
    assert local.xenapi.pool.get_name_label(pool) == "before the crash"
    again.stop()


# Readiness


def test_who_waits_hears_of_it_at_every_log_level(start: Start, clients: Clients, tmp_path: Path) -> None:
    """The addresses really bound, on standard output, in a file and by a descriptor."""
    reads, writes = os.pipe()
    quiet = ("--log-level", "critical", "--tls", "0", "--ready-file", str(tmp_path / "ready"))
    daemon = start(*quiet, "--ready-fd", str(writes), keeps=(writes,))
    os.close(writes)
    with open(reads, encoding="utf-8") as file:
        told = json.loads(file.read())
    assert json.loads((tmp_path / "ready").read_text()) == told
    assert (told["pid"], told["socket"]) == (daemon.process.pid, str(daemon.socket))
    for url in (told["url"], told["https_url"]):
        clients(url).login_with_password("root", "xenroot")
    line = daemon.printed.get(timeout=10)
    assert line == f"Ready: {told['url']}/ {told['https_url']}/ unix:{daemon.socket}"
    assert daemon.stop() == []
    assert not (tmp_path / "ready").exists()


IMPORTS_ARE_TOLD = """
import sys
class Told:
    @staticmethod
    def find_spec(name, path=None, target=None):
        print("imported", name, file=sys.stderr, flush=True)
sys.meta_path.insert(0, Told)
"""


def test_nothing_of_the_program_is_imported_once_it_serves(start: Start, clients: Clients) -> None:
    """What runs guests takes most of a second to import; nobody's first call waits for it, nor do the others'."""
    daemon = start(first=IMPORTS_ARE_TOLD).ready()
    api = clients.root(daemon).xenapi
    api.host.dmesg(api.host.get_all()[0])
    vm = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "a guest")
    api.VM.provision(vm)
    api.VM.start(vm, False, False)
    api.VM.hard_shutdown(vm)
    log = daemon.stop()
    served = next(at for at, line in enumerate(log) if "Ready: " in line)
    told = [line.removeprefix("imported ") for line in log[:served] if line.startswith("imported ")]
    assert "hypervisor.host" in told
    late = [line.removeprefix("imported ") for line in log[served:] if line.startswith("imported ")]
    assert [name for name in late if name.startswith(("hypervisor", "unicorn", "xapi"))] == []


# Restarting


def test_restart_keeps_records_and_forgets_sessions_and_tasks(start: Start, clients: Clients) -> None:
    """All records and a changed password come back as they were; what is of the moment does not."""
    daemon = start().ready()
    client = clients.root(daemon)
    api = client.xenapi
    api.VM_group.create({"name_label": "a group", "placement": "anti_affinity"})
    task = api.task.create("label", "")
    token = api.event_from(["pool"], "", 0.0)["token"]
    classes = ("pool", "host", "VM", "SR", "network", "PIF", "VM_group", "role", "console", "host_cpu", "PBD", "SM")
    before = {name: getattr(api, name).get_all_records() for name in classes}
    api.session.change_password("xenroot", "new")
    daemon.stop()
    again = start().ready()
    with pytest.raises(XenAPI.Failure, match="SESSION_AUTHENTICATION_FAILED"):
        clients.root(again, "xenroot")  # the environment's counts at the first start only
    renewed = clients.root(again, "new")
    after = {name: getattr(renewed.xenapi, name).get_all_records() for name in classes}
    for ran, said in ((daemon, before), (again, after)):  # their ports are others
        locations = [each.pop("location") for each in said["console"].values()]
        assert locations and all(each.startswith(f"{ran.https or ran.http}console?") for each in locations)
    assert after == before
    invalid = clients.plain(again.http).pool.get_all(client.handle)
    assert invalid["ErrorDescription"][0] == "SESSION_INVALID"
    assert task not in renewed.xenapi.task.get_all()
    with pytest.raises(XenAPI.Failure, match="EVENTS_LOST"):
        renewed.xenapi.event_from(["pool"], token, 0.0)
    again.stop()


# Passwords


def test_password_is_invented_once(start: Start, clients: Clients) -> None:
    """Printed at the first start before it serves, kept for its owner, and not told again."""
    daemon = start(password=None).ready()
    line = daemon.printed.get(timeout=10)
    match = re.fullmatch(r"root's password is (\S{16}) \(kept in (.+)\)", line)
    assert match is not None
    kept = Path(match[2])
    assert kept == daemon.state / "root-password"
    assert (kept.read_text(), mode(kept)) == (match[1] + "\n", 0o600)
    clients.root(daemon, match[1])
    assert match[1] not in (daemon.state / "passwords.json").read_text()
    daemon.stop()
    again = start(password=None).ready()
    clients.root(again, match[1])
    again.stop()
    assert again.printed.get(timeout=10).startswith("Ready: ")
    assert again.printed.empty()


def test_password_of_a_file(start: Start, clients: Clients, tmp_path: Path) -> None:
    """Goes before the environment's; the line end is not part of it."""
    (tmp_path / "password").write_text("of the file\n")
    daemon = start("--root-password-file", str(tmp_path / "password")).ready()
    clients.root(daemon, "of the file")
    assert not (daemon.state / "root-password").exists()
    daemon.stop()


# Inventories


def identities(api: Any) -> dict[str, dict[str, str]]:
    """Return the uuids of all objects that a fresh pool has, by class and reference."""
    classes = ("pool", "host", "VM", "SR", "network", "PIF", "PBD", "console", "host_cpu", "SM", "VDI", "VM_metrics")
    return {
        name: {ref: record["uuid"] for ref, record in getattr(api, name).get_all_records().items()} for name in classes
    }


def test_seed_makes_the_same_pool_twice(daemon: Daemon, start: Start, clients: Clients, tmp_path: Path) -> None:
    """And another one without it."""
    pools = []
    for name in ("first", "second"):
        seeded = start("--seed", "7", state=tmp_path / name).ready()
        pools.append(identities(clients.root(seeded).xenapi))
        seeded.stop()
    assert pools[0] == pools[1]
    assert pools[0]["pool"] != identities(clients.root(daemon).xenapi)["pool"]


def test_pool_of_a_size(start: Start, clients: Clients) -> None:
    """Three hosts, each with its control domain, and 50 halted VMs."""
    daemon = start("--hosts", "3", "--vms", "50").ready()
    api = clients.root(daemon).xenapi
    guests = 'field "is_a_template" = "false" and field "is_control_domain" = "{}"'
    assert len(api.host.get_all()) == 3
    assert len(api.VM.get_all_records_where(guests.format("true"))) == 3
    found = api.VM.get_all_records_where(guests.format("false"))
    assert {record["power_state"] for record in found.values()} == {"Halted"}
    assert len(found) == 50
    daemon.stop()


# Keeping nothing


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ephemeral_daemon_leaves_nothing(
    start: Start, clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its records are in memory and its disks in a temporary directory, which goes with it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    daemon = start("--ephemeral", "--tls", "0").ready()
    api = clients.root(daemon).xenapi
    (storage,) = api.SR.get_by_name_label("Local storage")
    disk = {"SR": storage, "name_label": "", "virtual_size": "1048576", "type": "user", "other_config": {}}
    api.VDI.create({**disk, "sharable": False, "read_only": False})
    (state,) = tmp_path.glob("kronos-*")
    assert len(list(state.rglob("*.vhd"))) == 1 and not (state / "xapi.db").exists()
    daemon.stop(number)
    assert list(tmp_path.iterdir()) == []


def test_an_ephemeral_daemon_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it listens and when it does."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(tmp_path, "--ephemeral", "--listen", f"127.0.0.1:{port}")
    assert "No such file" in refused(tmp_path, "--ephemeral", "--inventory", str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


# Refusing to start


def one_line(text: str) -> str:
    """Check that a text is one line of the daemon's and return it without the program's name."""
    match = re.fullmatch(r"xapi: (.+)\n", text)
    assert match is not None, text
    return match[1]


def contents(directory: Path) -> dict[str, bytes]:
    """Return all files of a directory with what is in them."""
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_second_daemon_is_refused(start: Start, clients: Clients, tmp_path: Path) -> None:
    """It names the first, which does not notice."""
    daemon = start().ready()
    said = one_line(refused(tmp_path / "state"))
    assert said == f"{tmp_path}/state: another daemon (process {daemon.process.pid}) uses it"
    clients.root(daemon)
    assert daemon.socket.exists()
    daemon.stop()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "{}/none.toml"], "{}/none.toml: No such file or directory"),
        (["--config", "{}/garbage.toml"], "{}/garbage.toml: "),
        (["--config", "{}/unknown.toml"], "{}/unknown.toml: colour is no setting; "),
        (["--inventory", "{}/garbage.toml"], "{}/garbage.toml: "),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
        (["--listen", "nonsense"], "endpoint nonsense: "),
        (["--tls", "ssl:8443"], "endpoint ssl:8443: "),
        (["--database", "nonsense"], "the database's URL cannot be read; "),
        (["--ready-fd", "999"], "ready_fd 999: Bad file descriptor"),
        (["--ready-file", "{}/none/ready"], "{}/none/ready: No such file or directory"),
        (["--root-password-file", "{}/none"], "{}/none: No such file or directory"),
        (["--root-password-file", "{}/empty"], "{}/empty: is empty"),
        (["--state", "{}/empty"], "{}/empty: cannot be used as state directory: File exists"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, options: list[str], said: str) -> None:
    """One line, and no file is touched."""
    (tmp_path / "garbage.toml").write_text("[[[")
    (tmp_path / "unknown.toml").write_text('colour = "red"\n')
    (tmp_path / "empty").touch()
    before = contents(tmp_path)
    text = one_line(refused(tmp_path / "state", *[option.format(tmp_path) for option in options]))
    assert text.startswith(said.format(tmp_path))
    assert {path: data for path, data in contents(tmp_path).items() if not path.endswith("/lock")} == before


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    connection.close()


def is_directory(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("Dear diary")


@pytest.mark.parametrize("spoil", [foreign, is_directory, text])
def test_file_that_is_no_database_of_ours(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """Somebody's file is not written to."""
    path = tmp_path / "theirs.db"
    spoil(path)
    before = contents(tmp_path)
    said = one_line(refused(tmp_path / "state", "--database", f"sqlite:///{path}"))
    assert said.startswith(str(path))
    assert {name: data for name, data in contents(tmp_path).items() if "/state/" not in name} == before


def test_damaged_database_and_certificate(start: Start, tmp_path: Path) -> None:
    """What can be repaired by hand is not overwritten."""
    start("--tls", "127.0.0.1:0").ready().stop()
    state = tmp_path / "state"
    certificate = state / "xapi-ssl.pem"
    good = certificate.read_bytes()
    certificate.write_bytes(b"no certificate")
    said = [line for line in refused(state, "--tls", "127.0.0.1:0").splitlines() if line.startswith("xapi: ")]
    assert said == [f"xapi: {certificate}: is damaged; it must hold a key without a password and its certificate"]
    assert certificate.read_bytes() == b"no certificate"
    certificate.write_bytes(good)
    data = bytearray((state / "xapi.db").read_bytes())
    data[4096 : 3 * 4096] = b"\xff" * 2 * 4096
    (state / "xapi.db").write_bytes(data)
    assert one_line(refused(state)).startswith(f"{state}/xapi.db: ")
    assert (state / "xapi.db").read_bytes() == data


@pytest.mark.parametrize("damage", ["{", "\xff"])
def test_damaged_passwords(tmp_path: Path, damage: str) -> None:
    """They are not replaced by new ones."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "passwords.json").write_text(damage, "latin-1")
    said = one_line(refused(state))
    assert said.startswith(f"{state}/passwords.json: is damaged")
    assert (state / "passwords.json").read_text("latin-1") == damage


def test_port_in_use(tmp_path: Path) -> None:
    """One line of the daemon's own says which, whatever the log says before."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        log = refused(tmp_path / "state", "--listen", f"127.0.0.1:{port}")
    assert "Traceback" not in log
    said = [line for line in log.splitlines() if line.startswith("xapi: ")]
    assert len(said) == 1
    assert f"127.0.0.1:{port}" in said[0]
