"""Hosts: whether they take VMs, their settings, and what they say of themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.api.conftest import Connection, text
from tests.api.test_power import make_vm, running
from tests.conftest import Pool
from xapi.datamodel.errors import Fault


@pytest.fixture
def host(pool: Pool) -> Any:
    return next(iter(pool.db.host))


# Whether they take VMs


def test_a_disabled_host_takes_no_vms_until_it_is_enabled(pool: Pool, host: Any) -> None:
    """It is passed over, refused when it is named, and says so; what runs there runs on."""
    there, vm = running(pool), make_vm(pool)
    pool("host.disable", host._ref)
    assert pool("host.get_enabled", host._ref) is False
    assert pool.fails("VM.start", vm._ref, False, False) == ["NO_HOSTS_AVAILABLE"]
    assert pool.fails("VM.start_on", vm._ref, host._ref, False, False) == ["HOST_DISABLED", host._ref]
    assert not list(pool("VM.get_possible_hosts", vm._ref)) and there.power_state == "Running"
    pool("VM.hard_reboot", there._ref)
    pool("host.enable", host._ref)
    pool("VM.start", vm._ref, False, False)
    assert (vm.power_state, there.power_state, dict(host.current_operations)) == ("Running", "Running", {})


@pytest.mark.parametrize(("arguments", "enabled"), [((), True), ((True,), True), ((False,), False)])
def test_a_restart_enables_a_host_unless_it_was_told_not_to(
    pool: Pool, host: Any, arguments: tuple[bool, ...], enabled: bool
) -> None:
    """auto_enable of host.disable; enabling ends it."""
    pool("host.disable", host._ref, *arguments)
    session = pool.session
    pool("host.restart_agent", host._ref)
    assert host.enabled is False
    pool.clock.advance(1)
    pool.turn()
    assert host.enabled is enabled
    with pytest.raises(Fault) as caught:
        pool.raw("host.get_enabled", session, host._ref)
    assert caught.value.description == ["SESSION_INVALID", session]
    pool.session = pool.login()
    pool("host.enable", host._ref)
    assert pool("host.get_enabled", host._ref) is True and "auto_enable" not in host.other_config


def test_a_restart_of_the_toolstack_lets_guests_run_and_ends_waits(pool: Pool, host: Any) -> None:
    vm = running(pool)
    domid = vm.domid
    token = str(pool("event.from", ["host"], "", 0.0).token)
    waiting = pool.start("event.from", pool.session, ["host"], token, 60.0)
    pool("host.restart_agent", host._ref)
    pool.clock.advance(1)
    with pytest.raises(Fault) as caught:
        pool.outcome(waiting)
    assert caught.value.description == ["SESSION_INVALID", pool.session]
    assert (vm.power_state, vm.domid) == ("Running", domid) and vm.uuid in pool.backend.doms


def test_a_host_with_steps_due_is_not_enabled(pool: Pool, host: Any) -> None:
    pool("host.disable", host._ref)
    host.pending_guidances = ("reboot_host",)
    assert pool.fails("host.enable", host._ref) == ["HOST_PENDING_MANDATORY_GUIDANCE_NOT_EMPTY", host._ref]


def test_a_host_that_is_not_there_is_neither_enabled_nor_disabled(pool: Pool, host: Any) -> None:
    pool.db.host_metrics[host.metrics].live = False
    assert pool.fails("host.disable", host._ref) == ["HOST_OFFLINE", host._ref]
    assert pool.fails("host.enable", host._ref) == ["HOST_OFFLINE", host._ref]


def test_guests_without_another_host_prevent_an_evacuation(pool: Pool, host: Any) -> None:
    """Control domains stay anyway."""
    pool("host.assert_can_evacuate", host._ref)
    vm = running(pool)
    assert pool("host.get_vms_which_prevent_evacuation", host._ref) == {vm._ref: ("NO_HOSTS_AVAILABLE", vm._ref)}
    assert pool.fails("host.assert_can_evacuate", host._ref) == [
        "CANNOT_EVACUATE_HOST", f"NO_HOSTS_AVAILABLE,{vm._ref}"
    ]  # fmt: skip


def test_guests_that_could_run_elsewhere_say_what_keeps_them(pool: Pool, host: Any) -> None:
    """Where another host is disabled, it is none; where it is enabled, migration is what lacks."""
    vm = running(pool)
    fields = {name: getattr(host, name) for name in ("metrics", "cpu_info", "capabilities")}
    other = pool.db.host.create(
        enabled=False, virtual_hardware_platform_versions=host.virtual_hardware_platform_versions, **fields
    )
    assert pool("host.get_vms_which_prevent_evacuation", host._ref)[vm._ref][0] == "NO_HOSTS_AVAILABLE"
    other.enabled = True
    assert pool("host.get_vms_which_prevent_evacuation", host._ref)[vm._ref] == ("NOT_IMPLEMENTED", "host.evacuate")


# Settings


def test_a_new_hostname_is_the_control_domains_too(pool: Pool, host: Any) -> None:
    pool("host.set_hostname_live", host._ref, "lab-7.example")
    assert host.hostname == "lab-7.example"
    assert pool.db.VM[host.control_domain].name_label == "Control domain on host: lab-7.example"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "hostname empty"),
        ("h" * 256, "hostname is too long"),
        ("a_b", "hostname contains invalid characters"),
        ("-a", "hostname contains invalid characters"),
        ("a-", "hostname contains invalid characters"),
        ("a\n", "hostname contains invalid characters"),
    ],
)
def test_what_is_no_hostname_is_refused(pool: Pool, host: Any, name: str, reason: str) -> None:
    """With xapi's reasons; nothing changes."""
    before = host.hostname
    assert pool.fails("host.set_hostname_live", host._ref, name) == ["HOST_NAME_INVALID", reason]
    assert host.hostname == before


