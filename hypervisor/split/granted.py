"""Pages that a front shares with us by grants."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import Grant, GrantError
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.xenbus import FrontendError


def whole_pages(domain: Domain, refs: Iterable[int], what: str) -> list[Grant]:
    """Return writable access to pages of the front's; `end` each. Raises FrontendError, with nothing held."""
    pages: list[Grant] = []
    with ExitStack() as undo:
        for ref in refs:
            try:
                page = domain.grants.access(ref, 0, True)
            except GrantError as error:
                raise FrontendError(f"{what} cannot be mapped: grant status {error.status}") from None
            undo.callback(page.end)
            if page.length != PAGE:
                raise FrontendError(f"{what} is no whole page")
            pages.append(page)
        undo.pop_all()
    return pages
