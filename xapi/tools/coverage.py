"""List the messages and HTTP handlers that have no behaviour yet: `python -m xapi.tools.coverage`.

A message counts as covered when a function is registered for it or when it is implicit; the rest answer
NOT_IMPLEMENTED with their name, and removed ones MESSAGE_REMOVED.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from xapi.calls import registry
from xapi.datamodel import Message, Model, load
from xapi.http.registry import unserved


def missing(model: Model) -> dict[str, list[Message]]:
    """Return the messages without behaviour, by class; classes that lack none are left out."""
    functions = registry.functions(model)
    found = {
        cls.name: [message for message in cls.explicit if _lacks(message, functions)] for cls in model.classes.values()
    }
    return {name: messages for name, messages in found.items() if messages}


def _lacks(message: Message, functions: Mapping[str, object]) -> bool:
    return message.full_name not in functions and message.life.state != "Removed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list, or only the totals."""
    parser = argparse.ArgumentParser(
        prog="python -m xapi.tools.coverage", description="List messages without behaviour."
    )
    parser.add_argument("--summary", action="store_true", help="print totals only, one line a class")
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="only these classes")
    options = parser.parse_args(arguments)
    model = load()
    unknown = [name for name in options.classes if name not in model.classes]
    if unknown:
        parser.error(f"there is no class {unknown[0]}")
    lacking = missing(model)
    shown = [name for name in lacking if not options.classes or name in options.classes]
    for name in shown:
        explicit = [message for message in model.classes[name].explicit if message.life.state != "Removed"]
        print(f"{name}: {len(explicit) - len(lacking[name])} of {len(explicit)} explicit messages")
        if not options.summary:
            for message in lacking[name]:
                print(f"  {message.full_name}")
    total = sum(message.life.state != "Removed" for message in model.messages)
    absent = sum(map(len, lacking.values()))
    print(f"{total - absent} of {total} messages have behaviour, {absent} answer NOT_IMPLEMENTED")
    lacking_handlers = unserved(model)
    if not options.summary and not options.classes:
        for handler in lacking_handlers:
            print(f"  {handler.method} {handler.path}: {handler.name}")
    served = len(model.handlers) - len(lacking_handlers)
    print(f"{served} of {len(model.handlers)} HTTP handlers are served, the others answer 501")
    return 0


if __name__ == "__main__":
    sys.exit(main())
