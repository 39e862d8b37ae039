"""The daemon says where it is reached: host, card, consoles and certificate, to clients that verify."""

from __future__ import annotations

import ssl
import subprocess
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.clients.daemon import Daemon
from xapi.hosts.addresses import interfaces

Start = Callable[..., Daemon]
HERE = "127.0.0.2"
OUTSIDE = [each.address for each in interfaces() if ":" not in each.address and not each.address.startswith("127.")]


def port(daemon: Daemon) -> int:
    number = urlsplit(daemon.https or daemon.http).port
    assert number
    return number


def said(daemon: Daemon, address: str) -> tuple[str, dict[str, Any], set[str]]:
    """Return the host's address, its management card, and where consoles are, as the API says.

    The client knows the certificate and checks the name, where there is TLS.
    """
    shown = f"[{address}]" if ":" in address else address
    scheme, context = "http", None
    if daemon.https:
        scheme, context = "https", ssl.create_default_context(cafile=str(daemon.state / "xapi-ssl.pem"))
    with xmlrpc.client.ServerProxy(f"{scheme}://{shown}:{port(daemon)}/", context=context) as server:
        api: Any = server
        session = api.session.login_with_password("root", "xenroot")["Value"]
        host = api.host.get_all(session)["Value"][0]
        pifs, consoles = (api.PIF.get_all_records(session)["Value"], api.console.get_all_records(session)["Value"])
        pif = next(pif for pif in pifs.values() if pif["management"])
        places = {urlsplit(console["location"]).netloc for console in consoles.values()}
        return api.host.get_address(session, host)["Value"], pif, places


def test_a_client_that_verifies_connects_where_the_host_says_it_is(start: Start) -> None:
    """At an address of our choice; the ports are in what names ports."""
    daemon = start("--listen", f"{HERE}:0", "--tls", f"{HERE}:0").ready()
    address, pif, consoles = said(daemon, HERE)
    assert (address, pif["IP"], pif["netmask"], consoles) == (HERE, HERE, "255.0.0.0", {f"{HERE}:{port(daemon)}"})
    assert said(daemon, address)[0] == address
    daemon.stop()


def test_an_older_state_follows_where_the_daemon_listens_now(start: Start) -> None:
    """A certificate of our own making is made anew when it lacks a name, and only then."""
    daemon = start("--tls", "127.0.0.1:0").ready()
    first = (daemon.state / "xapi-ssl.pem").read_bytes()
    daemon.stop()
    daemon = start("--tls", f"{HERE}:0").ready()
    assert said(daemon, HERE)[0] == HERE
    second = (daemon.state / "xapi-ssl.pem").read_bytes()
    log = daemon.stop()
    assert second != first and [line for line in log if f"made anew, for {HERE} too" in line]
    daemon = start("--tls", "127.0.0.1:0").ready()
    assert said(daemon, "127.0.0.1")[0] == "127.0.0.1"
    daemon.stop()
    assert (daemon.state / "xapi-ssl.pem").read_bytes() == second


@pytest.mark.skipif(not OUTSIDE, reason="this machine has no address but loopback's")
def test_at_every_address_the_host_says_the_one_on_the_way_out(start: Start) -> None:
    """And the certificate is for all of them; loopback is passed over for consoles too."""
    daemon = start("--listen", "127.0.0.1:0", "--tls", "0.0.0.0:0").ready()
    address, pif, consoles = said(daemon, "127.0.0.1")
    assert address in OUTSIDE and pif["IP"] == address and consoles == {f"{address}:{port(daemon)}"}
    assert {said(daemon, each)[0] for each in OUTSIDE} == {address}
    daemon.stop()


def test_a_name_that_only_others_know_is_given(start: Start) -> None:
    """Behind a NAT; the card keeps an address of this machine."""
    daemon = start("--tls", f"{HERE}:0", "--host-address", "localhost").ready()
    address, pif, consoles = said(daemon, HERE)
    assert (address, pif["IP"], consoles) == ("localhost", HERE, {f"localhost:{port(daemon)}"})
    daemon.stop()


def test_ipv6_is_said_in_brackets(start: Start) -> None:
    daemon = start("--no-tls", "--listen", "[::1]:0").ready()
    address, pif, consoles = said(daemon, "::1")
    assert (address, pif["IPv6"], pif["primary_address_type"], pif["IP"]) == ("::1", ["::1/128"], "IPv6", "")
    assert consoles == {f"[::1]:{port(daemon)}"}
    daemon.stop()


def test_a_certificate_of_somebody_else_is_never_replaced(start: Start, tmp_path: Path) -> None:
    """It is said that clients which verify will fail."""
    daemon = start("--tls", "127.0.0.1:0").ready()
    daemon.stop()
    pem, key = daemon.state / "xapi-ssl.pem", tmp_path / "key"
    made = tmp_path / "certificate"
    options = ("-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=mine")
    command = ["openssl", "req", "-x509", *options, "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    theirs = key.read_bytes() + made.read_bytes()
    pem.write_bytes(theirs)
    log = start("--tls", f"{HERE}:0").ready().stop()
    assert pem.read_bytes() == theirs
    assert [line for line in log if f"is not for {HERE}" in line]
