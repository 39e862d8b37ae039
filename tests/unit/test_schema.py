"""Facts of the schema: it is sound, its mistakes are found, and it is the API that clients know."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from xapi import datamodel
from xapi.datamodel import Class, Field, Message, Model, SchemaError

ROOT = Path(__file__).parent.parent.parent
FACTS = ROOT.parent / "shared" / "xenapi"


@pytest.fixture(scope="module")
def model() -> Model:
    """The schema as shipped."""
    return datamodel.load()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the schema to break."""
    return Path(shutil.copytree(ROOT / "schema", tmp_path / "schema"))


@pytest.fixture(scope="module")
def facts() -> Any:
    """The published facts of the API, which a checkout need not have beside it."""
    path = FACTS / "datamodel.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return json.loads(path.read_text("utf-8"))


def complaint(directory: Path) -> str:
    with pytest.raises(SchemaError) as caught:
        datamodel.load(directory)
    return str(caught.value)


# Mistakes.

MISTAKES = [
    ("classes/VBD.xml", '"VDI ref"', '"VDO ref"', "unknown type 'VDO ref'"),
    ("classes/VBD.xml", '"enum vbd_mode"', '"enum vbd_mood"', "unknown type 'enum vbd_mood'"),
    ("classes/VBD.xml", '"(string -> string) map"', '"(string string) map"', "map without an arrow"),
    ("classes/VBD.xml", '<param name="vdi" type="VDI ref"', '<param name="vdi" type="disk"', "unknown type 'disk'"),
    ("classes/VBD.xml", '<result type="string"/>', '<result type="text"/>', "unknown type 'text'"),
    ("classes/VBD.xml", '"VM.VBDs"', '"VM.VIFs"', "inverse VM.VIFs of VBD.VM does not name it back"),
    ("classes/VBD.xml", '"VM.VBDs"', '"VM.nothing"', "inverse VM.nothing of VBD.VM does not name it back"),
    ("classes/VBD.xml", '"VBD_NOT_EMPTY"', '"VBD_FULL"', "error VBD_FULL is not declared in errors.xml"),
    ("classes/VBD.xml", 'constructor="vm-admin"', 'constructor="king"', "role king is not declared in roles.xml"),
    ("classes/VBD.xml", 'access="RW" role="vm-admin"', 'access="RW" role="king"', "role king is not declared"),
    ("classes/VBD.xml", '<message name="plug" role="vm-admin"', '<message name="plug" role="king"', "role king"),
    ("classes/host.xml", '<key name="folder" role="vm-operator"', '<key name="folder" role="king"', "role king"),
    ("classes/VBD.xml", 'since="miami"', 'since="atlantis"', "release atlantis is not declared in releases.xml"),
    ("classes/VBD.xml", 'deprecated="ely"', 'deprecated="atlantis"', "release atlantis is not declared"),
    ("classes/VBD.xml", 'name="vbd_type"', 'name="vbd_mode"', "enum vbd_mode is declared twice"),
    ("classes/VDI.xml", 'name="vdi_type"', 'name="vbd_type"', "enum vbd_type is declared twice"),
    ("classes/VBD.xml", 'default="true"', 'default="maybe"', "default 'maybe'"),
    ("classes/VBD.xml", 'default="[]"', 'default="[1]"', "default '[1]'"),
    ("classes/VBD.xml", 'default="{}"', 'default="{"', "default '{'"),
    ("classes/VBD.xml", '<class name="VBD"', '<class name="VBE"', "class VBE in a file of another name"),
    ("classes/VBD.xml", 'claims="VBD.plug"', 'claims="VBD.ply"', "claims VBD.ply"),
    ("classes/VBD.xml", 'claims="VBD.plug"', 'claims="SM.plug"', "claims SM.plug"),
    ("classes/VBD.xml", "owns the drive.</field>", "owns the drive</field>", "Error validating datatype string"),
    ("classes/VBD.xml", "<result type=", "<results type=", "Did not expect element results there"),
    ("classes/VBD.xml", 'column="', 'colum="', "Invalid attribute colum for element field"),
    ("http.xml", 'path="/export_metadata"', 'path="/export"', "GET /export has two handlers"),
    ("http.xml", 'name="uuid"', 'name="ref"', "param ref is declared twice"),
    ("http.xml", 'type="string set"', 'type="strings"', "strings"),
    ("alerts.xml", 'priority="5"', 'priority="high"', "doesn't allow value 'high'"),
]