def test_the_management_interface_is_the_card_that_says_so(pool: Pool, host: Any) -> None:
    pif = pool("host.get_management_interface", host._ref)
    assert pool.db.PIF[pif].management and pool.db.PIF[pif].host == host._ref
    pool.db.PIF[pif].management = False
    assert pool.fails("host.get_management_interface", host._ref)[0] == "INTERNAL_ERROR"


def test_iscsi_name_and_multipathing_stand_in_other_config_too(pool: Pool, host: Any) -> None:
    pool("host.set_iscsi_iqn", host._ref, "iqn.2026-01.com.example:x")
    pool("host.set_multipathing", host._ref, True)
    assert (host.iscsi_iqn, host.multipathing) == ("iqn.2026-01.com.example:x", True)
    assert {key: host.other_config[key] for key in ("iscsi_iqn", "multipathing")} == {
        "iscsi_iqn": "iqn.2026-01.com.example:x", "multipathing": "true"
    }  # fmt: skip
    assert pool.fails("host.set_iscsi_iqn", host._ref, "") == ["INVALID_VALUE", "value", ""]


def test_the_way_to_switch_a_host_on_goes_with_its_secrets(pool: Pool, host: Any) -> None:
    """A host that is there is not switched on."""
    secrets = [pool("secret.create", {"value": value, "other_config": {}}) for value in ("a", "b")]
    old, kept = (pool.db.secret[ref].uuid for ref in secrets)
    pool("host.set_power_on_mode", host._ref, "DRAC", {"power_on_password_secret": old, "k_password_secret": kept})
    pool("host.set_power_on_mode", host._ref, "DRAC", {"power_on_password_secret": kept})
    assert (host.power_on_mode, host.power_on_config) == ("DRAC", {"power_on_password_secret": kept})
    assert [secret in pool.db.secret for secret in secrets] == [False, True]
    assert pool.fails("host.power_on", host._ref) == ["HOST_IS_LIVE", host._ref]
    pool.db.host_metrics[host.metrics].live = False
    assert pool.fails("host.power_on", host._ref) == ["XENAPI_MISSING_PLUGIN", "power-on-host"]


# What they say


