"""The audit trail: which calls are written, and each line to the letter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.test_log import PEER, Heard, vm_of
from tests.conftest import NOW, Pool
from xapi.datamodel import quoting
from xapi.log import audit
from xapi.log.audit import Trail
from xapi.log.files import Nowhere
from xapi.log.output import Log

ANN = "'S-1' 'ann'"


@pytest.fixture
def heard(pool: Pool) -> Heard:
    return Heard(pool)


def who(pool: Pool, user: str = "'LOCAL_SUPERUSER' 'root'") -> str:
    return f"('{quoting.trackid(pool.session)}' {user}"


def after_head(line: str) -> str:
    """Return the list of a line, whose head is that of debug.ml."""
    head, found = line.split("] ", 1)
    assert re.fullmatch(
        r"\[20260131T\d\d:\d\d:\d\d\.\d{3}Z\|audit\|\|0 HTTP 192\.0\.2\.1\|\S+ [RD]:[0-9a-f]{12}\|audit", head
    )
    return found


def test_a_change_is_a_line_to_the_letter(pool: Pool, heard: Heard) -> None:
    """The object's name, uuid and reference; of what else was given, only names."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.set_name_label", vm._ref, "db")
    assert heard.trail == [
        "[20260131T09:05:07.000Z|audit||0 HTTP 192.0.2.1|VM.set_name_label D:000000000001|audit] "
        f"{who(pool)} 'ALLOWED' 'OK' 'API' 'VM.set_name_label' (('self' 'db' '{vm.uuid}' '{vm._ref}')))"
    ]


def test_a_failed_call_has_its_error(pool: Pool, heard: Heard) -> None:
    """ERROR, and what the client is told; parameters that xapi lists are written as rpclib prints them."""
    vm = vm_of(pool)
    heard.clear()
    pool.fails("VM.start", vm._ref, True, False)
    assert [after_head(line) for line in heard.trail] == [
        f"{who(pool)} 'ALLOWED' 'ERROR:VM_IS_TEMPLATE: [ {vm._ref}; start ]' 'API' 'VM.start' (('vm' 'web' '{vm.uuid}' "
        f"'{vm._ref}') ('start_paused' 'B(true)' '' '') ('force' 'B(false)' '' '')))"
    ]


def test_a_destroyed_object_has_its_name(pool: Pool, heard: Heard) -> None:
    """It is looked up before the call; after it there is only a reference."""
    vm = vm_of(pool)
    heard.clear()
    pool("VM.destroy", vm._ref)
    assert heard.trail[0].endswith(f"'VM.destroy' (('self' 'web' '{vm.uuid}' '{vm._ref}')))")


def test_what_is_gone_has_its_reference(pool: Pool, heard: Heard) -> None:
    """Like one that never was."""
    pool.fails("VM.pause", "OpaqueRef:never")
    assert heard.trail[0].endswith("'VM.pause' (('vm' '' '' 'OpaqueRef:never')))")


def test_an_async_call_is_written_when_it_ends(pool: Pool, heard: Heard) -> None:
    """By the message's own name, with the task's."""
    vm = vm_of(pool)
    heard.clear()
    task = pool("Async.VM.clone", vm._ref, "copy")
    assert len(heard.trail) == 1
    assert f"|Async.VM.clone {audit.small(task)}|" in heard.trail[0]
    assert f"'VM.clone' (('vm' 'web' '{vm.uuid}' '{vm._ref}') ('new_name' 'copy' '' '')))" in heard.trail[0]


@pytest.mark.parametrize("call", ["VM.get_all", "VM.get_all_records", "VM_get_all", "SR_get_all_records"])
def test_what_reads_is_not_written(pool: Pool, heard: Heard, call: str) -> None:
    """Whatever has .get in its name; the other spelling too."""
    pool(call)
    assert heard.trail == []


def test_noise_is_not_written(pool: Pool, heard: Heard) -> None:
    """Waiting for events, and root's coming and going."""
    pool("event.from", ["pool"], "", 0.0)
    pool.login()
    pool("session.logout")
    assert heard.trail == []


def test_only_names_and_references_of_a_record_are_written(pool: Pool, heard: Heard) -> None:
    """And what xapi lists for VM.create; memory is what one reports by."""
    pool("network.create", {"name_label": "lab", "name_description": "d", "other_config": {"a": "secret"}})
    assert after_head(heard.trail[0]).endswith(
        "'network.create' (('name_label' 'lab' '' '') ('name_description' 'd' '' '')))"
    )


def test_a_subject_is_named_by_its_other_config(pool: Pool, heard: Heard) -> None:
    """It has no name of its own."""
    ref = pool("subject.create", {"subject_identifier": "S-1", "other_config": {"subject-name": "LAB\\ann", "b": "c"}})
    role = pool("role.get_by_name_label", "read-only")[0]
    pool("subject.add_to_roles", ref, role)
    uuid, of_role = pool.db.subject[ref].uuid, pool.db.role[role].uuid
    assert [after_head(line).split("'API' ")[1] for line in heard.trail] == [
        "'subject.create' (('subject_identifier' 'S-1' '' '') ('other_config' (('subject-name' 'LAB\\\\ann' '' '')) "
        "'' '')))",
        f"'subject.add_to_roles' (('self' 'LAB\\\\ann' '{uuid}' '{ref}') ('role' 'read-only' '{of_role}' '{role}')))",
    ]


