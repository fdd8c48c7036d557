"""The states of a job and what leads from one to another: two tables, and nothing else."""

from enum import StrEnum

from app.errors import ConflictError


class State(StrEnum):
    """Where a job is. A job that is held back keeps its state; why a job failed is its error code."""

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
    PAUSE = "pause"
    RESUME = "resume"
    RELEASE = "release"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"


class IllegalTransitionError(ConflictError):
    """This cannot happen to a job in its state."""


TABLE: dict[tuple[State, Event], State] = {
    (State.VALIDATING, Event.ACCEPT): State.QUEUED,
    (State.VALIDATING, Event.PAUSE): State.VALIDATING,
    (State.VALIDATING, Event.RESUME): State.VALIDATING,
    (State.VALIDATING, Event.RELEASE): State.VALIDATING,
    (State.VALIDATING, Event.FAIL): State.FAILED,
    (State.VALIDATING, Event.CANCEL): State.CANCELLED,
    (State.QUEUED, Event.START): State.RUNNING,
    (State.QUEUED, Event.PAUSE): State.QUEUED,
    (State.QUEUED, Event.RESUME): State.QUEUED,
    (State.QUEUED, Event.RELEASE): State.QUEUED,
    (State.QUEUED, Event.FAIL): State.FAILED,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.PAUSE): State.RUNNING,
    (State.RUNNING, Event.RESUME): State.RUNNING,
    (State.RUNNING, Event.RELEASE): State.QUEUED,
    (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
}

HOLDS: dict[tuple[bool, Event], bool] = {(False, Event.PAUSE): True, (True, Event.RESUME): False}
"""Whether an open job is held back, by whether it was and by the event; every other event leaves that as it is."""

TERMINAL = frozenset(state for state in State if all(start is not state for start, _ in TABLE))

LEAVES = frozenset({Event.RELEASE, Event.SUCCEED, Event.FAIL, Event.CANCEL})
"""After these nobody works at the job any more."""

_PASSIVE = {
    Event.ACCEPT: "accepted",
    Event.START: "started",
    Event.PAUSE: "paused",
    Event.RESUME: "resumed",
    Event.RELEASE: "put back",
    Event.SUCCEED: "finished",
    Event.FAIL: "failed",
    Event.CANCEL: "cancelled",
}


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
        raise IllegalTransitionError(f"a job that is {state} cannot be {_PASSIVE[event]}") from None


def hold(state: State, event: Event, *, paused: bool) -> bool:
    """Return whether the job is held back after ``event``, which is a pause or a resume.

    Raises:
        IllegalTransitionError: the job has ended, or is held back (or not) already.
    """
    advance(state, event)
    try:
        return HOLDS[paused, event]
    except KeyError:
        raise IllegalTransitionError(f"a job that is {'paused' if paused else state} cannot be {_PASSIVE[event]}") from None


def told(state: State, *, paused: bool, worked_at: bool) -> State:
    """Return the state that a client is told: a job that is held back waits, whatever it waits for."""
    return State.QUEUED if paused and not worked_at and state not in TERMINAL else state
