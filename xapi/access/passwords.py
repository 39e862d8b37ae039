"""The passwords of local accounts: salted scrypt hashes in one file of mode 0600."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

COST, _BLOCK, _PARALLEL = 2**14, 8, 1
"""scrypt's parameters: some 50 ms and 16 MiB a password."""
CHEAP = 2
"""The cost of a password that guards nothing, as a test's."""


def hash_password(password: str, cost: int = COST) -> str:
    """Return ``scrypt$N$r$p$salt$hash`` of a password, with a fresh salt."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=cost, r=_BLOCK, p=_PARALLEL)
    return f"scrypt${cost}${_BLOCK}${_PARALLEL}${salt.hex()}${digest.hex()}"


def verify_password(password: str, stored: str) -> bool:
    """Tell whether a password fits a hash, in a time that does not depend on where they differ."""
    _, cost, block, parallel, salt, digest = stored.split("$")
    tried = hashlib.scrypt(
        password.encode(), salt=bytes.fromhex(salt), n=int(cost), r=int(block), p=int(parallel), maxmem=_MEMORY
    )
    return hmac.compare_digest(tried.hex(), digest)


NOBODY = f"scrypt${COST}${_BLOCK}${_PARALLEL}${secrets.token_hex(16)}${secrets.token_hex(64)}"
"""The hash of no password that anybody knows: it is checked where there is no account, as long as for any other."""


def write_secret(path: Path, text: str) -> None:
    """Replace a file by one of mode 0600, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, str]:
    """Return the hashes of a file. Raises ValueError for one that is damaged."""
    hashes = json.loads(path.read_text("utf-8"))
    if not isinstance(hashes, dict) or not all(isinstance(text, str) and _usable(text) for text in hashes.values()):
        raise ValueError("it does not hold password hashes")
    return hashes


_HASH = re.compile(r"scrypt\$(\d{1,8})\$(\d{1,4})\$(\d{1,4})\$(?:[0-9a-f]{2})+\$(?:[0-9a-f]{2})+", re.ASCII)
_MEMORY = 2**27
"""Bytes that scrypt may take."""


def _usable(stored: str) -> bool:
    """Tell whether a hash can be verified: scrypt refuses some parameters only when it is to work."""
    found = _HASH.fullmatch(stored)
    if found is None:
        return False
    cost, block, parallel = map(int, found.groups())
    power_of_two = cost > 1 and cost & (cost - 1) == 0
    return power_of_two and block > 0 and parallel > 0 and 128 * block * (cost + parallel + 2) <= _MEMORY


class Passwords:
    """The accounts of one state directory. New passwords cost as much to check as `cost` says.

    Raises OSError, ValueError for a file that cannot be used.
    """

    def __init__(self, path: Path, cost: int = COST) -> None:
        self.path = path
        self._cost = cost
        self._hashes = _read(path) if os.path.lexists(path) else {}

    def __contains__(self, user: str) -> bool:
        return user in self._hashes

    def set(self, user: str, password: str) -> None:
        """Give a user a new password; it is on disk when this returns."""
        hashes = self._hashes | {user: hash_password(password, self._cost)}
        write_secret(self.path, json.dumps(hashes, indent=1) + "\n")
        self._hashes = hashes

    def stored(self, user: str) -> str:
        """Return a user's hash, "" for who has no account."""
        return self._hashes.get(user, "")
