"""The package as it is installed: what a user's tests find in the wheel, and nothing of the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.daemon import CHECKOUT

SECONDS = 300
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program of an environment that has the wheel, and of ours only what it depends on."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", directory, CHECKOUT], check=True, timeout=SECONDS)
    (wheel,) = directory.glob("*.whl")
    home = directory / "environment"
    venv.create(home, symlinks=True)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)})
    # Packages of a directory named so are found; .pth files in it, such as that of an editable checkout, are not read.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", "--force-reinstall", wheel], check=True, timeout=SECONDS)
    dropped = ("PYTHONPATH", "XAPI_ROOT_PASSWORD", "PYTEST_ADDOPTS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", *dropped))}

    def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [home / "bin" / "python", *arguments], cwd=cwd, env=kept, capture_output=True, text=True, check=False,
            timeout=SECONDS,
        )  # fmt: skip

    return program


def test_the_package_is_the_wheel_s(run: Run, tmp_path: Path) -> None:
    """Schema, guests, plugins' modules and twistd's plugin are in it; the command says its version."""
    done = run("-c", """if True:
        import json
        from pathlib import Path
        import hypervisor.guests, xapi
        from twisted.plugin import getPlugins
        from twisted.application.service import IServiceMaker
        from xapi import datamodel
        from xapi.hosts import plugins
        print(json.dumps([
            xapi.__file__, hypervisor.guests.DEMO_KERNEL.exists(), len(datamodel.load().classes) > 70,
            any(each.tapname == "xapi" for each in getPlugins(IServiceMaker)),
            sorted(path.name for path in Path(plugins._MODULES).glob("*.py")),
        ]))
    """, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    path, *found = json.loads(done.stdout)
    assert "/environment/" in path
    assert found == [True, True, True, ["XenAPIPlugin.py"]]
    assert run("-m", "xapi", "--version", cwd=tmp_path).stdout.startswith("xapi 0.")


def pytest_run(run: Run, directory: Path, text: str, *options: str) -> str:
    """Run a file of tests in the wheel's environment; return what pytest says when they pass."""
    (directory / "test_it.py").write_text(textwrap.dedent(text), "utf-8")
    done = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fixture_gives_each_test_a_pool_of_its_own(run: Run, tmp_path: Path) -> None:
    """With no conftest, with a mark for what it is to be like, guests included, and warnings being errors."""
    said = pytest_run(run, tmp_path, """
        import pytest

        def test_a_guest_starts(kronos):
            api = kronos.session().xenapi
            vm = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "mine")
            api.VM.provision(vm)
            api.VM.start(vm, False, False)
            assert api.VM.get_power_state(vm) == "Running"

        def test_nothing_is_left_of_another_test(kronos):
            assert kronos.session().xenapi.VM.get_by_name_label("mine") == []

        @pytest.mark.kronos(hosts=2, vms=5, password="secret")
        def test_a_mark_says_what_it_is_like(kronos):
            api = kronos.session(password=kronos.password).xenapi
            assert (len(api.host.get_all()), kronos.password) == (2, "secret")

        def test_a_failure_has_its_code(kronos):
            with pytest.raises(kronos.Failure) as caught:
                kronos.session(password="wrong")
            assert caught.value.details[0] == "SESSION_AUTHENTICATION_FAILED"
    """, "--strict-markers")  # fmt: skip
    assert "4 passed" in said


def test_workers_of_xdist_do_not_meet(run: Run, tmp_path: Path) -> None:
    """Each has a reactor of its own, and each test a port."""
    said = pytest_run(run, tmp_path, """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_alone(kronos, number):
            api = kronos.session().xenapi
            api.pool.set_name_label(api.pool.get_all()[0], str(number))
            assert [each["name_label"] for each in api.pool.get_all_records().values()] == [str(number)]
    """, "-n", "2")  # fmt: skip
    assert "6 passed" in said


def test_who_does_not_use_the_fixture_loads_nothing(run: Run, tmp_path: Path) -> None:
    """The plugin is there, and what it stands for is not imported."""
    said = pytest_run(run, tmp_path, """
        import sys

        def test_light(request):
            assert request.config.pluginmanager.has_plugin("kronos")
            ours = {"xapi.process.service", "xapi.testing.serving"}
            heavy = ours | {"twisted", "sqlalchemy", "unicorn", "lxml", "XenAPI"}
            assert not heavy & set(sys.modules)
    """)  # fmt: skip
    assert "1 passed" in said
