"""Pages as Markdown and as HTML."""

from __future__ import annotations

import html
import json
import re

from xapi.reference.blocks import (
    Anchor,
    Block,
    Break,
    Bullets,
    Cell,
    Code,
    Heading,
    Link,
    Listing,
    Mark,
    Page,
    Paragraph,
    Part,
    parts,
)

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
        if isinstance(part, Mark):
            return f"**{self.text(part.text)}**"
        return "<br>" if isinstance(part, Break) else self.text(part)

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
        if isinstance(block, Listing):
            return f"```{block.language}\n{block.text}\n```"
        rows = [list(block.head), ["---"] * len(block.head)]
        rows += [[self.inline(cell) for cell in row] for row in block.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else f"[Index](index{self.suffix})\n\n"
        blocks = [self.block(block) for block in [Heading(1, page.title), *page.blocks]]
        return top + "\n\n".join(blocks) + "\n"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em;max-width:100%}
th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#f3f3f3;overflow-wrap:normal}code{font:.9em monospace;background:#f3f3f3;padding:0 .2em}
pre{font:.85em/1.4 monospace;background:#f3f3f3;padding:.4em .6em;margin:.4em 0;white-space:pre-wrap;
overflow-wrap:anywhere}a{color:#05c}:target{background:#ffd}strong{color:#a30;font-weight:600}
h4{margin-bottom:.2em;border-top:1px solid #ddd;padding-top:.6em}input{font:inherit;width:20em;max-width:60%}"""

# Names that begin with what is typed come first, then those whose last part does, then all that have it in them.
FIND = """function find(all, text) {
  const word = text.trim().toLowerCase();
  if (!word) return [];
  const rank = name => name.startsWith(word) ? 0 : name.includes('.' + word) ? 1 : name.includes(word) ? 2 : 3;
  return all.map(entry => [rank(entry[0].toLowerCase()), entry]).filter(pair => pair[0] < 3)
    .sort((a, b) => a[0] - b[0] || a[1][0].length - b[1][0].length).slice(0, 40).map(pair => pair[1]);
}"""
_SHOW = """const box = document.getElementById('find'), list = document.getElementById('found');
function show() {
  list.replaceChildren(...find(FINDABLE, box.value).map(([name, href]) => {
    const item = document.createElement('li'), link = document.createElement('a');
    link.href = href; link.textContent = name; item.append(link); return item;
  }));
}
box.value = new URLSearchParams(location.search).get('find') || '';
box.addEventListener('input', show);
show();"""


class HTML:
    suffix = ".html"

    def target(self, link: Link) -> str:
        return f"{link.page}{self.suffix}{'#' * bool(link.anchor)}{link.anchor}"

    def part(self, part: Part) -> str:
        if isinstance(part, Code):
            return f"<code>{html.escape(part.text)}</code>" if part.text else ""
        if isinstance(part, Link):
            return f'<a href="{html.escape(self.target(part))}">{html.escape(part.text)}</a>'
        if isinstance(part, Anchor):
            return f'<span id="{html.escape(part.name)}">{html.escape(part.text)}</span>'
        if isinstance(part, Mark):
            return f"<strong>{html.escape(part.text)}</strong>"
        return "<br>" if isinstance(part, Break) else html.escape(part)

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
        if isinstance(block, Listing):
            return f"<pre>{html.escape(block.text)}</pre>"
        head = "".join(f"<th>{html.escape(title)}</th>" for title in block.head)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{self.inline(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
        )
        return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"

    def search(self, page: Page) -> str:
        """Return the search box: one that finds, on a page that knows what there is, or one that leads there."""
        form = (
            f'<form action="index{self.suffix}"><input id="find" name="find" type="search" autocomplete="off" '
            'placeholder="Find a message, field or error" aria-label="Find"></form>\n'
        )
        if not page.findable:
            return form
        entries = [
            [link.text, f"{link.page}{self.suffix}{'#' * bool(link.anchor)}{link.anchor}"] for link in page.findable
        ]
        data = json.dumps(entries, separators=(",", ":")).replace("<", "\\u003c")
        return f'{form}<ul id="found"></ul>\n<script>\nconst FINDABLE = {data};\n{FIND}\n{_SHOW}\n</script>\n'

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else '<p><a href="index.html">Index</a></p>\n'
        body = "\n".join(self.block(block) for block in [Heading(1, page.title), *page.blocks])
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(page.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
            f"<body>\n{top}{self.search(page)}{body}\n</body>\n</html>\n"
        )


FORMATS: dict[str, Markdown | HTML] = {"markdown": Markdown(), "html": HTML()}
