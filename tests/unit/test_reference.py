"""Facts of the generated API reference."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from xapi import datamodel
from xapi.reference.__main__ import MARKER, main, write
from xapi.reference.blocks import Grid
from xapi.reference.forms import FORMATS, HTML, STYLE, Markdown
from xapi.reference.pages import Writer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model():
    """The schema as shipped."""
    return datamodel.load()


@pytest.fixture(scope="module")
def markdown(model, tmp_path_factory):
    """The text of each Markdown page by its name."""
    return written(model, tmp_path_factory.mktemp("markdown"), "markdown")


@pytest.fixture(scope="module")
def pages(model, tmp_path_factory):
    """The text of each HTML page by its name."""
    return written(model, tmp_path_factory.mktemp("html"), "html")


def written(model, directory, form):
    write(model, directory, FORMATS[form])
    return {path.name: path.read_text("utf-8") for path in directory.iterdir() if path.name != MARKER}


class Reader(HTMLParser):
    """Note anchors and links; fail on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.anchors, self.links, self.loaded = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.loaded += [tag] if "src" in given or tag in ("link", "script", "img") else []
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def dead(pages, anchors, links):
    targets = [(page, *link.partition("#")[::2]) for page, found in links.items() for link in found]
    return [t for t in targets if t[1] not in pages or (t[2] and t[2] not in anchors[t[1]])]


def test_every_html_link_has_a_target(pages):
    """Classes, enums, fields, errors, roles, alerts and releases are linked where they are named."""
    readers = {name: Reader(text) for name, text in pages.items()}
    anchors = {name: reader.anchors for name, reader in readers.items()}
    assert dead(pages, anchors, {name: reader.links for name, reader in readers.items()}) == []
    assert sum(len(reader.links) for reader in readers.values()) > 5000


def test_every_markdown_link_has_a_target(markdown):
    """The same for the other format."""
    anchors = {name: re.findall(r'<a id="([^"]*)">', text) for name, text in markdown.items()}
    links = {name: re.findall(r"\]\(([^)]*)\)", text) for name, text in markdown.items()}
    assert dead(markdown, anchors, links) == []


def test_no_anchor_stands_twice_on_a_page(pages):
    """A link leads to one place."""
    readers = {name: Reader(text) for name, text in pages.items()}
    assert [name for name, reader in readers.items() if len(set(reader.anchors)) < len(reader.anchors)] == []
    assert [name for name, reader in readers.items() if "" in reader.anchors] == []


def test_html_pages_load_nothing(pages):
    """They work from a folder, without a network."""
    assert [name for name, text in pages.items() if Reader(text).loaded] == []
    assert "@import" not in STYLE
    assert "url(" not in STYLE


def test_pages_differ_in_more_than_case(model):
    """They must survive a file system that ignores case."""
    names = [page.name.lower() for page in Writer(model).pages()]
    assert len(set(names)) == len(names) == len(model.classes) + 6


def test_everything_of_a_class_is_on_its_page(model, pages):
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
def test_the_other_pages_are_complete(model, pages, name):
    """Each entry can be linked to."""
    assert set(Reader(pages[f"{name}.html"]).anchors) == set(getattr(model, name))


def test_every_handler_is_listed(model, pages):
    """HTTP handlers go by method and path."""
    assert [h.name for h in model.handlers.values() if f"{h.method} {h.path}" not in pages["http.html"]] == []


def test_a_message_shows_all_that_a_client_needs(markdown):
    """Signature, types, defaults, errors, role, async and life cycle."""
    text = markdown["VBD.md"].partition('### <a id="message-unpause">')[2].partition("\n#### ")[0]
    assert "`VBD.unpause(session, self, token?)`" in text
    assert '| `token` | string | `""` |  |' in text
    assert "Least role: [vm-admin](roles.md#vm-admin)" in text
    assert "Async: yes" in text
    assert "since [symc](releases.md#symc)" in text
    assert "Hidden: not part of the published API" in text


def test_a_field_shows_its_relation_and_column(markdown):
    """The other side is linked; expressions use the database's name."""
    assert "Other side: [VBD.VM](VBD.md#field-VM)." in markdown["VM.md"]
    assert "In query expressions: `name__label`." in markdown["VM.md"]
    assert "Internal: never on the wire." in markdown["VBD.md"]


def test_hidden_implicit_messages_are_marked(markdown):
    """The filters are on the wire, but in no published document."""
    assert "`VM.get_all_where(session, expr)` (hidden)" in markdown["VM.md"]
    assert "`VM.get_all(session)` |" in markdown["VM.md"]


def test_text_is_escaped():
    """No description can break the page it stands on."""
    block = Grid(("a",), [["1 < 2 & `x` | *y*"]])
    assert HTML().block(block).count("1 &lt; 2 &amp; `x` | *y*") == 1
    assert Markdown().block(block).endswith("| 1 \\< 2 \\& \\`x\\` \\| \\*y\\* |")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    """One line says why, and the status is 1."""
    (tmp_path / "index.md").write_text("mine")
    assert main(["--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error == f"xapi.reference: {tmp_path} is not empty and was not written by this program; nothing changed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["index.md"]
    assert (tmp_path / "index.md").read_text() == "mine"


def test_a_second_run_replaces_the_first(tmp_path, capsys):
    """Also in another format; what others put there stays."""
    assert main(["--output", str(tmp_path)]) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--output", str(tmp_path), "--format", "html"]) == 0
    assert list(tmp_path.glob("*.md")) == []
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert capsys.readouterr().out == f"{tmp_path}: 79 pages\n" * 2


def test_a_page_of_somebody_else_is_not_replaced(tmp_path, capsys):
    """Not even inside a folder of ours."""
    assert main(["--output", str(tmp_path)]) == 0
    (tmp_path / "index.html").write_text("mine")
    assert main(["--output", str(tmp_path), "--format", "html"]) == 1
    assert "index.html was not written by this program; nothing changed\n" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"
    assert (tmp_path / "index.md").exists()


def test_a_marker_cannot_name_files_elsewhere(tmp_path):
    """Only plain names inside the folder are ever removed."""
    outside = tmp_path / "precious"
    outside.write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MARKER).write_text("../precious\n")
    assert main(["--output", str(folder)]) == 0
    assert outside.read_text() == "mine"


def test_output_that_is_a_file_is_refused_in_one_line(tmp_path, capsys):
    """The system's own words say why."""
    (tmp_path / "file").write_text("mine")
    assert main(["--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"xapi.reference: cannot write {tmp_path / 'file'}: File exists\n"


def test_the_same_schema_gives_the_same_bytes(model, markdown, tmp_path):
    """No dates, no chance: the pages can be compared between versions."""
    assert written(model, tmp_path, "markdown") == markdown


def test_help_names_options_and_defaults():
    """As a command, too."""
    done = subprocess.run(
        [sys.executable, "-m", "xapi.reference", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--output DIR" in done.stdout
    assert "(default: reference)" in done.stdout
    assert "{markdown,html}" in done.stdout
