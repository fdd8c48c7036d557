"""Runs in memory that is bound once give what other runs give, and keep nothing of the run before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.errors import InvalidRequestError
from app.inference.session import Session, Stop
from app.settings import Settings


@pytest.fixture
def session(models: Any, settings_with: Callable[..., Settings]) -> Callable[[Any], Session]:
    return lambda artifact: Session(artifact.model, artifact.manifest, settings_with())


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)}


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_bound_run_gives_the_bits_of_any_other(models: Any, session: Callable[[Any], Session], count: int) -> None:
    own = session(models.affine(2.0))
    own.run(rows(count))
    assert own._bindings.find(rows(count)) is not None
    for seed in range(3):
        bound, plain = own.run(rows(count, seed)), own.run(rows(count, seed), Stop())
        assert {name: array.tobytes() for name, array in bound.items()} == {name: array.tobytes() for name, array in plain.items()}


def test_what_a_run_gave_outlasts_the_next_one(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.affine(2.0))
    first = own.run(rows(2, 1))
    first = own.run(rows(2, 1))
    copied = {name: array.copy() for name, array in first.items()}
    own.run(rows(2, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, copied[name])


def test_numbers_that_lie_apart_in_memory_are_read_in_order(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.affine(2.0))
    apart = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, :3]
    for _ in range(2):
        np.testing.assert_array_equal(own.run({"input": apart})["logits"], 2 * apart)


def test_numbers_of_another_type_are_refused_as_in_any_other_run(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.affine())
    own.run(rows(1))
    with pytest.raises(InvalidRequestError):
        own.run({"input": rows(1)["input"].view(np.int32)})
    np.testing.assert_array_equal(own.run(rows(1))["logits"], rows(1)["input"])


def test_a_bound_run_that_fails_is_the_callers_fault_and_the_next_goes_well(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.gather())
    good, bad = ({"input": np.array([[number]], np.int64)} for number in (1, 99))
    expected = own.run(good)["output"]
    assert own._bindings.find(good) is not None
    with pytest.raises(InvalidRequestError):
        own.run(bad)
    np.testing.assert_array_equal(own.run(good)["output"], expected)


def test_runs_that_are_large_or_of_unknown_size_are_not_bound(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.affine())
    for count in (0, 10_000):
        own.run(rows(count))
        assert own._bindings.find(rows(count)) is None
    centred = session(models.centred())  # its rows depend on each other
    centred.run(rows(2))
    assert centred._bindings.find(rows(2)) is None


def test_no_more_shapes_are_bound_than_a_service_can_hold(models: Any, session: Callable[[Any], Session]) -> None:
    own = session(models.affine())
    for count in range(1, 300):
        own.run(rows(count))
    assert len(own._bindings._bound) <= 128
