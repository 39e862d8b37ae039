"""Sessions for tests: the XenAPI package's where it is installed, else as much of one as a test needs."""

from __future__ import annotations

import ssl
from typing import Any
from xmlrpc.client import SafeTransport, ServerProxy, Transport

try:
    import XenAPI  # type: ignore[import-untyped,unused-ignore]
except ImportError:
    XenAPI = None

VERSION = "2.23"
ORIGINATOR = "xapi.testing"


class Failure(Exception):
    """A call has failed; `details` has the error's code and its parameters."""

    def __init__(self, details: list[str]) -> None:
        super().__init__(details)
        self.details = details


class Session:
    """What XenAPI.Session is to most of its users: `xenapi` calls methods with the session in front."""

    def __init__(self, url: str) -> None:
        transport = SafeTransport(context=_trusting()) if url.startswith("https:") else Transport()
        self._proxy = ServerProxy(url, transport, allow_none=True)
        self.handle = ""
        self.xenapi = _Methods(self, "")

    def call(self, name: str, *parameters: object) -> Any:
        """Call a method with no session in front. Raises Failure."""
        answer: Any = getattr(self._proxy, name)(*parameters)
        if answer["Status"] != "Success":
            raise Failure(answer["ErrorDescription"])
        return answer.get("Value")

    def login_with_password(self, user: str, password: str, *more: str) -> None:
        """Log in."""
        self.handle = self.call("session.login_with_password", user, password, *more)

    def logout(self) -> None:
        """Log out."""
        self.call("session.logout", self.handle)

    def close(self) -> None:
        """Close the connection."""
        self._proxy("close")()


class _Methods:
    """``session.xenapi.VM.get_all``: a name that grows until it is called."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    def __getattr__(self, name: str) -> _Methods:
        return _Methods(self._session, f"{self._name}.{name}" if self._name else name)

    def __call__(self, *parameters: object) -> Any:
        session = self._session
        if self._name in ("login_with_password", "logout"):
            return getattr(session, self._name)(*parameters)
        return session.call(self._name.replace("event_", "event."), session.handle, *parameters)


def login(url: str, user: str, password: str) -> Any:
    """Return a session that is logged in."""
    made: Any = Session(url) if XenAPI is None else XenAPI.Session(url, ignore_ssl=True)
    try:
        made.login_with_password(user, password, VERSION, ORIGINATOR)
    except BaseException:
        close(made)
        raise
    return made


def close(session: Any) -> None:
    """Close a session's connection."""
    (session.close if isinstance(session, Session) else session("close"))()


def failure() -> type[Exception]:
    """Return what sessions raise when a call fails."""
    kind: type[Exception] = Failure if XenAPI is None else XenAPI.Failure
    return kind


def _trusting() -> ssl.SSLContext:
    """Return a context that takes the daemon's own certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
