"""The run queue and the deadlines against models with a clock of the test's; the alarm; errors of our own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.arch.x86_64.cpu.overlay import RAX, RDI, RDX, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host
from hypervisor.scheduling.alarm import Alarm
from hypervisor.scheduling.run_queue import DEBT, SLICE, WEIGHT, WINDOW, Deadlines, Entity, RunQueue
from hypervisor.scheduling.scheduler import Scheduler
from tests.machines import machine
from tests.x86_64 import cpu_of

PCPUS = 3
PAGE = 4096


def an_entity(weight: int = WEIGHT, cap: int = 0, affinity: frozenset[int] | None = None) -> Entity:
    return Entity(None, weight, cap, affinity)  # type: ignore[arg-type]


class Queueing(RuleBasedStateMachine):
    """Any order of queueing, taking, charging and leaving, against a list that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RunQueue(PCPUS)
        self.now = 0.0
        self.entities: list[Entity] = []
        self.waiting: list[Entity] = []

    @rule(weight=st.sampled_from([1, 64, 256, 1024]), affinity=st.none() | st.frozensets(st.integers(0, 2), min_size=1))
    def make(self, weight: int, affinity: frozenset[int] | None) -> None:
        self.entities.append(an_entity(weight, affinity=affinity))

    @precondition(lambda self: self.entities)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        entity = data.draw(st.sampled_from(self.entities))
        before, running = entity.virtual, entity.pcpu is not None
        self.queue.put(entity)
        if not running and entity not in self.waiting:
            self.waiting.append(entity)
        else:
            assert entity.virtual == before

    @rule(pcpu=st.integers(0, PCPUS - 1))
    def take(self, pcpu: int) -> None:
        if self.queue.running[pcpu] is not None:
            return
        may = [entity for entity in self.waiting if entity.affinity is None or pcpu in entity.affinity]
        assert self.queue.waiting(pcpu) == bool(may)
        taken = self.queue.take(pcpu, self.now)
        if not may:
            assert taken is None
            return
        assert taken is min(may, key=lambda entity: entity.virtual)  # of equals the first to come: min takes the first
        assert (taken.pcpu, taken.slice_end) == (pcpu, self.now + SLICE)
        self.waiting.remove(taken)

    @rule(pcpu=st.integers(0, PCPUS - 1), seconds=st.floats(0.0001, 0.05))
    def run(self, pcpu: int, seconds: float) -> None:
        entity = self.queue.running[pcpu]
        self.now += seconds
        if entity is not None:
            before = entity.used, entity.virtual
            entity.charge(seconds, self.now)
            assert entity.used == before[0] + seconds
            assert entity.virtual > before[1]

    @rule(pcpu=st.integers(0, PCPUS - 1))
    def leave(self, pcpu: int) -> None:
        entity = self.queue.running[pcpu]
        if entity is not None:
            self.queue.leave(entity)
            assert entity.pcpu is None

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entity = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(entity)
        assert not self.queue.remove(entity)
        self.waiting.remove(entity)

    @invariant()
    def consistent(self) -> None:
        assert [entity for entity in self.entities if entity.queued] == [e for e in self.entities if e in self.waiting]
        for pcpu, entity in enumerate(self.queue.running):
            assert entity is None or (entity.pcpu == pcpu and entity.may_run_on(pcpu) and not entity.queued)


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@dataclass
class Simulation:
    """Domains that always want to run, on pCPUs of a machine that is simulated slice by slice."""

    entities: list[Entity]
    pcpus: int
    now: float = 0.0
    queue: RunQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = RunQueue(self.pcpus)

    def run(self, seconds: float) -> list[float]:
        """Run for so long; return the share of a pCPU that each got."""
        before = [entity.used for entity in self.entities]
        end = self.now + seconds
        begun = self.now
        while self.now < end:
            for entity in self.entities:
                if entity.pcpu is None and entity.capped_until(self.now) <= self.now:
                    self.queue.put(entity)
            taken = [self.queue.take(pcpu, self.now) for pcpu in range(self.pcpus)]
            step = min(SLICE, *(entity.run_end - self.now for entity in taken if entity), SLICE) + 1e-6
            self.now += step
            for running in taken:
                if running is not None:
                    running.charge(step, self.now)
                    self.queue.leave(running)
        return [(entity.used - start) / (self.now - begun) for entity, start in zip(self.entities, before)]


@given(st.lists(st.sampled_from([64, 128, 256, 512, 1024]), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_shares_of_a_pcpu_are_those_of_the_weights(weights: list[int]) -> None:
    simulation = Simulation([an_entity(weight) for weight in weights], 1)
    simulation.run(1.0)
    shares = simulation.run(10.0)
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], rel=0.05)


def test_a_cap_is_kept_over_time_and_what_it_leaves_goes_to_others() -> None:
    simulation = Simulation([an_entity(cap=25), an_entity()], 1)
    assert simulation.run(10.0) == pytest.approx([0.25, 0.75], rel=0.02)


