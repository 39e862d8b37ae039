"""The hosts of a daemon are on one site: guests on different hosts share its LANs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    daemon = Daemon(tmp_path_factory.mktemp("site"), "--hosts", "2", "--listen", "127.0.0.1:0", "--tls", "").ready()
    clients = Clients()
    made = Lab(daemon, clients.root(daemon))
    yield made
    made.close()
    clients.close()
    daemon.stop()


def test_guests_on_two_hosts_have_addresses_of_one_lan_and_reach_each_other(lab: Lab) -> None:
    """The address service is on one of the hosts."""
    hosts = lab.xapi.host.get_all()
    vms = [lab.vm(f"guest {number}") for number in range(4)]
    for number, vm in enumerate(vms):
        lab.card(vm, lab.network)
        lab.xapi.VM.start_on(vm, hosts[number % 2], False, False)
    addresses = [lab.address(vm) for vm in vms]
    assert len(set(addresses)) == 4
    for other in addresses[1:]:
        assert "received: 3" in lab.shell(vms[0]).run(f"ping {other} 3")
    for vm in vms:
        lab.xapi.VM.hard_shutdown(vm)
