"""What a handler gets of a request's query: by the schema's declaration, or a clear refusal."""

from __future__ import annotations

from typing import Any

import pytest

from xapi import datamodel
from xapi.http.query import MOST, Query
from xapi.http.server.exchange import Refusal

HANDLERS = datamodel.load().handlers


def arguments(name: str, query: bytes) -> dict[str, Any]:
    names = [parameter.name for parameter in HANDLERS[name].parameters]
    return dict(zip(names, Query(query).arguments(HANDLERS[name]), strict=True))


def test_what_is_not_given_has_its_default() -> None:
    """Null for a reference, as for a message."""
    assert arguments("put_import", b"session_id=x&unknown=1") == {
        "restore": False, "force": False, "sr_id": "OpaqueRef:NULL", "sr_uuid": "",
    }  # fmt: skip
    assert arguments("get_export_metadata", b"")["include_dom0"] is True


def test_values_are_decoded_and_typed() -> None:
    """Escapes and plus signs too; of one that is given twice the first counts."""
    found = arguments("get_export", b"ref=OpaqueRef%3Aa&uuid=b+c&preserve_power_state=true&uuid=d")
    assert found == {"ref": "OpaqueRef:a", "uuid": "b c", "use_compression": "", "preserve_power_state": True}


def test_a_set_may_be_repeated_and_a_map_is_several() -> None:
    """With the map's name in front of its keys."""
    found = arguments("rrd_updates", b"start=-5&vm_uuid=a&vm_uuid=b&host=false&json=no")
    assert (found["start"], found["vm_uuid"], found["sr_uuid"]) == (-5, ("a", "b"), ())
    assert (found["host"], found["json"]) == (False, True)
    assert arguments("put_import_metadata", b"vdi:a=b&vdi:c=&vdi=d")["vdi"] == {"a": "b", "c": ""}


def test_a_name_alone_may_be_enough() -> None:
    """Whatever it says, or nothing."""
    assert arguments("host_rrd", b"json")["json"] and arguments("host_rrd", b"json=false")["json"]
    assert not arguments("host_rrd", b"")["json"]


@pytest.mark.parametrize(
    ("name", "query", "text"),
    [
        ("sr_rrd", b"", "parameter uuid: it must be given"),
        ("rrd_updates", b"start=soon", "parameter start: expected an int, got 'soon'"),
        ("put_import", b"force=yes", "parameter force: expected true or false, got 'yes'"),
        ("put_import", b"a&" * MOST + b"a", f"more than {MOST} parameters"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(name: str, query: bytes, text: str) -> None:
    """400, with the parameter."""
    with pytest.raises(Refusal) as caught:
        arguments(name, query)
    assert (caught.value.status, caught.value.text) == (400, text)