def test_a_weight_beyond_what_one_pcpu_gives_leaves_the_rest_to_others() -> None:
    """Of two pCPUs a domain on one thread can use one; two others share the second."""
    simulation = Simulation([an_entity(4096), an_entity(), an_entity()], 2)
    simulation.run(1.0)
    assert simulation.run(10.0) == pytest.approx([1.0, 0.5, 0.5], rel=0.05)


def test_a_domain_that_slept_is_owed_one_slice_at_most() -> None:
    """An hour of sleep is not paid back at the cost of the others."""
    sleeper, other = an_entity(), an_entity()
    Simulation([other], 1).run(1.0)
    simulation = Simulation([other], 1)
    simulation.run(3.0)
    simulation.entities.append(sleeper)
    first, second = simulation.run(0.2)
    assert second - first <= (2 * SLICE) / 0.2 + 0.05


def test_a_domain_does_not_pay_long_for_time_that_nobody_else_wanted() -> None:
    """One that had a pCPU to itself and is then bound to another's."""
    rich, poor = an_entity(affinity=frozenset({0})), an_entity(affinity=frozenset({1}))
    simulation = Simulation([rich], 2)
    simulation.run(5.0)
    rich.affinity = frozenset({1})
    simulation.entities.append(poor)
    first, second = simulation.run(2.0)
    assert first == pytest.approx(second, abs=(DEBT + SLICE) / 2)


def test_time_used_too_much_counts_in_the_next_windows() -> None:
    """A guest that cannot be stopped at once gains nothing by it."""
    entity = an_entity(cap=10)
    entity.charge(0.031, 0.03)
    assert entity.capped_until(0.03) == WINDOW
    assert entity.capped_until(0.15) == pytest.approx(2 * WINDOW)
    assert entity.capped_until(0.25) == pytest.approx(3 * WINDOW)
    assert entity.capped_until(0.35) == 0.35


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 10) | st.just(1e19)), max_size=300))
def test_deadlines_come_in_order_and_only_the_last_of_each_holds(changes: list[tuple[int, float | None]]) -> None:
    entities = [an_entity() for _ in range(6)]
    deadlines, model = Deadlines(), {}
    for number, when in changes:
        if when is not None:
            model[number] = when
        else:
            model.pop(number, None)
        deadlines.set(entities[number], when)
        assert deadlines.first() == min(model.values(), default=None)
    assert len(deadlines) == len(model)
    came = []
    while (entity := deadlines.due(5.0)) is not None:
        came.append(model[entities.index(entity)])
        del model[entities.index(entity)]
    assert came == sorted(came)
    assert not any(when <= 5.0 for when in model.values())


def test_a_timer_that_is_moved_for_ever_costs_no_memory() -> None:
    deadlines, entity = Deadlines(), an_entity()
    for when in range(100_000):
        deadlines.set(entity, float(-when))
    assert len(deadlines._heap) < 100
    assert deadlines.first() == -99_999.0


# The alarm


def test_an_alarm_is_moved_without_waking_who_waits_for_it() -> None:
    """Later, then to another time, then at once; each time of the 64 bits that guests may name is taken."""
    alarm, heard = Alarm(), []

    def wait() -> None:
        for _ in range(2):
            alarm.wait()
            heard.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    begun = time.monotonic()
    for when in (begun + 1e11, begun + 0.1, 1.8e19 / 1e9, begun + 0.05):
        alarm.set(when)
    while len(heard) < 1:
        pass
    alarm.heard()
    assert heard[0] >= begun + 0.05
    alarm.set(-1.0)
    thread.join(5)
    alarm.close()
    assert len(heard) == 2


# The scheduler's face


@pytest.fixture
def host() -> Iterator[Host]:
    with machine(64 << 20, 2, threads=True) as made:
        yield made


CODE = 0x100000


def a_guest(host: Host, code: str) -> Domain:
    """A domain about to execute code in 64-bit mode."""
    domain = host.create([(0, 4 << 20)])
    cpu = cpu_of(domain)
    long_mode(cpu.engine, cpu.overlay)
    domain.memory.write(CODE, bytes.fromhex(code))
    cpu.overlay.regs.rip = CODE
    domain.vcpus[0].up = True
    return domain


