"""The command `xapi`: run the daemon until it is told to stop.

The command line is read before anything is imported that takes long.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from xapi.process import config as configuration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; return 0 after a clean end, 1 when it could not start."""
    try:
        config = configuration.from_command_line(arguments)
        from xapi.process.program import run

        return run(config)
    except configuration.ConfigError as error:
        print(f"xapi: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before there is a reactor that heeds it
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
