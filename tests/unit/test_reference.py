"""Facts of the generated API reference."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xmlrpc.client
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.journal import Journal
from xapi import datamodel
from xapi.calls.dispatch import prepare
from xapi.datamodel import Model
from xapi.http.registry import unserved
from xapi.process.daemon import make_store
from xapi.reference.__main__ import MARKER, main, write
from xapi.reference.blocks import Grid
from xapi.reference.examples import Examples
from xapi.reference.forms import FIND, FORMATS, HTML, STYLE, Markdown
from xapi.reference.pages import Writer
from xapi.tools import coverage
from xapi.wire.xmlrpc import parse_call

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model() -> Model:
    """The schema as shipped."""
    return datamodel.load()


@pytest.fixture(scope="module")
def markdown(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each Markdown page by its name."""
    return written(model, tmp_path_factory.mktemp("markdown"), "markdown")


@pytest.fixture(scope="module")
def pages(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each HTML page by its name."""
    return written(model, tmp_path_factory.mktemp("html"), "html")


def written(model: Model, directory: Path, form: str) -> dict[str, str]:
    write(model, directory, FORMATS[form])
    return {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.name != MARKER}


class Reader(HTMLParser):
    """Note anchors and links; fail on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.loaded += [tag] if "src" in given or tag in ("link", "img") else []
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def dead(
    pages: Mapping[str, str], anchors: Mapping[str, Sequence[str]], links: Mapping[str, Sequence[str]]
) -> list[tuple[str, str, str]]:
    targets = [(page, *link.partition("#")[::2]) for page, found in links.items() for link in found]
    return [t for t in targets if t[1] not in pages or (t[2] and t[2] not in anchors[t[1]])]


def test_every_html_link_has_a_target(pages: dict[str, str]) -> None:
    """Classes, enums, fields, errors, roles, alerts and releases are linked where they are named."""
    readers = {name: Reader(text) for name, text in pages.items()}
    anchors = {name: reader.anchors for name, reader in readers.items()}
    assert dead(pages, anchors, {name: reader.links for name, reader in readers.items()}) == []
    assert sum(len(reader.links) for reader in readers.values()) > 5000


def test_every_markdown_link_has_a_target(markdown: dict[str, str]) -> None:
    """The same for the other format."""
    anchors = {name: re.findall(r'<a id="([^"]*)">', text) for name, text in markdown.items()}
    links = {name: re.findall(r"\]\(([^)]*)\)", text) for name, text in markdown.items()}
    assert dead(markdown, anchors, links) == []


def test_no_anchor_stands_twice_on_a_page(pages: dict[str, str]) -> None:
    """A link leads to one place."""
    readers = {name: Reader(text) for name, text in pages.items()}
    assert [name for name, reader in readers.items() if len(set(reader.anchors)) < len(reader.anchors)] == []
    assert [name for name, reader in readers.items() if "" in reader.anchors] == []


def test_html_pages_load_nothing(pages: dict[str, str]) -> None:
    """They work from a folder, without a network."""
    assert [name for name, text in pages.items() if Reader(text).loaded] == []
    assert "@import" not in STYLE
    assert "url(" not in STYLE


def test_pages_differ_in_more_than_case(model: Model) -> None:
    """They must survive a file system that ignores case."""
    names = [page.name.lower() for page in Writer(model).pages()]
    assert len(set(names)) == len(names) == len(model.classes) + 6


def test_everything_of_a_class_is_on_its_page(model: Model, pages: dict[str, str]) -> None:
    """Fields, enums and explicit messages have anchors, implicit ones a line."""
    wanted = {
        f"{cls.name}.html": {
            *(f"field-{name}" for name in cls.fields),
            *(f"enum-{name}" for name in cls.enums),
            *(f"message-{message.name}" for message in cls.explicit),
        }
        for cls in model.classes.values()
    }
    assert [page for page, names in wanted.items() if names - set(Reader(pages[page]).anchors)] == []
    assert [m.full_name for m in model.messages if f"{m.full_name}(" not in pages[f"{m.class_name}.html"]] == []


@pytest.mark.parametrize("name", ["errors", "roles", "alerts"])
def test_the_other_pages_are_complete(model: Model, pages: dict[str, str], name: str) -> None:
    """Each entry can be linked to."""
    assert set(Reader(pages[f"{name}.html"]).anchors) - {"find"} == set(getattr(model, name))


def test_handlers_that_nobody_serves_are_marked(model: Model, pages: dict[str, str]) -> None:
    """As many as answer 501, which the intro's words do not count for."""
    assert pages["http.html"].count(">not implemented<") == len(unserved(model)) > 0


def test_every_handler_is_listed(model: Model, pages: dict[str, str]) -> None:
    """HTTP handlers go by method and path."""
    assert [h.name for h in model.handlers.values() if f"{h.method} {h.path}" not in pages["http.html"]] == []


def test_a_message_shows_all_that_a_client_needs(markdown: dict[str, str]) -> None:
    """Signature, types, defaults, errors, role, async and life cycle."""
    text = message_text(markdown, "VBD", "unpause")
    assert "`VBD.unpause(session, self, token?)`" in text
    assert '| `token` | string | `""` |  |' in text
    assert "Least role: [vm-admin](roles.md#vm-admin)" in text
    assert "Async: yes" in text
    assert "since [symc](releases.md#symc)" in text
    assert "Hidden: not part of the published API" in text


def test_a_field_shows_its_relation_and_column(markdown: dict[str, str]) -> None:
    """The other side is linked; expressions use the database's name."""
    assert "Other side: [VBD.VM](VBD.md#field-VM)." in markdown["VM.md"]
    assert "In query expressions: `name__label`." in markdown["VM.md"]
    assert "Internal: never on the wire." in markdown["VBD.md"]


def test_hidden_implicit_messages_are_marked(markdown: dict[str, str]) -> None:
    """The filters are on the wire, but in no published document."""
    assert "`VM.get_all_where(session, expr)` (hidden)" in markdown["VM.md"]
    assert "`VM.get_all(session)` |" in markdown["VM.md"]


def message_text(markdown: dict[str, str], class_name: str, name: str) -> str:
    """Return what a page says of an explicit message."""
    return markdown[f"{class_name}.md"].partition(f'### <a id="message-{name}">')[2].partition("\n#### ")[0]


def test_what_is_not_implemented_is_marked_where_it_stands_and_counted(model: Model, markdown: dict[str, str]) -> None:
    """And nothing else is: the pages and the coverage list agree."""
    missing = {message.full_name for messages in coverage.missing(model).values() for message in messages}
    marked = {
        message.full_name
        for cls in model.classes.values()
        for message in cls.explicit
        if "**not implemented**" in message_text(markdown, cls.name, message.name)
    }
    assert marked == missing
    assert sum(page.count("**not implemented**") for page in markdown.values()) >= len(missing) > 0
    alive = sum(message.life.state != "Removed" for message in model.messages)
    assert f"{alive - len(missing):,} of {alive:,} messages have behaviour." in markdown["index.md"]


def test_messages_come_first_then_fields(markdown: dict[str, str]) -> None:
    """What people look for."""
    titles = [line.partition("</a>")[2] for line in markdown["VM.md"].splitlines() if line.startswith("## <a")]
    assert titles == ["Messages", "Implicit messages", "Fields", "Enums", "Operations"]


def test_contents_name_everything_on_the_page(model: Model, pages: dict[str, str]) -> None:
    """Each message, field and enum is linked before the first of them."""
    for cls in model.classes.values():
        contents = pages[f"{cls.name}.html"].partition("<h2>Contents</h2>")[2].partition("</ul>")[0]
        linked = set(re.findall(r'#(?:message|field|enum)-([^"]+)"', contents))
        assert linked == {*cls.messages, *cls.fields, *cls.enums}


class Recorded:
    """Stands for a session: notes which message is called with what."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __getattr__(self, part: str) -> Recorded:
        return Recorded(f"{self.name}.{part}" if self.name else part)

    def __call__(self, *arguments: object) -> tuple[str, tuple[object, ...]]:
        return self.name, arguments


class Variables(dict[str, Any]):
    """Every name is a reference."""

    def __missing__(self, name: str) -> str:
        return "OpaqueRef:1"


def test_every_example_calls_its_message_with_values_that_it_takes(model: Model) -> None:
    """Python's and JSON's examples decode to the same arguments, over XML-RPC as it is written on the wire."""
    examples, store = Examples(model), make_store(model, Journal(), lambda tell: None)
    methods = prepare(model, store, {})
    for message in model.messages:
        example, method = examples.of(message), methods[message.full_name]
        names = Variables(session=Recorded(), DateTime=xmlrpc.client.DateTime)
        called, arguments = eval(example.python, {}, names)
        _, params = parse_call(xmlrpc.client.dumps(arguments, message.full_name).encode())
        call = json.loads(example.json)
        taken = method.decode_arguments(call["params"], int(message.session))
        assert called.removeprefix("xenapi.") in (
            message.full_name,
            f"{message.class_name}_{message.name}",
            message.name,
        )
        assert call["method"] == message.full_name
        assert len(params) == len(message.parameters) == len(call["params"]) - message.session
        assert str(method.decode_arguments(params, 0)) == re.sub(r"OpaqueRef:\.\.\.", "OpaqueRef:1", str(taken))


def found(text: str) -> list[str]:
    """Return what the page's search finds, run by Node.js."""
    entries = [["VM.start", "a"], ["VM.start_on", "b"], ["Restart", "c"], ["start", "d"], ["host", "e"]]
    script = f"{FIND}\nconsole.log(JSON.stringify(find({json.dumps(entries)}, {json.dumps(text)})))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    return [name for name, _ in json.loads(done.stdout)]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_search_box_finds_by_beginning_then_by_member_then_by_part() -> None:
    """Case does not count; nothing is found of nothing."""
    assert found("START") == ["start", "VM.start", "VM.start_on", "Restart"]
    assert found("vm.") == ["VM.start", "VM.start_on"]
    assert found(" ") == []


def test_the_search_knows_everything_with_an_anchor(model: Model, pages: dict[str, str]) -> None:
    """Its links lead somewhere; the other pages send what is typed to it."""
    data = re.search(r"const FINDABLE = (.*);", pages["index.html"])
    assert data is not None
    links = {"index.html": [href for _, href in json.loads(data[1])]}
    anchors = {name: Reader(text).anchors for name, text in pages.items()}
    assert dead(pages, anchors, links) == []
    assert len(links["index.html"]) > len(list(model.messages)) + len(model.errors)
    assert all('<form action="index.html">' in text for text in pages.values())


def test_text_is_escaped() -> None:
    """No description can break the page it stands on."""
    block = Grid(("a",), [["1 < 2 & `x` | *y*"]])
    assert HTML().block(block).count("1 &lt; 2 &amp; `x` | *y*") == 1
    assert Markdown().block(block).endswith("| 1 \\< 2 \\& \\`x\\` \\| \\*y\\* |")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says why, and the status is 1."""
    (tmp_path / "index.md").write_text("mine")
    assert main(["--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"xapi.reference: {tmp_path} is not empty and was not written by this program; nothing changed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["index.md"]
    assert (tmp_path / "index.md").read_text() == "mine"


def test_a_second_run_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also in another format; what others put there stays."""
    assert main(["--output", str(tmp_path)]) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--output", str(tmp_path), "--format", "html"]) == 0
    assert list(tmp_path.glob("*.md")) == []
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert capsys.readouterr().out == f"{tmp_path}: 79 pages\n" * 2


def test_a_page_of_somebody_else_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even inside a folder of ours."""
    assert main(["--output", str(tmp_path)]) == 0
    (tmp_path / "index.html").write_text("mine")
    assert main(["--output", str(tmp_path), "--format", "html"]) == 1
    assert "index.html was not written by this program; nothing changed\n" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"
    assert (tmp_path / "index.md").exists()


def test_a_marker_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    """Only plain names inside the folder are ever removed."""
    outside = tmp_path / "precious"
    outside.write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MARKER).write_text("../precious\n")
    assert main(["--output", str(folder)]) == 0
    assert outside.read_text() == "mine"


def test_output_that_is_a_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system's own words say why."""
    (tmp_path / "file").write_text("mine")
    assert main(["--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"xapi.reference: cannot write {tmp_path / 'file'}: File exists\n"


def test_the_same_schema_gives_the_same_bytes(model: Model, markdown: dict[str, str], tmp_path: Path) -> None:
    """No dates, no chance: the pages can be compared between versions."""
    assert written(model, tmp_path, "markdown") == markdown


def test_help_names_options_and_defaults() -> None:
    """As a command, too."""
    done = subprocess.run(
        [sys.executable, "-m", "xapi.reference", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--output DIR" in done.stdout
    assert "(default: reference)" in done.stdout
    assert "{markdown,html}" in done.stdout
