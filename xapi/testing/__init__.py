"""Kronos in your own tests: `running` for any of them, and a fixture `kronos` for pytest's (`xapi.testing.plugin`).

    from xapi.testing import running

    with running() as kronos:
        session = kronos.session()
        assert len(session.xenapi.host.get_all()) == 1

What takes long to import is imported by the first `running`.
"""

from __future__ import annotations

from xapi.testing.running import Kronos, running

__all__ = ["Kronos", "running"]
