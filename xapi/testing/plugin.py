"""pytest's plugin: a fixture `kronos`, a daemon of each test's own. Nothing is loaded until a test asks for it.

``@pytest.mark.kronos(hosts=3, vms=10)`` gives the fixture what `xapi.testing.running` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xapi.testing import Kronos


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", "kronos(**options): how the fixture `kronos` runs; see xapi.testing.running")


@pytest.fixture
def kronos(request: pytest.FixtureRequest) -> Iterator[Kronos]:
    """A running XenAPI daemon with a fresh pool: `url`, `password`, `session()`."""
    from xapi.testing import running

    options: dict[str, object] = {}
    for mark in reversed(list(request.node.iter_markers("kronos"))):  # the nearest goes before
        options |= mark.kwargs
    with running(**options) as made:  # type: ignore[arg-type]
        yield made