def ended(domain: Domain) -> None:
    end = time.monotonic() + 20
    while domain.life.reason is None:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_cannot_be_is_refused(host: Host) -> None:
    domain = a_guest(host, "f4")
    for wrong in ({"weight": 0}, {"weight": 65536}, {"cap": -1}, {"pcpus": [2]}):
        with pytest.raises(ValueError, match=r"\S"):
            host.scheduler.adjust(domain.domid, **wrong)
    with pytest.raises(KeyError):
        host.scheduler.adjust(999, weight=1)
    host.scheduler.adjust(domain.domid, weight=7, cap=150, pcpus=[1])
    entity = host.scheduler.entities[domain.domid]
    assert (entity.weight, entity.cap, entity.affinity) == (7, 150, frozenset({1}))
    host.scheduler.adjust(domain.domid, pcpus=[])
    assert (entity.weight, entity.cap, entity.affinity) == (7, 150, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Unicorn's binding returns None then
@pytest.mark.parametrize("where", ["hypercall", "cpuid", "port", "posted", "listener"])
def test_an_error_of_ours_costs_one_domain_its_life_and_no_more(
    host: Host, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged with its traceback, the pCPU's thread goes on, and another domain notices nothing."""
    domain = a_guest(host, {"cpuid": "0fa2 ebfe", "port": "ec ebfe"}.get(where, "0f01c1 ebfe"))

    def fail(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    if where == "posted":
        domain.events.post(fail)
    elif where == "port":
        cpu_of(domain).general[RDX] = 0xE9
        monkeypatch.setattr(domain.platform.console, "read", fail)
    elif where == "listener":
        host.listen(fail)
        domain.memory.write(CODE, bytes.fromhex("faf4"))
    else:
        monkeypatch.setattr(cpu_of(domain).platform, where, fail)
    with caplog.at_level(logging.ERROR):
        host.unpause(domain)
        ended(domain)
        host.scheduler.wait_until_off(host.scheduler.entities[domain.domid])
    assert "a bug" in caplog.text
    assert "Traceback" in caplog.text
    if where != "listener":
        assert (domain.life.state, domain.life.reason) == (State.SHUTDOWN, Reason.CRASH)
        assert domain.life.crash == "internal error: RuntimeError: a bug"
    others = [a_guest(host, "faf4") for _ in range(4)]
    for other in others:
        host.unpause(other)
    for other in others:
        ended(other)
        assert other.life.reason is Reason.POWEROFF


def test_an_error_in_a_decision_ends_no_thread(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the caller's nor the scheduler's own; the next look at the domain may go well."""
    domain = a_guest(host, "faf4")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(domain, "runnable", lambda: 1 // 0)
        host.unpause(domain)
    assert "ZeroDivisionError" in caplog.text
    assert domain.life.reason is None
    host.scheduler.look(domain.domid)
    ended(domain)


@pytest.mark.parametrize("when", [(1 << 64) - 1, 1 << 63, 1, 10**18])
def test_no_time_that_a_guest_names_stops_the_ticker(host: Host, when: int) -> None:
    """A timer of the year 2500 once ended the ticker's thread: no lock waits that long."""
    domain = a_guest(host, "0f01c1 fb f4 ebfc")
    cpu_of(domain).general[RAX], cpu_of(domain).general[RDI] = 15, when
    host.unpause(domain)
    time.sleep(0.02)
    assert any(thread.name == "ticker" and thread.is_alive() for thread in host.scheduler._threads)
    other = a_guest(host, "ebfe")
    host.unpause(other)
    host.pause(other)
    assert other.life.state is State.PAUSED


class Sleeping:
    """As much of a domain as the scheduler sees, which never has anything to do; counts how often it is asked."""

    def __init__(self, domid: int) -> None:
        self.domid, self.asked = domid, 0
        self.life, self.vcpus = SimpleNamespace(state=State.RUNNING), SimpleNamespace(woken=0)
        clock = SimpleNamespace(now=lambda: 0)
        self.events, self.time = SimpleNamespace(queued=()), SimpleNamespace(clock=clock, deadline=self.deadline)

    def runnable(self) -> bool:
        self.asked += 1
        return False

    def deadline(self) -> int | None:
        self.asked += 1
        return 10**12


def test_an_event_costs_the_same_with_many_domains() -> None:
    """Only the domain that it is for is looked at, whatever else sleeps."""
    scheduler, domains = Scheduler(4), [Sleeping(domid) for domid in range(1, 513)]
    for domain in domains:
        scheduler.add(domain)  # type: ignore[arg-type]
    before = [domain.asked for domain in domains]
    for _ in range(10):
        scheduler.look(7)
    asked = {domain.domid: domain.asked - was for domain, was in zip(domains, before) if domain.asked != was}
    assert asked == {7: 20}


def test_an_event_wakes_one_idle_pcpu_and_no_more() -> None:
    """The one that slept last."""
    with machine(64 << 20, 4, threads=True) as host:
        scheduler = host.scheduler
        end = time.monotonic() + 10
        while len(scheduler._idle) < 4:
            assert time.monotonic() < end
        pcpus = list(scheduler._idle)
        woken, notify = pcpus[:0], threading.Condition.notify

        def count(condition: threading.Condition, n: int = 1) -> None:
            woken.extend(pcpu for pcpu in pcpus if pcpu.woken is condition)  # other threads have conditions too
            notify(condition, n)

        domain = a_guest(host, "faf4")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Condition, "notify", count)
            host.unpause(domain)
            ended(domain)
        assert woken == pcpus[-1:]


def test_a_scheduler_without_threads_runs_nothing() -> None:
    """`Host.step` does, in its own order."""
    scheduler = Scheduler(1)
    host = Host(64 << 20, 1)
    domain = a_guest(host, "faf4")
    scheduler.add(domain)
    host.unpause(domain)
    assert domain.life.state is State.RUNNING
    assert not host.step(domain)
    assert domain.life.reason is Reason.POWEROFF
    host.destroy(domain)
