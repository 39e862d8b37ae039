"""Write the API reference from the schema: ``python -m xapi.reference [--output DIR] [--format html]``.

The pages are built once as blocks (headings, paragraphs, lists, tables) and printed as Markdown or as
HTML. Pages of a class are named for it; links between pages are relative, so the folder may lie
anywhere. A marker file lists what was written: only those files are ever replaced or removed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xapi import datamodel
from xapi.datamodel import Model, SchemaError
from xapi.reference.blocks import counted
from xapi.reference.forms import FORMATS, HTML, Markdown
from xapi.reference.pages import Writer

MARKER = ".kronos-reference"
"""The file that marks a folder as ours; its lines are the names of the pages."""


class OutputError(Exception):
    """The reference cannot be written where it was asked for; the text says why."""


def write(model: Model, directory: Path, form: Markdown | HTML) -> int:
    """Write all pages and return their number; pages of an earlier run that are no more are removed.

    Raises OutputError when the folder holds things that this program did not write.
    """
    pages = {page.name + form.suffix: form.page(page) for page in Writer(model).pages()}
    marker = directory / MARKER
    try:
        directory.mkdir(parents=True, exist_ok=True)
        earlier = marker.read_text("utf-8").splitlines() if marker.is_file() else []
        if not marker.is_file() and any(directory.iterdir()):
            raise OutputError(f"{directory} is not empty and was not written by this program; nothing changed")
        for name in pages.keys() - set(earlier):
            if (directory / name).exists():
                raise OutputError(f"{directory / name} was not written by this program; nothing changed")
        # The marker comes first: a run that was cut short can be repeated.
        marker.write_text("".join(f"{name}\n" for name in sorted({*earlier, *pages})), "utf-8")
        for name in earlier:
            if name not in pages and Path(name).name == name:
                (directory / name).unlink(missing_ok=True)
        for name, text in pages.items():
            (directory / name).write_text(text, "utf-8")
        marker.write_text("".join(f"{name}\n" for name in sorted(pages)), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    return len(pages)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m xapi.reference",
        description="Write the XenAPI reference, made from the schema: an index, a page for each class, and "
        "pages for errors, roles, alerts, releases and HTTP handlers.",
        epilog="A folder that this program wrote before is brought up to date; any other folder must be "
        "empty or absent. The exit status is 1 when nothing could be written.",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("reference"), help="where to (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="markdown", help="what to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        number = write(datamodel.load(), options.output, FORMATS[options.format])
    except (OutputError, SchemaError) as error:
        print(f"xapi.reference: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {counted(number, 'page')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
