"""The state directory: its lock, and the secrets that it keeps."""

from __future__ import annotations

import os
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from xapi.access.passwords import verify_password
from xapi.process import certificates
from xapi.process.state import State, StateError

NOW = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "a" / "state"


@pytest.fixture
def state(directory: Path) -> Any:
    made = State(directory)
    yield made
    made.close()


def test_directory_is_made_for_its_owner(state: State, directory: Path) -> None:
    """With those above it, and the process that has it."""
    assert mode(directory) == 0o700
    assert (directory / "lock").read_text() == f"{os.getpid()}\n"


def test_directory_has_one_daemon(state: State, directory: Path) -> None:
    """The second is told of the first and leaves its name there; after its end the next one is let in."""
    with pytest.raises(StateError, match=rf"another daemon \(process {os.getpid()}\) uses it"):
        State(directory)
    assert (directory / "lock").read_text() == f"{os.getpid()}\n"
    state.close()
    State(directory).close()


def test_name_of_a_longer_process_is_replaced_whole(directory: Path) -> None:
    """A crash leaves any lock file."""
    directory.mkdir(parents=True)
    (directory / "lock").write_text("123456789012345\n")
    State(directory).close()
    assert (directory / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("name", ["", "lock"])
def test_directory_that_is_none(directory: Path, name: str) -> None:
    """A file in its place, a directory in the lock's."""
    directory.parent.mkdir()
    if name:
        (directory / name).mkdir(parents=True)
    else:
        directory.write_text("mine")
    with pytest.raises(StateError, match=r"cannot be used as state directory: (File exists|Is a directory)"):
        State(directory)


# Passwords


def test_first_password_is_invented(state: State, directory: Path) -> None:
    """Told once, kept for its owner, and right."""
    passwords, invented = state.passwords(None)
    assert invented is not None
    assert len(invented) >= 16
    assert verify_password(invented, passwords.stored("root"))
    assert (directory / "root-password").read_text() == f"{invented}\n"
    assert mode(directory / "root-password") == mode(directory / "passwords.json") == 0o600
    assert state.passwords(None)[1] is None


def test_given_password_counts_at_first_only(state: State) -> None:
    """Later it is not looked at."""
    passwords, invented = state.passwords("first")
    assert invented is None
    assert verify_password("first", passwords.stored("root"))
    again, _ = state.passwords("second")
    assert verify_password("first", again.stored("root"))
    assert not verify_password("second", again.stored("root"))


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "\xff",
        "[]",
        "{}",
        "7",
        "[" * 100_000,
        '{"root": 5}',
        '{"root": ""}',
        '{"root": "scrypt$1$8$1$zz$00"}',
        '{"root": "scrypt$15$8$1$00$00"}',
        '{"root": "scrypt$16777216$999$1$00$00"}',
    ],
)
def test_damaged_passwords_are_not_replaced(state: State, directory: Path, damage: str) -> None:
    """Whatever is in the file stays there."""
    path = directory / "passwords.json"
    path.write_text(damage, "latin-1")
    with pytest.raises(StateError, match=r"passwords\.json: is damaged"):
        state.passwords("given")
    assert path.read_text("latin-1") == damage
    assert not (directory / "root-password").exists()


def test_passwords_that_cannot_be_read(state: State, directory: Path) -> None:
    """A directory in the file's place."""
    (directory / "passwords.json").mkdir()
    with pytest.raises(StateError, match=r"passwords\.json: Is a directory"):
        state.passwords("given")


# Other secrets


def test_pool_secret_stays_the_same(state: State, directory: Path) -> None:
    """256 bits, for its owner; the file comes last, as the sign that there is a pool."""
    secret = state.pool_secret()
    assert len(secret) == 64
    before = state.used
    state.keep()
    assert (before, state.used) == (False, True)
    assert state.pool_secret() == secret
    assert mode(directory / "ptoken") == 0o600


def test_certificate_is_made_once(state: State, directory: Path) -> None:
    """For this host and loopback, from a day ago for ten years."""
    path = state.certificate(NOW)
    data = path.read_bytes()
    assert (path, mode(path)) == (directory / "xapi-ssl.pem", 0o600)
    certificate = x509.load_pem_x509_certificate(data)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=3649)
    key = serialization.load_pem_private_key(data, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.public_key() == certificate.public_key()
    assert state.certificate(NOW + timedelta(days=9)).read_bytes() == data


@pytest.mark.parametrize("part", ["all", "key", "certificate"])
def test_damaged_certificate_is_not_replaced(state: State, part: str) -> None:
    """It may be a real one that somebody put there."""
    path = state.certificate(NOW)
    text = path.read_text()
    marker = {"all": "-----BEGIN", "key": "BEGIN RSA PRIVATE", "certificate": "BEGIN CERT"}[part]
    path.write_text(text.replace(marker, "-----LOST"))
    damaged = path.read_text()
    with pytest.raises(StateError, match=r"xapi-ssl\.pem: is damaged"):
        state.certificate(NOW)
    assert path.read_text() == damaged


def test_a_certificate_of_our_own_is_made_anew_for_a_name_that_it_lacks(state: State) -> None:
    """Those of older versions too, which were for loopback alone."""
    state.certificate(NOW)
    data = state.certificate(NOW, ["192.0.2.7", "kronos.example"]).read_bytes()
    certificate = x509.load_pem_x509_certificate(data)
    assert certificates.unnamed(certificate, ["localhost", "::1", "192.0.2.7", "kronos.example"]) == []
    assert state.certificate(NOW, ["192.0.2.7"]).read_bytes() == data


@pytest.mark.parametrize("change", ["subject", "life", "extension", "signature"])
def test_a_certificate_that_is_not_quite_like_ours_is_somebody_elses(change: str) -> None:
    """What we do not know for certain is never replaced."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    signing = rsa.generate_private_key(public_exponent=65537, key_size=2048) if change == "signature" else key
    common = x509.NameAttribute(x509.NameOID.COMMON_NAME, "host")
    organisation = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "mine")] if change == "subject" else []
    name = x509.Name([common, *organisation])
    ours = x509.load_pem_x509_certificate(certificates.self_signed("host", NOW).encode())
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=3650 if change != "life" else 365))
    )
    for extension in list(ours.extensions)[: 2 if change == "extension" else 3]:
        builder = builder.add_extension(extension.value, extension.critical)
    assert certificates.is_own(ours) and not certificates.is_own(builder.sign(signing, hashes.SHA256()))


def test_a_certificate_of_somebody_else_stays_for_whatever_names(state: State, directory: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mine")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "xapi-ssl.pem").write_bytes(private + certificates.pem(certificate).encode())
    before = (directory / "xapi-ssl.pem").read_bytes()
    assert state.certificate(NOW, ["192.0.2.7"]).read_bytes() == before


def test_socket_of_a_dead_daemon_is_removed(state: State, directory: Path) -> None:
    """Once the lock is ours."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "xapi"))
    assert state.fresh_socket() == directory / "xapi"
    assert not (directory / "xapi").exists()
    assert state.fresh_socket() == directory / "xapi"


def test_long_host_names_fit_a_certificate() -> None:
    """A common name has 64 characters."""
    text = certificates.self_signed("h" * 80, NOW)
    certificate = x509.load_pem_x509_certificate(text.encode())
    assert certificate.subject.rfc4514_string() == f"CN={'h' * 64}"
