"""Pages as Markdown and as HTML."""

from __future__ import annotations

import html
import re

from xapi.reference.blocks import Anchor, Block, Bullets, Cell, Code, Heading, Link, Page, Paragraph, Part, parts

_MARKS = re.compile(r"[\\`*_\[\]<>|&]")


class Markdown:
    suffix = ".md"

    def text(self, text: str) -> str:
        return _MARKS.sub(lambda match: "\\" + match.group(), text)

    def part(self, part: Part) -> str:
        if isinstance(part, Code):
            return f"`{part.text}`".replace("|", "\\|") if part.text else ""
        if isinstance(part, Link):
            anchor = f"#{part.anchor}" if part.anchor else ""
            return f"[{self.text(part.text)}]({part.page}{self.suffix}{anchor})"
        if isinstance(part, Anchor):
            return f'<a id="{part.name}"></a>{self.text(part.text)}'
        return self.text(part)

    def inline(self, content: Cell) -> str:
        return "".join(self.part(part) for part in parts(content)).strip()

    def block(self, block: Block) -> str:
        if isinstance(block, Heading):
            anchor = f'<a id="{block.anchor}"></a>' if block.anchor else ""
            return f"{'#' * block.level} {anchor}{self.text(block.text)}"
        if isinstance(block, Paragraph):
            return self.inline(block.content)
        if isinstance(block, Bullets):
            return "\n".join(f"- {self.inline(item)}" for item in block.items)
        rows = [list(block.head), ["---"] * len(block.head)]
        rows += [[self.inline(cell) for cell in row] for row in block.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else f"[Index](index{self.suffix})\n\n"
        blocks = [self.block(block) for block in [Heading(1, page.title), *page.blocks]]
        return top + "\n\n".join(blocks) + "\n"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}div{overflow-x:auto}
th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}th{background:#f3f3f3}
code{font:.9em monospace;background:#f3f3f3;padding:0 .2em}a{color:#05c}:target{background:#ffd}
h4{margin-bottom:.2em;border-top:1px solid #ddd;padding-top:.6em}"""


class HTML:
    suffix = ".html"

    def part(self, part: Part) -> str:
        if isinstance(part, Code):
            return f"<code>{html.escape(part.text)}</code>" if part.text else ""
        if isinstance(part, Link):
            target = html.escape(f"{part.page}{self.suffix}{'#' * bool(part.anchor)}{part.anchor}")
            return f'<a href="{target}">{html.escape(part.text)}</a>'
        if isinstance(part, Anchor):
            return f'<span id="{html.escape(part.name)}">{html.escape(part.text)}</span>'
        return html.escape(part)

    def inline(self, content: Cell) -> str:
        return "".join(self.part(part) for part in parts(content)).strip()

    def block(self, block: Block) -> str:
        if isinstance(block, Heading):
            anchor = f' id="{html.escape(block.anchor)}"' if block.anchor else ""
            return f"<h{block.level}{anchor}>{html.escape(block.text)}</h{block.level}>"
        if isinstance(block, Paragraph):
            return f"<p>{self.inline(block.content)}</p>"
        if isinstance(block, Bullets):
            items = "\n".join(f"<li>{self.inline(item)}</li>" for item in block.items)
            return f"<ul>\n{items}\n</ul>"
        head = "".join(f"<th>{html.escape(title)}</th>" for title in block.head)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{self.inline(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
        )
        return f"<div><table>\n<tr>{head}</tr>\n{rows}\n</table></div>"

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else '<p><a href="index.html">Index</a></p>\n'
        body = "\n".join(self.block(block) for block in [Heading(1, page.title), *page.blocks])
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(page.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
            f"<body>\n{top}{body}\n</body>\n</html>\n"
        )


FORMATS: dict[str, Markdown | HTML] = {"markdown": Markdown(), "html": HTML()}
