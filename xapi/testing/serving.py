"""The daemon's service on a reactor that others use too."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from xapi.process.config import Config
from xapi.process.readiness import told
from xapi.process.service import XapiService, make_service
from xapi.testing.reactor_thread import wait_for


def start(reactor: Any, config: Config) -> tuple[XapiService, dict[str, Any]]:
    """Start a daemon, and return it and its addresses when it serves. From any other thread than the reactor's."""

    def start() -> Deferred[tuple[XapiService, list[str]]]:
        service = make_service(config, reactor, _nobody, alone=False)
        service.startService()

        def failed(failure: Failure) -> Deferred[Any]:
            return service.stopService().addBoth(lambda _: failure)

        return service.ready.addCallbacks(lambda addresses: (service, addresses), failed)

    service, addresses = wait_for(reactor, lambda: maybeDeferred(start))
    return service, told(addresses, config.socket)


def stop(reactor: Any, service: XapiService) -> None:
    """End a daemon and wait until nothing of it is left."""
    wait_for(reactor, service.stopService)


def _nobody(text: str) -> None:
    """Say nothing: the password was given."""
