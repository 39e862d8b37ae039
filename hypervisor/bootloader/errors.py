"""What the boot loader raises, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence


class BootError(Exception):
    """Something cannot be read or booted; the text is one line for people."""


class NothingBootable(BootError):
    """Nothing of what was tried can be booted; `tried` says of each thing what it was and why not."""

    def __init__(self, tried: Sequence[str]) -> None:
        self.tried = tuple(tried)
        super().__init__("No bootable device. " + ("; ".join(self.tried) or "The boot order is empty") + ".")


def one_line(text: object, limit: int = 200) -> str:
    """Return what a guest's file or an error says as one printable line of at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