ATTRIBUTE_MISTAKES = [
    ("classes/VBD.xml", 'access="RO/constructor"', 'access="RO"', "Invalid attribute access for element field"),
    ("errors.xml", 'name="HANDLE_INVALID"', 'title="HANDLE_INVALID"', "Invalid attribute title for element error"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "text"), MISTAKES)
def test_a_mistake_is_reported_with_file_and_line(copy: Path, name: str, right: str, wrong: str, text: str) -> None:
    """The first place is broken, and that place is named."""
    check_mistake(copy, name, right, wrong, text)


@pytest.mark.parametrize(("name", "right", "wrong", "text"), ATTRIBUTE_MISTAKES)
def test_a_wrong_attribute_is_reported_with_file_and_line(
    copy: Path, name: str, right: str, wrong: str, text: str
) -> None:
    """The grammar names the attribute only in its second complaint."""
    check_mistake(copy, name, right, wrong, text)


def check_mistake(copy: Path, name: str, right: str, wrong: str, text: str) -> None:
    path = copy / name
    before, found, after = path.read_text("utf-8").partition(right)
    assert found
    path.write_text(before + wrong + after, "utf-8")
    line = before.count("\n") + 1
    assert re.match(re.escape(f"{path}:{line}: "), complaint(copy))
    assert text in complaint(copy)


def test_a_field_that_stands_twice_is_reported_at_the_second(copy: Path) -> None:
    """The second one would silently win."""
    path = copy / "classes" / "VBD.xml"
    text = path.read_text("utf-8")
    field = re.search(r' *<field name="VDI".*\n', text)
    assert field is not None
    line = field.group()
    path.write_text(text.replace(line, line * 2), "utf-8")
    line_of_second = text.count("\n", 0, text.index(line)) + 2
    assert complaint(copy) == f"{path}:{line_of_second}: field VDI is declared twice"


def test_a_relation_of_two_references_is_refused(copy: Path) -> None:
    """One side must be a set: nothing would keep two references in step."""
    path = copy / "classes" / "VM.xml"
    text = path.read_text("utf-8")
    path.write_text(re.sub(r'(<field name="VBDs" type="VBD ref) set"', r'\1"', text), "utf-8")
    assert "VBD.VM and VM.VBDs are both single" in complaint(copy)


def test_a_class_in_a_file_of_another_name_is_refused(copy: Path) -> None:
    """The file is where people look."""
    (copy / "classes" / "VBD.xml").rename(copy / "classes" / "Drive.xml")
    assert complaint(copy) == f"{copy}/classes/Drive.xml:2: class VBD in a file of another name"


def test_broken_xml_is_reported_with_file_and_line(copy: Path) -> None:
    """As far as the parser came."""
    path = copy / "classes" / "VBD.xml"
    text = path.read_text("utf-8")
    path.write_text(text.replace("</class>", ""), "utf-8")
    match = re.match(re.escape(f"{path}:") + r"(\d+): ", complaint(copy))
    assert match is not None and int(match.group(1)) >= text.count("\n") - 1


