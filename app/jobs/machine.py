"""The states of a job and what leads from one to another: a table, and nothing else."""

from enum import StrEnum

from app.errors import ConflictError


class State(StrEnum):
    """Where a job is. Pause is ``queued`` with a flag; why a job failed is its error code."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to a job."""

    ACCEPT = "accept"
    START = "start"
    RELEASE = "release"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


class IllegalTransitionError(ConflictError):
    """This cannot happen to a job in its state."""


TABLE: dict[tuple[State, Event], State] = {
    (State.VALIDATING, Event.ACCEPT): State.QUEUED,
    (State.VALIDATING, Event.RELEASE): State.VALIDATING,
    (State.VALIDATING, Event.FAIL): State.FAILED,
    (State.VALIDATING, Event.CANCEL): State.CANCELLED,
    (State.QUEUED, Event.START): State.RUNNING,
    (State.QUEUED, Event.RELEASE): State.QUEUED,
    (State.QUEUED, Event.FAIL): State.FAILED,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.RELEASE): State.QUEUED,
    (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
}

TERMINAL = frozenset(state for state in State if all(start is not state for start, _ in TABLE))


def advance(state: State, event: Event) -> State:
    """Return the state after ``event``.

    >>> advance(State.QUEUED, Event.START)
    <State.RUNNING: 'running'>

    Raises:
        IllegalTransitionError: ``event`` means nothing in ``state``.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalTransitionError(f"a job that is {state} cannot {event}") from None
