"""What administrators copy from deploy/: a systemd unit and a container's recipe."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
UNIT = CHECKOUT / "deploy" / "xapi.service"
RECIPE = (CHECKOUT / "deploy" / "Containerfile").read_text("utf-8")


def test_systemd_takes_the_unit_without_a_word(tmp_path: Path) -> None:
    """Misspelt settings are only warned of."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8")
    unit.write_text(text.replace("/opt/xapi/bin/xapi", "/bin/true"), "utf-8")  # it looks for the program
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


def test_systemd_waits_until_it_serves_and_gives_up_in_the_end() -> None:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE))
    assert settings["Type"] == "notify" and int(settings["WatchdogSec"]) > 0
    # So many starts must fit into the interval, or the limit is never reached.
    assert int(settings["StartLimitBurst"]) * (int(settings["RestartSec"]) + 4) < int(settings["StartLimitIntervalSec"])


def test_systemd_leaves_workers_alone() -> None:
    """They are in the daemon's control group, and have its guests."""
    assert "\nKillMode=process\n" in UNIT.read_text("utf-8")


def test_only_what_the_package_is_built_of_goes_into_an_image() -> None:
    """All is left out but that; docker and podman find the same list at the root of what they are given."""
    lines = (CHECKOUT / ".containerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    build = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    wheel = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "LICENSE", build["project"]["readme"], *wheel["packages"], *wheel["force-include"]}
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == needed
    assert (CHECKOUT / ".dockerignore").readlink() == Path(".containerignore")


def test_a_container_serves_where_it_is_looked_for_and_is_not_root() -> None:
    """The ports that it listens on are those that are told, and above those that need root."""
    (user,) = re.findall(r"^USER (\w+)$", RECIPE, re.MULTILINE)
    assert user != "root" and f"-o {user}" in RECIPE
    (told,) = re.findall(r"^EXPOSE (.*)$", RECIPE, re.MULTILINE)
    listened = re.findall(r'"--(?:listen|tls)", ":(\d+)"', RECIPE)
    assert told.split() == listened and all(int(port) >= 1024 for port in listened)
    assert f"'127.0.0.1', {listened[0]}," in RECIPE.partition("HEALTHCHECK")[2]
