"""The state directory: one daemon's lock, passwords, certificate, secrets and socket."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from twisted.logger import Logger

from xapi import certificates
from xapi.passwords import Passwords, write_secret

log = Logger()


class StateError(Exception):
    """The state directory cannot be used; the text is one line for people."""


class State:
    """The directory of one daemon, locked until `close` or the end of the process.

    Raises StateError when it cannot be made, read or written, or when another daemon has it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Opened for appending, so that a second daemon does not empty what the first wrote.
            self._lock = (directory / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock.truncate(0)
            self._lock.write(f"{os.getpid()}\n")
            self._lock.flush()
        except BlockingIOError:
            self._lock.close()
            owner = (directory / "lock").read_text("utf-8").strip()
            raise StateError(f"{directory}: another daemon (process {owner or 'unknown'}) uses it") from None
        except OSError as error:
            raise StateError(f"{directory}: cannot be used as state directory: {error.strerror}") from error

    def close(self) -> None:
        """Let another daemon have the directory."""
        self._lock.close()

    def passwords(self, given: str | None) -> tuple[Passwords, str | None]:
        """Return the local accounts, and root's password when it had to be invented just now.

        `given` is root's password for the first start; later it is not looked at. Raises StateError.
        """
        path = self.directory / "passwords.json"
        try:
            passwords = Passwords(path)
            if "root" in passwords:
                return passwords, None
            if given is not None:
                passwords.set("root", given)
                return passwords, None
            invented = secrets.token_urlsafe(12)
            write_secret(self.directory / "root-password", invented + "\n")
            passwords.set("root", invented)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise StateError(f"{path}: is damaged: {error}") from error
        return passwords, invented

    def pool_secret(self) -> str:
        """Return the secret by which hosts of the pool know each other. Raises StateError."""
        path = self.directory / "ptoken"
        try:
            if not path.exists():
                write_secret(path, secrets.token_hex(32))
            return path.read_text("utf-8").strip()
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error

    def certificate(self, now: datetime, names: Sequence[str] = ()) -> Path:
        """Return the file of key and certificate for TLS, for the names and addresses by which clients come.

        Without one a self-signed one is made, and anew when one of our own making lacks a name; one that somebody put
        there is never touched. Raises StateError.
        """
        path = self.directory / "xapi-ssl.pem"
        try:
            if not path.exists():
                write_secret(path, certificates.self_signed(socket.gethostname(), now, names))
            pem = path.read_bytes()
            serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
            lacking = ", ".join(certificates.unnamed(certificate, names))
            if lacking and certificates.is_own(certificate):
                write_secret(path, certificates.self_signed(socket.gethostname(), now, names))
                log.info("{path}: made anew, for {names} too", path=path, names=lacking)
            elif lacking:
                log.warn("{path}: is not for {names}: clients that verify fail there", path=path, names=lacking)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StateError(
                f"{path}: is damaged; it must hold a key without a password and its certificate"
            ) from error
        return path

    def fresh_socket(self) -> Path:
        """Return where the Unix socket goes, with a dead daemon's one removed: ours is the lock."""
        path = self.directory / "xapi"
        path.unlink(missing_ok=True)
        return path
