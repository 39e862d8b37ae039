"""A host behind a connection: what its protocol's values become on the way, and what a loss of it means."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast, get_type_hints

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct, structs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from hypervisor import api
from hypervisor.api import Backend, Code, HostError, Shutdown, StorageFailure, Truth
from tests.contract.hosts import Heard
from tests.fakes import FakeBackend
from tests.wires import InMemory
from xapi.host.remote import GUESTS, MOVES, TERMS, WORKS, RemoteBackend
from xapi.host.served import Served
from xapi.host.wire.connection import Terms
from xapi.host.wire.interface import encode, interface_of

UUID = "6d0bcb37-0001-4a1c-9f43-6a7f3c5ad0d1"
METHODS = {method.full_name: method for method in interface_of(Backend).every_method()}

st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))
for each in vars(api).values():
    if isinstance(each, type) and issubclass(each, Struct) and each is not Struct:
        fields = {name: st.from_type(hint) for name, hint in get_type_hints(each).items()}
        st.register_type_strategy(each, st.builds(each, **fields))


def test_all_that_the_protocols_have_is_carried() -> None:
    """Whatever is asked of a host, of its storage, and of the consoles and screens that it answers with."""
    named = {
        f"{protocol.__name__}.{name}"
        for protocol in (api.Backend, api.Storage, api.ByteStream, api.Screen, api.Listener)
        for name in vars(protocol)
        if not name.startswith("_") and callable(getattr(protocol, name))
    }
    assert named <= METHODS.keys() and len(named) > 40


TYPES = {
    str(kind): kind
    for method in METHODS.values()
    for kind in (method.answer, *(field.type for field in structs.fields(method.arguments)))
}


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_value_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    """Those of all types that any method takes, answers or yields."""
    kind = TYPES[name]
    value = data.draw(st.from_type(kind))
    written = encode(value)
    read = msgspec.msgpack.Decoder(kind).decode(written)
    assert encode(read) == written
    assert read == value or "nan" in repr(value)


class Away:
    """A host behind a connection in memory, and who listens to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.host = FakeBackend()
        self.endpoint = InMemory(self.served("one life"), self.clock)
        self.backend = cast("Backend", RemoteBackend(self.endpoint, self.clock))
        self.heard = Heard()

    def served(self, life: str) -> Served:
        """Return the other end; each process has a life of its own."""
        return Served(self.host, self.clock, life, lambda: None)

    def start(self, work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Begin something; return where its outcome will be."""
        ended: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(lambda result: ended.append(getattr(result, "value", result)))
        self.endpoint.turn()
        return ended

    def begin(self) -> Away:
        """Reach the host."""
        assert self.start(self.backend.start(self.heard)) == [None]
        return self

    def advance(self, seconds: float) -> None:
        """Let time pass, little by little."""
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)
            self.endpoint.turn()


def code_of(outcome: list[Any]) -> Code:
    (error,) = outcome
    assert isinstance(error, HostError)
    return error.code


def test_a_host_that_is_lost_is_told_of_and_looked_for() -> None:
    """What is under way fails, and all else at once, until it is up again."""
    away = Away().begin()
    away.host.held["shutdown"] = Deferred()
    waiting = away.start(away.backend.shutdown(UUID, Shutdown.POWEROFF))
    away.endpoint.refuses = True
    away.endpoint.cut()
    assert code_of(waiting) is Code.LOST
    away.advance(5)
    assert code_of(away.start(away.backend.stat(UUID))) is Code.LOST
    assert away.heard.told == ["up", "lost"]
    away.endpoint.refuses = False
    away.advance(2.5)
    assert away.heard.told == ["up", "lost", "up"]
    assert isinstance(away.start(away.backend.stat(UUID))[0], Truth)


def test_a_host_that_was_restarted_meanwhile_says_so() -> None:
    """It is known by the life of its process."""
    away = Away().begin()
    away.endpoint.factory = away.served("another life")
    away.endpoint.cut()
    away.advance(1)
    assert away.heard.told == ["up", "lost", "restarted"]


def test_a_host_that_is_not_there_at_first_is_lost_and_then_up() -> None:
    """Who begins it does not wait for it for ever."""
    away = Away()
    away.endpoint.refuses = True
    away.begin()
    assert away.heard.told == ["lost"]
    away.endpoint.refuses = False
    away.advance(1)
    assert away.heard.told == ["lost", "up"]


def test_who_leaves_a_host_looks_for_it_no_more() -> None:
    """And hears nothing of it."""
    away = Away().begin()
    assert away.start(away.backend.leave()) == [None]
    away.advance(30)
    assert away.heard.told == ["up"] and away.endpoint.pairs[0].halves[0].ended
    assert code_of(away.start(away.backend.stat(UUID))) is Code.LOST and not away.clock.getDelayedCalls()


def test_a_host_that_speaks_another_version_is_lost_for_a_reason_that_is_told() -> None:
    """It is looked for all the same: it may be replaced."""
    away = Away()
    old = Served(away.host, away.clock, "old", lambda: None)
    old.terms = Terms(TERMS.service, 99, TERMS.errors)
    away.endpoint.factory = old
    away.begin()
    outcome = away.start(away.backend.stat(UUID))
    assert code_of(outcome) is Code.LOST and "version of the service" in str(outcome[0])


def test_attention_comes_through() -> None:
    """Whatever domain it is of."""
    away = Away().begin()
    away.host.attention(UUID)
    away.endpoint.turn()
    assert away.heard.told == ["up", UUID]


def test_an_answer_that_does_not_come_in_time_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is cancelled over there, and the connection goes on."""
    away = Away().begin()
    ended: list[str] = []

    async def never(uuid: str) -> Truth:
        try:
            await Deferred[None]()
        except CancelledError:
            ended.append(uuid)
            raise
        raise AssertionError

    monkeypatch.setattr(away.host, "stat", never)
    outcome = away.start(away.backend.stat(UUID))
    away.advance(api.ANSWER - 1)
    assert outcome == []
    away.advance(2)
    assert code_of(outcome) is Code.LATE and ended == [UUID]
    assert away.heard.told == ["up"] and away.start(away.backend.domains()) == [()]


def test_what_may_take_long_is_named_as_the_protocol_has_it() -> None:
    """A method that is renamed there is renamed here."""
    assert {f"Backend.{name}" for name in GUESTS | WORKS} | {f"Storage.{name}" for name in MOVES} <= METHODS.keys()


def test_errors_of_storage_keep_their_numbers() -> None:
    """The text too."""
    failed = TERMS.errors.failed(1, StorageFailure(46, "in use"))
    assert failed is not None
    error = TERMS.errors.error(failed)
    assert isinstance(error, StorageFailure) and (error.number, str(error)) == (46, "in use")


def test_a_host_that_is_to_wait_for_nobody_ends_when_it_is_left() -> None:
    """Also where nobody comes at first; not while somebody is there."""
    away, stopped = Away(), list[str]()
    away.endpoint.factory = Served(away.host, away.clock, "a life", lambda: stopped.append("stopped"), 10.0)
    away.advance(9)
    away.begin()
    away.advance(30)
    assert stopped == []
    away.endpoint.refuses = True
    away.endpoint.cut()
    away.advance(9)
    assert stopped == []
    away.advance(2)
    assert stopped == ["stopped"]
