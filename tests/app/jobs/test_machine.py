import itertools

import pytest

from app.jobs.machine import HOLDS, TABLE, TERMINAL, Event, IllegalTransitionError, State, advance, hold, told


def test_the_terminal_states_are_the_three_ends() -> None:
    assert {State.SUCCEEDED, State.FAILED, State.CANCELLED} == TERMINAL


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_state_is_never_left(state: State, event: Event) -> None:
    with pytest.raises(IllegalTransitionError):
        advance(state, event)


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL))
def test_every_open_job_can_fail_be_cancelled_and_be_released(state: State) -> None:
    assert advance(state, Event.FAIL) is State.FAILED
    assert advance(state, Event.CANCEL) is State.CANCELLED
    assert advance(state, Event.RELEASE) in {State.VALIDATING, State.QUEUED}
    assert advance(state, Event.PAUSE) is advance(state, Event.RESUME) is state


def test_only_a_running_job_succeeds() -> None:
    assert [state for state in State if (state, Event.SUCCEED) in TABLE] == [State.RUNNING]


def test_whatever_is_not_in_the_table_is_refused() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) not in TABLE:
            with pytest.raises(IllegalTransitionError, match=f"a job that is {state} cannot be "):
                advance(state, event)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("paused", [False, True])
def test_only_an_open_job_that_goes_on_can_be_paused_and_only_one_that_is_paused_resumed(state: State, paused: bool) -> None:
    for event in Event:
        if state not in TERMINAL and (paused, event) in HOLDS:
            assert hold(state, event, paused=paused) is not paused
        else:
            with pytest.raises(IllegalTransitionError):
                hold(state, event, paused=paused)


@pytest.mark.parametrize("state", State)
def test_a_client_is_told_that_a_paused_job_is_queued_once_nobody_works_at_it(state: State) -> None:
    assert told(state, paused=True, worked_at=False) is (state if state in TERMINAL else State.QUEUED)
    assert told(state, paused=True, worked_at=True) is told(state, paused=False, worked_at=False) is state