def test_a_hosts_time_is_utc_and_its_local_time_without_a_zone(pool: Pool, host: Any, wire: Connection) -> None:
    """Whatever the machine's zone is; xapi does not say which zone it is either."""
    session = text(pool.session)
    assert pool("host.get_servertime", host._ref) == datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)
    pool("host.set_timezone", host._ref, "Asia/Kolkata")
    answer = wire.ask("host.get_server_localtime", session, text(host._ref))
    assert b"<dateTime.iso8601>20260131T14:35:07</dateTime.iso8601>" in answer.body
    answer = wire.ask("host.get_servertime", session, text(host._ref))
    assert b"<dateTime.iso8601>20260131T09:05:07Z</dateTime.iso8601>" in answer.body


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../../etc/passwd", "/etc/localtime", "a b"])
def test_what_is_no_time_zone_is_refused(pool: Pool, host: Any, zone: str) -> None:
    assert pool.fails("host.set_timezone", host._ref, zone) == ["INVALID_VALUE", "timezone", zone]
    assert host.timezone == "UTC" and "Europe/Paris" in pool("host.list_timezones", host._ref)


def test_the_hypervisors_log_is_the_hosts_own(pool: Pool, host: Any) -> None:
    assert pool("host.dmesg", host._ref) == "(XEN) fake\n"


@pytest.mark.parametrize(
    ("name", "parameters", "what"),
    [("get_log", 1, "get_log"), ("dmesg_clear", 1, "dmesg_clear"), ("list_methods", 0, "list_method")],
)
def test_what_xapi_does_not_implement_either_says_so_in_its_words(
    pool: Pool, host: Any, name: str, parameters: int, what: str
) -> None:
    assert pool.fails(f"host.{name}", *[host._ref] * parameters) == ["NOT_IMPLEMENTED", what]


def test_the_certificate_is_that_of_the_daemon(pool: Pool, host: Any) -> None:
    assert pool.fails("host.get_server_certificate", host._ref) == ["INTERNAL_ERROR", "no TLS is served"]
    pool.daemon.certificate.pem = "-----BEGIN"
    assert pool("host.get_server_certificate", host._ref) == "-----BEGIN"


def test_no_part_of_a_status_report_is_offered(pool: Pool, host: Any) -> None:
    root = ElementTree.fromstring(pool("host.get_system_status_capabilities", host._ref))
    assert (root.tag, list(root)) == ("system-status-capabilities", [])


def test_a_log_on_another_machine_is_refused_and_none_is_set(pool: Pool, host: Any) -> None:
    pool("host.syslog_reconfigure", host._ref)
    pool("host.add_to_logging", host._ref, "syslog_destination", "192.0.2.1")
    assert pool.fails("host.syslog_reconfigure", host._ref) == ["NOT_IMPLEMENTED", "host.syslog_reconfigure"]


def test_small_questions_have_their_answers(pool: Pool, host: Any) -> None:
    """What a pool of one daemon is sure of."""
    ref = pool("pool.get_all")[0]
    assert pool("host.get_uncooperative_resident_VMs", host._ref) == ()
    assert pool("host.is_in_emergency_mode") is False
    assert pool("pool.recover_slaves") == ()
    assert pool("pool.get_license_state", ref) == {"edition": host.edition, "expiry": "20991231T23:59:59Z"}
    host.license_params = {}
    assert pool("pool.get_license_state", ref)["expiry"] == "never"
    assert pool("host.get_sched_gran", host._ref) == "cpu"
    assert pool.fails("host.set_sched_gran", host._ref, "core") == ["OPERATION_NOT_ALLOWED", "Disabled by xapi.conf"]
    pool("host.sync_data", host._ref)
    pool("host.set_ssl_legacy", host._ref, False)
    pool("pool.disable_ssl_legacy", ref)
    assert pool.fails("host.set_ssl_legacy", host._ref, True)[0] == "VALUE_NOT_SUPPORTED"
    assert pool.fails("host.set_uefi_certificates", host._ref, "x")[0] == "OPERATION_NOT_ALLOWED"


@pytest.mark.parametrize(
    "name", ["get_servertime", "get_server_localtime", "dmesg", "disable", "enable", "get_server_certificate"]
)
def test_a_host_that_there_is_not_has_no_answers(pool: Pool, name: str) -> None:
    assert pool.fails(f"host.{name}", "OpaqueRef:none") == ["HANDLE_INVALID", "host", "OpaqueRef:none"]
