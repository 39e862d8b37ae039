"""The names by which annotations speak of stored objects; `records.pyi` says what fields they have.

At run time the classes are made by each `xapi.store.rows.Table`; nothing here is ever instantiated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xapi import datamodel


class Tables:
    """What a store has an attribute for: one table a class."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> type:
        if name not in datamodel.load().classes:
            raise AttributeError(name)
        return type(name, (), {})
