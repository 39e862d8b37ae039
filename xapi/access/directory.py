"""An external directory of users and groups, read from a TOML file.

It stands where a real host asks Active Directory, so that roles can be tried without one: name the
file as ``directory`` in the configuration, then ``pool.enable_external_auth`` with auth_type ``file``::

    [groups.operators]
    sid = "S-1-5-21-0-0-0-1101"

    [users.alice]
    sid = "S-1-5-21-0-0-0-1001"
    fullname = "Alice Example"
    password = "wonderland"          # or password_hash = "scrypt$…"
    groups = ["operators"]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xapi.access.passwords import hash_password


class DirectoryError(Exception):
    """The directory file cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user or a group. `group_sids` are those of the groups that hold it, directly or not."""

    name: str
    sid: str
    fullname: str
    is_group: bool
    password_hash: str
    group_sids: tuple[str, ...]

    @property
    def information(self) -> dict[str, str]:
        """What `auth.get_subject_information_from_identifier` answers."""
        return {
            "subject-name": self.name,
            "subject-sid": self.sid,
            "subject-gecos": self.fullname,
            "subject-displayname": self.fullname or self.name,
            "subject-is-group": "true" if self.is_group else "false",
            "contains-byname": "",
        }


class Directory:
    """The accounts of one file. Raises DirectoryError when it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                declared = tomllib.load(file)
            self._accounts = _accounts(declared)
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise DirectoryError(f"{path}: {error}") from error
        self._by_sid = {account.sid: account for account in self._accounts.values()}

    def find(self, name: str) -> Account | None:
        """Return the account of this name, whatever its case."""
        return self._accounts.get(name.lower())

    def by_sid(self, sid: str) -> Account | None:
        """Return the account with this subject identifier."""
        return self._by_sid.get(sid)


def _accounts(declared: dict[str, Any]) -> dict[str, Account]:
    groups, users = declared.get("groups", {}), declared.get("users", {})

    def above(names: list[str], seen: frozenset[str] = frozenset()) -> dict[str, None]:
        found: dict[str, None] = {}
        for name in names:
            if name not in seen:
                found[groups[name]["sid"]] = None
                found |= above(groups[name].get("groups", []), seen | {name})
        return found

    accounts = {}
    for is_group, section in ((True, groups), (False, users)):
        for name, entry in section.items():
            stored = entry.get("password_hash", "")
            if "password" in entry:
                stored = hash_password(entry["password"])
            sids = tuple(above(entry.get("groups", [])))
            accounts[name.lower()] = Account(name, entry["sid"], entry.get("fullname", ""), is_group, stored, sids)
    return accounts
