import itertools

import pytest

from app.jobs.machine import TABLE, TERMINAL, Event, IllegalTransitionError, State, advance


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


def test_only_a_running_job_succeeds() -> None:
    assert [state for state in State if (state, Event.SUCCEED) in TABLE] == [State.RUNNING]


def test_whatever_is_not_in_the_table_is_refused() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) not in TABLE:
            with pytest.raises(IllegalTransitionError, match=f"{state} cannot {event}"):
                advance(state, event)
