"""Settings of the daemon: files, the command line, and what is wrong with either."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from xapi.process import config
from xapi.process.config import Config, ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]


def from_file(directory: Path, text: str, *more: str) -> Config:
    """Return the settings of a file with this text."""
    path = directory / "xapi.toml"
    path.write_text(text)
    return config.from_command_line(["--config", str(path), *more])


def wrong(directory: Path, text: str) -> str:
    """Return what is said of a file, after its name."""
    with pytest.raises(ConfigError) as caught:
        from_file(directory, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{directory}/xapi.toml: ")


def test_defaults() -> None:
    """Loopback on unprivileged ports, one host, a SQLite file in the state directory."""
    settings = config.from_command_line([])
    assert (settings.listen, settings.tls) == (("127.0.0.1:8080",), ("127.0.0.1:8443",))
    assert (settings.hosts, settings.vms, settings.seed, settings.inventory) == (1, 0, None, None)
    assert settings.state.is_absolute()
    assert settings.database_url == f"sqlite:///{settings.state}/xapi.db"
    assert settings.socket == settings.state / "xapi"


def test_command_line_goes_before_the_file(tmp_path: Path) -> None:
    """Option by option."""
    settings = from_file(tmp_path, 'hosts = 3\nvms = 5\nlog_level = "warn"\n', "--hosts", "2")
    assert (settings.hosts, settings.vms, settings.log_level) == (2, 5, "warn")


def test_endpoints_repeat_and_empty_ones_are_none() -> None:
    """That is how TLS is switched off."""
    settings = config.from_command_line(["--listen", "a:1", "--listen", "[::1]:2", "--tls", ""])
    assert (settings.listen, settings.tls) == (("a:1", "[::1]:2"), ())


def test_an_ephemeral_daemon_has_no_place(tmp_path: Path) -> None:
    """Neither a state directory nor a database can be said."""
    assert config.from_command_line(["--ephemeral"]).ephemeral
    assert from_file(tmp_path, "ephemeral = true").ephemeral
    for more in (["--state", "/s"], ["--database", "sqlite:///x"]):
        with pytest.raises(ConfigError, match="ephemeral keeps nothing"):
            config.from_command_line(["--ephemeral", *more])
    assert wrong(tmp_path, "ephemeral = 1") == "ephemeral must be a bool"


def test_no_tls_is_tls_switched_off(tmp_path: Path) -> None:
    """Also where a file has it."""
    assert config.from_command_line(["--no-tls"]).tls == ()
    assert from_file(tmp_path, 'tls = ["127.0.0.1:443"]', "--no-tls").tls == ()
    with pytest.raises(ConfigError, match="not allowed with argument --no-tls"):
        config.from_command_line(["--no-tls", "--tls", "127.0.0.1:443"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", ("127.0.0.1", 8080)),
        ("0", ("127.0.0.1", 0)),
        (":8080", ("", 8080)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("localhost:80", ("localhost", 80)),
        ("[::]:80", ("::", 80)),
        ("::1:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("tcp:80", None),
        ("unix:/run/xapi", None),
        ("systemd:domain=INET:index=0", None),
        ("tcp:80:interface=192.0.2.10", None),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    """A bare port is one of loopback; what is Twisted's is left to Twisted."""
    assert config.address_of(text) == address


@pytest.mark.parametrize("text", ["nonsense", "[::1]", "65536", "127.0.0.1:65536", "80:", "-1", "1.5", "::", "a b"])
@pytest.mark.parametrize("option", ["--listen", "--tls"])
def test_what_is_no_address(option: str, text: str) -> None:
    """Told before anything is loaded."""
    with pytest.raises(ConfigError, match=r"^endpoint "):
        config.from_command_line([f"{option}={text}"])


