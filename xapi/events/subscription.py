"""What a listener asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from xapi.datamodel import errors


class Subscription(NamedTuple):
    """Which objects a listener asks for: all, or whole classes and single references by class."""

    everything: bool
    classes: frozenset[str]
    objects: frozenset[tuple[str, str]]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Subscription:
        """Read ``*``, ``vm`` and ``vm/OpaqueRef:…``, whatever the case of the class.

        Raises EVENT_SUBSCRIPTION_PARSE_FAILURE.
        """
        everything, classes, objects = False, set(), set()
        for text in texts:
            name, slash, ref = text.partition("/")
            if text == "*":
                everything = True
            elif not name or "/" in ref or (slash and not ref):
                raise errors.EVENT_SUBSCRIPTION_PARSE_FAILURE(text)
            elif slash:
                objects.add((name.lower(), ref))
            else:
                classes.add(name.lower())
        return cls(everything, frozenset(classes), frozenset(objects))

    def with_(self, other: Subscription) -> Subscription:
        """Return what both ask for together."""
        return Subscription(
            self.everything or other.everything, self.classes | other.classes, self.objects | other.objects
        )

    def without(self, other: Subscription) -> Subscription:
        """Return what is left when the other is given up."""
        if other.everything:
            return NOTHING
        return Subscription(self.everything, self.classes - other.classes, self.objects - other.objects)


NOTHING = Subscription(False, frozenset(), frozenset())
