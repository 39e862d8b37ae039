"""The daemon as a twistd plugin: `twistd --nodaemon xapi [options]`, with the options of the command `xapi`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from xapi import config
from xapi.service import make_service


class Options(usage.Options):
    """Hand the whole command line to `xapi.config`, so that there is one set of options."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the options. Raises usage.UsageError for settings that make no sense."""
        try:
            self["config"] = config.from_command_line(list(options or []))
        except config.ConfigError as error:
            raise usage.UsageError(str(error)) from error


def makeService(options: dict[str, Any]) -> IService:
    """Return the daemon as twistd's service."""
    from twisted.internet import reactor

    return make_service(options["config"], reactor)