_ASKED = """
import json, sys
from xapi.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "--version"),
        (["--version"], 0, "xapi "),
        (["--colour"], 1, "unrecognized arguments: --colour"),
        (["--listen", "nonsense"], 1, "endpoint nonsense"),
        (["--config", "/proc/self/none.toml"], 1, "none.toml"),
    ],
)
def test_what_needs_no_daemon_is_answered_before_it_is_loaded(arguments: list[str], status: int, said: str) -> None:
    """Loading takes a second and more."""
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, *arguments], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    *lines, last = done.stdout.splitlines()
    ended, loaded = json.loads(last)
    assert ended == status
    assert said in "\n".join(lines) + done.stderr
    assert not {"twisted", "sqlalchemy", "lxml", "unicorn", "cryptography", "hypervisor", "zstandard"} & set(loaded)


def test_every_setting_of_the_file(tmp_path: Path) -> None:
    """Paths become absolute."""
    settings = from_file(
        tmp_path,
        """
        state = "/s"
        listen = ["l:1"]
        tls = ["t:1"]
        host_address = "kronos.example"
        database = "postgresql:///x"
        ephemeral = false
        workers = true
        stop_workers = true
        inventory = "i.toml"
        hosts = 2
        vms = 3
        seed = 4
        root_password_file = "p"
        log_level = "debug"
        log_format = "json"
        log_file = "/l"
        ready_file = "r"
        ready_fd = 8
        directory = "d.toml"
        fragment_budget = 5
        reserve = 7
        guest_directory = "g"
        storage_directory = "/srv"
        network_boot = ""
        plugin_directory = "/p"
        extension_directory = "e"
        plugin_seconds = 6
        """,
    )
    here = Path.cwd()
    assert dataclasses.asdict(settings) == {
        "state": Path("/s"), "listen": ("l:1",), "tls": ("t:1",), "database": "postgresql:///x",
        "host_address": "kronos.example",
        "ephemeral": False, "workers": True, "stop_workers": True,
        "inventory": here / "i.toml", "hosts": 2, "vms": 3, "seed": 4, "root_password_file": here / "p",
        "log_level": "debug", "log_format": "json", "log_file": Path("/l"),
        "ready_file": here / "r", "ready_fd": 8,
        "directory": here / "d.toml", "fragment_budget": 5, "reserve": 7,
        "guest_directory": here / "g", "storage_directory": Path("/srv"), "network_boot": "",
        "plugin_directory": Path("/p"), "extension_directory": here / "e", "plugin_seconds": 6,
    }  # fmt: skip
    assert settings.database_url == "postgresql:///x"


def test_example_file_is_valid(tmp_path: Path) -> None:
    """With its comments taken for settings, too."""
    text = (CHECKOUT / "deploy" / "xapi.example.toml").read_text()
    from_file(tmp_path, text)
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    from_file(tmp_path, "\n".join(lines))
    assert set(tomllib.loads("\n".join(lines))) >= {"state", "listen", "tls", "database", "inventory"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[[", "Invalid"),
        ('colour = "red"', "colour is no setting; there are state, listen, "),
        ('hosts = "3"', "hosts must be a int"),
        ("hosts = 1.5", "hosts must be a int"),
        ("hosts = true", "hosts must be a int"),
        ('listen = "127.0.0.1:80"', "listen must be a list"),
        ("listen = [80]", "listen must be a list of strings"),
        ('host_address = "192.0.2.1:443"', "host_address 192.0.2.1:443: is neither an address nor a host's name"),
        ("state = 5", "state must be a str"),
        ("[state]\nx = 1", "state must be a str"),
        ("ready_fd = -1", "ready_fd must be a file descriptor's number"),
        ("hosts = 0", "a pool has at least 1 host and 0 VMs"),
        ("vms = -1", "a pool has at least 1 host and 0 VMs"),
        ('log_format = "xml"', "log_format must be one of text, json"),
        ('log_level = "loud"', "log_level must be one of debug, info, warn, error, critical"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    """One line that names file and setting."""
    assert wrong(tmp_path, text).startswith(said)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, or no text."""
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
        config.read_file(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'state = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: "):
        config.read_file(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "arguments",
    [["--log-level", "loud"], ["--hosts", "many"], ["--seed", "1.5"], ["--colour"], ["extra"], ["--state"]],
)
def test_wrong_command_line(arguments: list[str]) -> None:
    """An error like any other, not a page of usage."""
    with pytest.raises(ConfigError) as caught:
        config.from_command_line(arguments)
    assert "\n" not in str(caught.value)


def test_help_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """And names every option."""
    with pytest.raises(SystemExit) as caught:
        config.from_command_line(["--help"])
    assert caught.value.code == 0
    shown: Any = capsys.readouterr().out
    only_in_files = {
        "directory", "fragment_budget", "guest_directory", "network_boot", "storage_directory",
        "plugin_directory", "extension_directory", "plugin_seconds",
    }  # fmt: skip
    for field in dataclasses.fields(Config):
        assert (f"--{field.name.replace('_', '-')}" in shown) == (field.name not in only_in_files)
