"""Whether guests can run on this machine: to be asked before anything is imported that needs Unicorn.

What is built on a CPU cannot be imported where there is none; disks, storage and `hypervisor.api` can be everywhere.
"""

from __future__ import annotations

import platform

VERSION = "2.1.4"
_MACHINES = ("x86_64", "AMD64")


class UnsupportedUnicorn(ImportError):
    """Unicorn is not the build whose insides this program knows; guests cannot run here."""


def check_version() -> None:
    """Raise ImportError unless Unicorn is there and of the one version that is known."""
    import unicorn

    if unicorn.__version__ != VERSION:
        raise UnsupportedUnicorn(f"Unicorn {unicorn.__version__} is installed; this program needs exactly {VERSION}")


def why_no_guests() -> str:
    """Return in one line why guests cannot run on this machine, or an empty text when they can.

    The first time takes as long as loading Unicorn and proving that it is the build known here, some 0.1 s.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        return f"it needs an x86-64 machine, and this is {machine or 'an unknown one'}"
    try:
        check_version()
        import hypervisor.arch.x86_64.cpu.vcpu  # noqa: F401
    except ModuleNotFoundError as error:
        return f"the Python package {error.name} is not installed"
    except (ImportError, OSError) as error:  # OSError: a library that cannot be loaded
        return " ".join(str(error).split())
    return ""
