"""A domain's life, whatever is asked of it in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.domains.life import Life, Reason, State

STEPS = st.one_of(st.sampled_from(["pause", "unpause", "resume", "die"]), st.sampled_from(Reason))


@given(steps=st.lists(STEPS, max_size=30))
def test_a_domain_runs_only_while_nothing_holds_it_back(steps: Sequence[str | Reason]) -> None:
    """It goes down once a life, goes on only from a suspend, with one pause more, and never from its end."""
    told: list[Reason | None] = []
    life = Life(lambda: told.append(life.reason))
    pauses, suspends = 1, 0
    for step in steps:
        before, down = life.state, len(told)
        if isinstance(step, Reason):
            life.shut_down(step)
            assert len(told) == down + (before in (State.PAUSED, State.RUNNING))
        elif step == "pause":
            life.pause()
            pauses += 1
        elif step == "unpause":
            began = life.unpause()
            pauses = max(0, pauses - 1)
            assert began == (before is State.PAUSED and not pauses)
        elif step == "die":
            life.die()
        else:
            try:
                life.resume()
            except ValueError:
                assert (before, life.reason) != (State.SHUTDOWN, Reason.SUSPEND)
            else:
                pauses, suspends = pauses + 1, suspends + 1
                assert before is State.SHUTDOWN and told[-1] is Reason.SUSPEND
        assert life.pauses == pauses
        assert life.state is not State.RUNNING or not pauses
        assert life.state is not State.PAUSED or pauses
        assert (before is State.DYING) <= (life.state is State.DYING)
        assert (life.reason is None) <= (life.state is not State.SHUTDOWN)
    assert suspends <= told.count(Reason.SUSPEND)
