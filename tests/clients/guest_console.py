"""A guest's shell as a client of the API reaches it: CONNECT /console, then a terminal."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PROMPT = b"demo> "
SECONDS = 60


class GuestConsole:
    """The shell of a demo guest on a running VM. `run` types a command and returns what it printed."""

    def __init__(self, client: Any, address: str, vm: str, prompt: bytes = PROMPT) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        assert parts.port is not None
        self._prompt = prompt
        self._wire = socket.create_connection((parts.hostname, parts.port), timeout=SECONDS)
        query = f"ref={vm}&session_id={client._session}"
        self._wire.sendall(f"CONNECT /console?{query} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._some(1)
        assert head.startswith(b"HTTP/1.1 200"), head

    def _some(self, most: int = 65536) -> bytes:
        data = self._wire.recv(most)
        assert data, "the console was closed"
        return data

    def prompt(self) -> GuestConsole:
        """Wait until the shell asks for a command."""
        self._wire.sendall(b"\r")
        self._until_prompt()
        return self

    def _until_prompt(self) -> bytes:
        heard = b""
        while not heard.rstrip(b" ").endswith(self._prompt.rstrip(b" ")):
            heard += self._some()
        return heard

    def run(self, command: str) -> str:
        """Run a command; a mark tells its own output from what came before."""
        mark = f"mark{time.monotonic_ns()}"
        self._wire.sendall(f"{command}\r{mark}\r".encode())
        heard = b""
        while mark.encode() + b"\r\n" not in heard and mark.encode() + b"\n" not in heard:
            heard += self._some()
        while not heard.split(mark.encode())[-1].rstrip(b" ").endswith(self._prompt.rstrip(b" ")):
            heard += self._some()
        text = heard.decode().replace("\r", "").split(mark)[0]
        return text.partition(command + "\n")[2] or text

    def type(self, command: str) -> None:
        """Type a command, without waiting."""
        self._wire.sendall(command.encode() + b"\r")

    def values(self, command: str) -> dict[str, str]:
        """Run a command; return its lines `key: value`."""
        return dict(re.findall(r"^([^:\n]+): ?(.*)$", self.run(command), re.MULTILINE))

    def until(self, command: str, found: Callable[[str], bool]) -> str:
        """Repeat a command until its output is as wanted."""
        deadline = time.monotonic() + SECONDS
        while not found(text := self.run(command)):
            assert time.monotonic() < deadline, text
        return text

    def close(self) -> None:
        self._wire.close()


class LinuxConsole(GuestConsole):
    """The shell of a Linux guest; it need not say when it is ready, so a prompt is not waited for."""

    def run(self, command: str) -> str:
        """Run a command and return its output; it must succeed."""
        mark = f"mark{time.monotonic_ns()}"
        # The guest echoes until the first of these lines has been read: only an answer has a number behind the mark.
        self._wire.sendall(f"stty -echo; PS1=; echo {mark}=$?=\n{command}\necho {mark}=$?=\n".encode())
        answer = re.compile(rf"{mark}=(\d+)=\r?\n".encode())
        heard = b""
        while len(found := list(answer.finditer(heard))) < 2:
            heard += self._some()
        text = heard[found[0].end() : found[1].start()].decode(errors="replace").replace("\r", "").strip()
        assert found[1][1] == b"0", text
        return text