def test_a_destroyed_vbd_tells_of_its_disk(pool: Pool, heard: Heard) -> None:
    """xapi adds it for reports."""
    vm = vm_of(pool)
    vbd = pool.db.VBD.create(VM=vm._ref, userdevice="3", type="CD", mode="RO", empty=True)
    heard.clear()
    pool.turn()
    pool("VBD.destroy", vbd._ref)
    assert f"'VBD.destroy' (('self' '' '{vbd.uuid}' '{vbd._ref}')))" in heard.trail[0]


@pytest.fixture
def ann(pool: Pool, heard: Heard, tmp_path: Path) -> None:
    """A user of the directory who may only read."""
    path = tmp_path / "directory.toml"
    path.write_text('[users.ann]\nsid = "S-1"\npassword = "secret-of-ann"\n', "utf-8")
    pool.daemon.sessions.directory_path = path
    pool("pool.enable_external_auth", next(iter(pool.db.pool))._ref, {}, "lab", "file")
    subject = pool("subject.create", {"subject_identifier": "S-1"})
    pool("subject.add_to_roles", subject, pool("role.get_by_name_label", "read-only")[0])
    heard.clear()
    pool.session = pool.raw("session.login_with_password", "ann", "secret-of-ann", "1.0", "a script")


def test_a_subject_s_coming_and_going_is_written(pool: Pool, heard: Heard, ann: None) -> None:
    """By calls of their own, whose arguments are the name given and the originator."""
    pool("session.logout")
    given = "('originator' 'a script' '' '')"
    assert [line.split("] ", 1)[1] for line in heard.trail] == [
        f"{who(pool, ANN)} 'ALLOWED' 'OK' 'API' 'session.create' (('uname' 'ann' '' '') {given}))",
        f"{who(pool, ANN)} 'ALLOWED' 'OK' 'API' 'session.destroy' ({given}))",
    ]


def test_a_denied_call_is_written(pool: Pool, heard: Heard, ann: None) -> None:
    """With no error: DENIED says it."""
    vm = next(iter(pool.db.VM))
    heard.clear()
    pool.fails("VM.set_name_label", vm._ref, "mine")
    name = vm.name_label
    assert [after_head(line) for line in heard.trail] == [
        f"{who(pool, ANN)} 'DENIED' '' 'API' 'VM.set_name_label' (('self' '{name}' '{vm.uuid}' '{vm._ref}')))"
    ]
    assert heard.said[0].startswith("warn     VM.set_name_label self=VM")


def unquoted(text: str) -> Any:
    """Read a list as xapi's SExpr prints it."""
    at = 0

    def read() -> Any:
        nonlocal at
        if text[at] == "(":
            at += 1
            found = []
            while text[at] != ")":
                if text[at] == " ":
                    at += 1
                found.append(read())
            at += 1
            return found
        assert text[at] == "'"
        at += 1
        value = ""
        while text[at] != "'":
            at += text[at] == "\\"
            value += text[at]
            at += 1
        at += 1
        return value

    value = read()
    assert at == len(text)
    return value


PRINTABLE = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]).filter(str.isprintable))


@given(name=PRINTABLE)
def test_a_list_can_be_read_back(name: str) -> None:
    """Quotes and backslashes in names are escaped, brackets and blanks are not in the way."""
    values = ["trackid=0", [["self", name, "u", "r"], []]]
    assert unquoted(audit._sexpr(values)) == values


@given(name=st.text())
def test_a_line_is_a_line(name: str) -> None:
    """Line ends become blanks; nothing reaches a terminal."""
    line = audit._said(NOW.timestamp(), PEER, "VM.create", "s", ("S-1", name), ("DENIED", ""), "VM.create", [])[0]
    assert line.isprintable()


def test_the_trail_is_a_file_of_its_own(pool: Pool, tmp_path: Path) -> None:
    """In the state directory, and only its owner's."""
    log = Log("critical", "text", Nowhere(), pool.clock.seconds)
    stream = audit.stream(tmp_path / "audit.log")
    log.writer.add(stream)
    trail = Trail(pool.db, pool.clock.seconds, lambda line: log.writer.put(stream, line))
    trail.came(pool.db.session.create(auth_user_sid="S-1", auth_user_name="ann", is_local_superuser=False), "LAB\\ann")
    log.writer.remove(stream)
    log.close()
    path = tmp_path / "audit.log"
    assert path.read_text().endswith("'session.create' (('uname' 'LAB\\\\ann' '' '') ('originator' '' '' '')))\n")
    assert path.stat().st_mode & 0o777 == 0o600