@pytest.mark.parametrize("name", ["errors.xml", "alerts.xml", "roles.xml", "releases.xml", "http.xml", "model.rng"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    """There is no line to name."""
    (copy / name).unlink()
    assert complaint(copy).startswith(f"{copy}/{name}:0: ")


def test_an_unbroken_copy_is_accepted(copy: Path) -> None:
    """So it is the mistakes that the tests above find."""
    assert datamodel.load(copy).classes.keys() == datamodel.load().classes.keys()


# Counts and descriptions.


def test_the_model_has_73_classes_and_1456_published_implicit_messages(model: Model) -> None:
    """Published is what is not hidden: the two filters by expression are derived, too, but hidden.

    1,580 messages follow from 65 classes; the other eight are values only, or declare all messages
    themselves. 62 of the 65 list their objects and so have two hidden filters each:
    1,580 - 2 * 62 = 1,456, which is also what datamodel.json gives without its hidden ones.
    """
    implicit = [message for message in model.messages if message.kind]
    hidden = Counter(message.kind for message in implicit if message.hidden)
    assert len({message.class_name for message in implicit}) == 65
    assert len(model.classes) == 73
    assert hidden == {"get_all_where": 62, "get_all_records_where": 62}
    assert sum(not message.hidden for message in implicit) == 1456


def described(model: Model) -> Iterator[tuple[str, str, str]]:
    for cls in model.classes.values():
        yield cls.name, cls.name, cls.doc
        for enum in cls.enums.values():
            yield f"{cls.name} enum {enum.name}", enum.name, enum.doc
            for value in enum.values:
                yield f"{cls.name} value {enum.name} {value.name}", value.name, value.doc
        members: list[Field | Message] = [*cls.fields.values(), *cls.explicit]
        for member in members:
            yield f"{cls.name}.{member.name}", member.name, member.doc
    for kind in ("errors", "roles", "alerts", "handlers"):
        for item in getattr(model, kind).values():
            yield f"{kind} {item.name}", item.name, item.doc


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("_", " "))


def test_every_description_is_a_sentence(model: Model) -> None:
    """It begins like one, ends with a full stop, and has nothing doubled or left over."""
    sentence = re.compile(r"(?!.*(\b\w+ )\1)(?!.* [.,;])(?!.*\.\.)(?!.*(TODO|FIXME|XXX))[\w\"'</(].*[^\s.]\.")
    assert [(name, doc) for name, _, doc in described(model) if not sentence.fullmatch(doc)] == []


def test_no_description_repeats_the_name(model: Model) -> None:
    """It says something that the name does not, articles apart."""
    articles = {"the", "a", "an", "of", "this"}
    repeated = [
        (where, doc)
        for where, name, doc in described(model)
        if [word for word in words(doc) if word not in articles] in (words(name), [])
    ]
    assert repeated == []


def test_no_two_fields_of_a_class_share_a_description(model: Model) -> None:
    """Nor two messages of its own: one of them would say nothing."""
    shared = [
        (cls.name, doc)
        for cls in model.classes.values()
        for members in (cls.fields.values(), cls.explicit)
        for doc, number in Counter(member.doc for member in members).items()
        if number > 1
    ]
    assert shared == []


def test_members_named_in_descriptions_exist(model: Model) -> None:
    """A sentence that sends the reader to VM.start must not send him nowhere."""
    named = re.compile(rf"\b({'|'.join(model.classes)})\.([A-Za-z_]\w+)")
    lost = [
        (where, match.group())
        for where, _, doc in described(model)
        for match in named.finditer(doc)
        if match[2] not in model.classes[match[1]].fields and match[2] not in model.classes[match[1]].messages
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("name", "element"),
    [("errors", "error"), ("alerts", "alert"), ("http", "handler"), ("roles", "role"), ("releases", "release")],
)
def test_nothing_is_declared_twice(name: str, element: str) -> None:
    """The second declaration would silently replace the first. Some releases have no name."""
    names = [item.get("name") for item in etree.parse(ROOT / "schema" / f"{name}.xml").iter(element)]
    assert [name for name, number in Counter(names).items() if number > 1 and name] == []


def test_no_message_of_a_class_is_declared_twice() -> None:
    """As above, for the messages of each class."""
    files = (ROOT / "schema" / "classes").glob("*.xml")
    names = [(path.stem, item.get("name")) for path in files for item in etree.parse(path).iter("message")]
    assert [name for name, number in Counter(names).items() if number > 1] == []


def test_roles_of_http_handlers_are_declared(model: Model) -> None:
    """Those of classes are checked when the schema is read."""
    asked = {role for handler in model.handlers.values() for role in (handler.role, *handler.also.values())}
    assert asked - model.roles.keys() <= {"local-root"}


# The published API.

LIFE = ("prototyped", "since", "deprecated", "removed")
ACCESS = {"RW": "RW", "StaticRO": "RO/constructor", "DynamicRO": "RO/runtime"}


def life(item: Any) -> tuple[str, ...]:
    """Return the four marks; what was removed and is published again counts as published."""
    again = item.get("state", "Published") == "Published"
    marks = ("prototyped", "since") if again else ("prototyped", "since", "deprecated", "removed")
    return tuple(item.get(mark, "") if mark in marks else "" for mark in LIFE)


def our_life(item: Class | Field | Message) -> tuple[str, ...]:
    return (item.life.prototyped, item.life.since, item.life.deprecated, item.life.removed)


def published_field(item: Any) -> dict[str, Any]:
    return {
        "type": item["type"],
        "access": ACCESS[item["q"]],
        "default": item.get("default", "none"),
        "relation": item.get("relation", ""),
        "role": item.get("write_role", ""),
        "reader": item.get("read_role", "read-only"),
        "keys": item.get("key_roles", {}),
        "column": item.get("path", item["name"]).replace("/", "__"),
        "internal": item.get("internal", False),
        "transient": item.get("transient", False),
        "life": life(item),
        "state": item.get("state", "Published"),
    }


def our_field(cls: Class, member: Field) -> dict[str, Any]:
    return {
        "type": member.type.name,
        "access": member.access,
        "default": "none" if member.required else plain(member),
        "relation": member.inverse,
        "role": member.role,
        "reader": member.reader or cls.reader,
        "keys": dict(member.key_roles),
        "column": member.column,
        "internal": member.internal,
        "transient": not member.kept,
        "life": our_life(member),
        "state": member.life.state,
    }


def plain(member: Field) -> Any:
    if member.type.name != "datetime":
        return member.type.plain(member.default)
    return f"{member.default:%Y-%m-%dT%H:%M:%SZ}"


def published_message(item: Any) -> dict[str, Any]:
    return {
        "role": item["role"],
        "session": item["session"],
        "async": item["async"],
        "hidden": item.get("hidden", False),
        "internal": item.get("pool_internal", False),
        "kind": item.get("kind") or "",
        "result": item["result"],
        "parameters": [(p["name"], p["type"], p["required"]) for p in item["params"]],
        "arity": item["arity"],
        "life": life(item),
        "state": item.get("state", "Published"),
    }


def our_message(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "session": message.session,
        "async": message.is_async,
        "hidden": message.hidden,
        "internal": message.internal,
        "kind": message.kind,
        "result": message.result.name,
        "parameters": [(p.name, p.type.name, p.required) for p in message.parameters],
        "arity": [message.required, None if message.open_ended else message.required],
        "life": our_life(message),
        "state": message.life.state,
    }


def difference(ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what differs, by name and aspect: (ours, theirs)."""
    found: dict[str, Any] = dict.fromkeys(theirs.keys() - ours.keys(), "missing here")
    found |= dict.fromkeys(ours.keys() - theirs.keys(), "not published")
    for name in ours.keys() & theirs.keys():
        aspects = {key: (ours[name][key], theirs[name][key]) for key in theirs[name]}
        aspects = {key: pair for key, pair in aspects.items() if pair[0] != pair[1]}
        found |= {name: aspects} if aspects else {}
    return found


KEPT_HERE = {"message": True, "role": False}
"""What differs from xapi, which keeps messages in files beside its database; roles follow from the schema."""


def test_classes_are_the_published_ones(model: Model, facts: Any) -> None:
    """Their persistence, constructors, lists, events and life cycles, too."""
    theirs = {
        item["name"]: {
            "kept": KEPT_HERE.get(item["name"], item["persist"] if item["in_database"] else None),
            "constructor": item["ctor_dtor"],
            "listed": item["get_all"],
            "events": item["gen_events"],
            "life": life(item),
        }
        for item in facts["classes"]
    }
    ours = {
        cls.name: {
            "kept": {"disk": True, "memory": False, "no": None}[cls.kept],
            "constructor": bool(cls.constructor),
            "listed": cls.listed and cls.implicit,
            "events": cls.events,
            "life": our_life(cls),
        }
        for cls in model.classes.values()
    }
    assert difference(ours, theirs) == {}


OWN_FIELDS = {"SR.unfinished": "not published", "pool.template_set": "not published"}
"""Internal fields of ours, which no client sees."""


def test_fields_are_the_published_ones(model: Model, facts: Any) -> None:
    """Types, access, defaults, relations, roles, database names and life cycles."""
    theirs = {f"{c['name']}.{f['name']}": published_field(f) for c in facts["classes"] for f in c["fields"]}
    ours = {f"{c.name}.{f.name}": our_field(c, f) for c in model.classes.values() for f in c.fields.values()}
    assert difference(ours, theirs) == OWN_FIELDS
    shown = {f"{c.name}.{f.name}" for c in model.classes.values() for f in c.record_fields}
    assert not shown & OWN_FIELDS.keys()


def test_messages_are_the_published_ones(model: Model, facts: Any) -> None:
    """Parameters, arities, results, roles, kinds and life cycles."""
    theirs = {f"{c['name']}.{m['name']}": published_message(m) for c in facts["classes"] for m in c["messages"]}
    ours = {message.full_name: our_message(message) for message in model.messages}
    assert difference(ours, theirs) == {}


def test_published_errors_of_messages_are_declared(model: Model, facts: Any) -> None:
    """The schema declares more: what the bodies and their checks raise."""
    ours = {message.full_name: set(message.errors) for message in model.messages}
    theirs = {f"{c['name']}.{m['name']}": set(m.get("errors", ())) for c in facts["classes"] for m in c["messages"]}
    assert {name: errors - ours[name] for name, errors in theirs.items() if errors - ours[name]} == {}


def test_error_codes_are_the_published_ones(model: Model) -> None:
    """With the same ones left out of the published list."""
    theirs = {row["code"]: row["declared"] == "yes" for row in rows("errors.tsv")}
    assert {error.name: error.published for error in model.errors.values()} == theirs


def test_relations_are_the_published_ones(model: Model, facts: Any) -> None:
    """Each pair once, from either side."""
    ours = {
        frozenset({f"{cls.name}.{member.name}", member.inverse})
        for cls in model.classes.values()
        for member in cls.fields.values()
        if member.inverse
    }
    assert ours == {frozenset(pair) for pair in facts["relations"]}


def test_enums_are_the_published_ones(model: Model, facts: Any) -> None:
    """Values in their order."""
    assert {enum.name: [value.name for value in enum.values] for enum in model.enums.values()} == facts["enums"]


def rows(name: str) -> list[dict[str, str]]:
    path = FACTS / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_permissions_are_the_published_ones(model: Model) -> None:
    """The least role of each, and whether client-cert has it."""
    theirs = {row["permission"]: (row["lowest_role"], row["client_cert"] == "yes") for row in rows("rbac.tsv")}
    assert dict(model.permissions) == theirs


def test_roles_are_the_published_ones(model: Model) -> None:
    """Their order is that of their rights."""
    theirs = [(row["role"], row["uuid"], row["ref"], row["is_internal"] == "true") for row in rows("roles.tsv")]
    assert [(role.name, role.uuid, role.ref, role.internal) for role in model.roles.values()] == theirs
