"""Messages of auth: questions to the external directory."""

from __future__ import annotations

from xapi.access.directory import Account, Directory
from xapi.access.sessions import Sessions
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors


def directory_of(call: Call) -> Directory:
    """Return the directory in use. Raises AUTH_IS_DISABLED."""
    directory = call[Sessions].directory
    if directory is None:
        raise errors.AUTH_IS_DISABLED()
    return directory


def account_of(call: Call, identifier: str) -> Account:
    """Return the account of a subject identifier. Raises SUBJECT_CANNOT_BE_RESOLVED."""
    account = directory_of(call).by_sid(identifier)
    if account is None:
        raise errors.SUBJECT_CANNOT_BE_RESOLVED()
    return account


@message("auth.get_subject_identifier")
def get_subject_identifier(call: Call, subject_name: str) -> str:
    """Return the identifier of a user or group by name."""
    account = directory_of(call).find(subject_name)
    if account is None:
        raise errors.SUBJECT_CANNOT_BE_RESOLVED()
    return account.sid


@message("auth.get_subject_information_from_identifier")
def get_subject_information_from_identifier(call: Call, subject_identifier: str) -> dict[str, str]:
    """Return what the directory knows of a user or group."""
    return account_of(call, subject_identifier).information


@message("auth.get_group_membership")
def get_group_membership(call: Call, subject_identifier: str) -> tuple[str, ...]:
    """Return the groups that hold a user or group, directly or not."""
    return account_of(call, subject_identifier).group_sids
