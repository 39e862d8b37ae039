"""The state directory: one daemon's lock, passwords, certificate, secrets and socket."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from twisted.logger import Logger

from xapi.access.passwords import Passwords, write_secret
from xapi.process import certificates

log = Logger()


class StateError(Exception):
    """The state directory cannot be used; the text is one line for people."""


SOCKET_PATH = 107
"""Bytes that the path of a Unix socket may have: struct sockaddr_un of unix(7) holds 108, the last of them zero."""
SECRET = re.compile(r"[0-9a-f]{64}|(?=.*[^0-9a-f])[!-~]{16,}")
"""What a pool secret looks like: as we make them, which shows one that was cut short, or as somebody else does."""


class State:
    """The directory of one daemon, locked until `close` or the end of the process.

    Each file is made at the first start; one that is there is believed or refused, not replaced. Raises
    StateError when the directory cannot be made, read or written, when another daemon has it, or when a file of an
    earlier start is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._accounts = directory / "passwords.json"
        self._secret = directory / "ptoken"
        self._certificate = directory / "xapi-ssl.pem"
        self._socket = directory / "xapi"
        self._lock: TextIO | None = None
        self._fresh_secret: str | None = None
        self._made: list[Path] = []
        """What this start has made, the directory included, in this order."""
        if len(os.fsencode(self._socket)) > SOCKET_PATH:
            raise StateError(
                f"{directory}: is too long a path: that of the socket in it would have more than {SOCKET_PATH} bytes; "
                "name a shorter one with --state"
            )
        try:
            self._take()
            self._look()
        except BaseException:
            self.abandon()
            raise

    def _take(self) -> None:
        """Make the directory and lock it."""
        directory, lock = self.directory, self.directory / "lock"
        try:
            fresh = [each for each in (directory, *directory.parents) if not each.exists()]
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._made += reversed(fresh)
            if not lock.exists():
                self._made.append(lock)
            # Opened for appending, so that a second daemon does not empty what the first wrote.
            file = self._lock = lock.open("a")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except BlockingIOError:
            owner = lock.read_text("utf-8", "replace").strip()
            raise StateError(f"{directory}: another daemon (process {owner or 'unknown'}) uses it") from None
        except OSError as error:
            raise StateError(f"{directory}: cannot be used as state directory: {error.strerror}") from error

    def _look(self) -> None:
        """See that all files of earlier starts are sound, before anything is written."""
        self._read_accounts()
        for path, read in ((self._secret, self._read_secret), (self._certificate, self._read_certificate)):
            if _there(path):
                read()
        if _there(self._socket) and not self._socket.is_socket():
            raise StateError(f"{self._socket}: is in the way of the daemon's socket; move it away")

    @property
    def used(self) -> bool:
        """Whether a daemon has served from here before."""
        return _there(self._secret)

    def close(self) -> None:
        """Let another daemon have the directory."""
        if self._lock is not None:
            self._lock.close()

    def keep(self) -> None:
        """Hear that the daemon has what it serves, durably: what it has made stays. Raises StateError."""
        if self._fresh_secret is not None:
            self._write(self._secret, self._fresh_secret)
        self._made.clear()

    def abandon(self) -> None:
        """Remove what this start has made, if it ends before the daemon has served anybody, and close."""
        for path in reversed(self._made):
            with suppress(OSError):  # such as a directory in which somebody has put something meanwhile
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()
        self.close()

    def makes(self, path: Path) -> None:
        """Hear that another part of this start is about to make a file, if it is not there."""
        if not _there(path):
            self._made.append(path)

    def passwords(self, given: str | None) -> tuple[Passwords, str | None]:
        """Return the local accounts, and root's password when it had to be invented just now.

        `given` is root's password for the first start; later it is not looked at. Raises StateError.
        """
        passwords = self._read_accounts()
        if "root" in passwords:
            return passwords, None
        invented = secrets.token_urlsafe(12) if given is None else None
        if invented is not None:
            self._write(self.directory / "root-password", invented + "\n")
        with self._writing(self._accounts):
            passwords.set("root", given or str(invented))
        return passwords, invented

    def _read_accounts(self) -> Passwords:
        path = self._accounts
        try:
            passwords = Passwords(path)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise StateError(
                f"{path}: is damaged: {error}; restore it, or remove it to set root's password anew"
            ) from error
        if _there(path) and "root" not in passwords:
            raise StateError(
                f"{path}: is damaged: root is not in it; restore it, or remove it to set root's password anew"
            )
        return passwords

    def pool_secret(self) -> str:
        """Return the secret by which hosts of the pool know each other. Raises StateError.

        A new one is written last of all, by `keep`: its file tells that there is a pool.
        """
        if self.used:
            return self._read_secret()
        self._fresh_secret = self._fresh_secret or secrets.token_hex(32)
        return self._fresh_secret

    def _read_secret(self) -> str:
        path = self._secret
        try:
            secret = path.read_text("utf-8").strip()
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError:
            secret = ""
        if not SECRET.fullmatch(secret):
            raise StateError(f"{path}: is damaged: it holds no pool secret; restore it, or remove it to have a new one")
        return secret

    def certificate(self, now: datetime, names: Sequence[str] = ()) -> Path:
        """Return the file of key and certificate for TLS, for the names and addresses by which clients come.

        Without one a self-signed one is made, and anew when one of our own making lacks a name; one that somebody put
        there is never touched. Raises StateError.
        """
        path = self._certificate
        if not _there(path):
            self._write(path, certificates.self_signed(socket.gethostname(), now, names))
        certificate = self._read_certificate()
        lacking = ", ".join(certificates.unnamed(certificate, names))
        if lacking and certificates.is_own(certificate):
            self._write(path, certificates.self_signed(socket.gethostname(), now, names))
            log.info("{path}: made anew, for {names} too", path=path, names=lacking)
        elif lacking:
            log.warn("{path}: is not for {names}: clients that verify fail there", path=path, names=lacking)
        return path

    def _read_certificate(self) -> x509.Certificate:
        path = self._certificate
        try:
            pem = path.read_bytes()
            key, certificate = serialization.load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
            if key.public_key() != certificate.public_key():
                raise ValueError("the certificate is of another key")
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StateError(
                f"{path}: is damaged; it must hold a key without a password and its certificate"
            ) from error
        return certificate

    def fresh_socket(self) -> Path:
        """Return where the Unix socket goes, with a dead daemon's one removed: ours is the lock. Raises StateError."""
        with self._writing(self._socket):
            self._socket.unlink(missing_ok=True)
        return self._socket

    def _write(self, path: Path, text: str) -> None:
        with self._writing(path):
            write_secret(path, text)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Make a file, so that it goes again if this start fails. Raises StateError."""
        self.makes(path)
        try:
            yield
        except OSError as error:
            raise StateError(f"{path}: cannot be written: {error.strerror}") from error


def _there(path: Path) -> bool:
    """Tell whether there is something of this name, be it a link that leads nowhere."""
    return os.path.lexists(path)
