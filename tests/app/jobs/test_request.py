from typing import Any

import pytest

from app.errors import InvalidRequestError
from app.jobs.request import GRADIENT_MODES, Hyperparameters, parse


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "digits", "training_file": "file-1", **fields}


def supervised(**fields: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": fields}}


@pytest.mark.parametrize(
    "place",
    [
        {"method": supervised(gradient_mode="simplified")},
        {"hyperparameters": {"gradient_mode": "simplified"}},
        {"gradient_mode": "simplified"},
        {
            "method": supervised(gradient_mode="simplified"),
            "hyperparameters": {"gradient_mode": "simplified"},
            "gradient_mode": "simplified",
        },
    ],
)
def test_gradient_mode_may_stand_in_three_places(place: dict[str, Any]) -> None:
    assert parse(body(**place)).hyperparameters.gradient_mode == "simplified"


@pytest.mark.parametrize(
    "places",
    [
        {"method": supervised(gradient_mode="full"), "hyperparameters": {"gradient_mode": "simplified"}},
        {"method": supervised(gradient_mode="full"), "gradient_mode": "simplified"},
        {"hyperparameters": {"gradient_mode": "full"}, "gradient_mode": "simplified"},
        {"seed": 1, "method": supervised(seed=2)},
    ],
)
def test_places_that_disagree_are_refused(places: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="but"):
        parse(body(**places))


@pytest.mark.parametrize("mode", ["approximate", "FULL", "", 1, ["full"], {}])
def test_an_unknown_gradient_mode_is_answered_with_those_there_are(mode: Any) -> None:
    with pytest.raises(InvalidRequestError, match="full, simplified") as caught:
        parse(body(gradient_mode=mode))
    assert caught.value.param == "method.supervised.hyperparameters.gradient_mode"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_epochs", 0),
        ("n_epochs", 1.5),
        ("n_epochs", "3"),
        ("n_epochs", True),
        ("learning_rate", True),
        ("learning_rate", "0.1"),
        ("batch_size", -1),
        ("batch_size", "many"),
        ("learning_rate", 0),
        ("learning_rate", 1e31),
        ("learning_rate", float("inf")),
        ("optimizer", "lbfgs"),
        ("weight_decay", -0.1),
        ("loss", "hinge"),
        ("temperature", 0),
        ("power_iterations", 0),
        ("checkpoint_every", 0),
        ("seed", -1),
        ("seed", 2**31),
        ("command", "rm"),
    ],
)
def test_a_hyperparameter_out_of_its_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(body(method=supervised(**{field: value})))
    assert caught.value.param == f"method.supervised.hyperparameters.{field}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "digits:0"}, "model"),
        ({"model": "../digits"}, "model"),
        ({"model": None}, "model"),
        ({"suffix": "a/b"}, "suffix"),
        ({"suffix": "x" * 40, "model": "m" * 30}, "suffix"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"promote": "always"}, "promote"),
        ({"promote": "if_not_worse"}, "validation_file"),
        ({"url": "http://127.0.0.1/"}, "url"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": "supervised"}, "method"),
        ({"hyperparameters": []}, None),
        ({"hyperparameters": 0}, "hyperparameters"),
        ({"method": {"supervised": 0}}, "method.supervised"),
        ({"method": {"supervised": {"hyperparameters": ""}}}, "method.supervised.hyperparameters"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"dry_run": 1}, "dry_run"),
        ({"priority": True}, "priority"),
        ({"max_seconds": "60"}, "max_seconds"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"training_file": 7}, "training_file"),
    ],
)
def test_a_bad_field_of_a_job_is_named(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        assert parse(body(**fields)).model == "digits"  # an empty list says nothing
        return
    with pytest.raises(InvalidRequestError) as caught:
        parse(body(**fields))
    assert caught.value.param == param


@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_a_body_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="JSON object"):
        parse(value)


def test_auto_takes_the_default() -> None:
    chosen = parse(body(hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"})).hyperparameters
    assert chosen == Hyperparameters()


def test_the_multiplier_stands_instead_of_the_rate() -> None:
    assert parse(body(hyperparameters={"learning_rate_multiplier": 2})).hyperparameters.learning_rate == 2 * Hyperparameters().learning_rate
    with pytest.raises(InvalidRequestError, match="not both"):
        parse(body(hyperparameters={"learning_rate_multiplier": 2, "learning_rate": 0.1}))


def test_the_suffix_names_another_model() -> None:
    assert parse(body()).target == "digits"
    assert parse(body(suffix="mine", model="digits:3")).target == "digits-mine"


def test_the_hyperparameters_are_those_of_training() -> None:
    from specnorm_core.functional import GRADIENTS
    from specnorm_core.training import Hyperparameters as Trained

    ours, theirs = (kind.model_json_schema()["properties"] for kind in (Hyperparameters, Trained))
    for fields in (ours, theirs):
        for field in fields.values():
            field.pop("description", None)
    assert ours.pop("learning_rate_multiplier")
    assert ours.pop("gradient_mode")["anyOf"][0]["enum"] == theirs.pop("gradient_mode")["enum"]
    assert ours.pop("privacy").keys() == theirs.pop("privacy").keys()
    assert ours == theirs
    assert sorted(GRADIENTS) == list(GRADIENT_MODES)


@pytest.mark.parametrize("field", ["learning_rate", "learning_rate_multiplier"])
@pytest.mark.parametrize("value", [1e-300, 1e-3, 7.0, 1e29, 1e30])
def test_what_was_accepted_can_be_read_back(field: str, value: float) -> None:
    request = parse(body(hyperparameters={field: value}))
    assert type(request).model_validate(request.model_dump()) == request


def test_a_multiplier_so_small_that_no_rate_is_left_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        parse(body(hyperparameters={"learning_rate_multiplier": 5e-324}))


def test_the_fields_of_privacy_are_those_of_training() -> None:
    from app.jobs.request import Privacy
    from specnorm_core.privacy import Privacy as Trained

    ours, theirs = (kind.model_json_schema()["properties"] for kind in (Privacy, Trained))
    for fields in (ours, theirs):
        for field in fields.values():
            field.pop("description", None)
    assert ours.pop("validation_is_public")
    assert theirs.pop("secure")  # at the endpoint there is no choice
    assert ours == theirs


PRIVATE = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}


def test_a_private_job_is_asked_for_among_the_hyperparameters() -> None:
    request = parse(body(hyperparameters={"privacy": PRIVATE}))
    assert request.hyperparameters.privacy is not None
    assert request.hyperparameters.privacy.noise_multiplier == 1.0
    assert type(request).model_validate(request.model_dump()) == request
    assert parse(body()).hyperparameters.privacy is None


@pytest.mark.parametrize(
    ("privacy", "param", "sentence"),
    [
        ({**PRIVATE, "target_epsilon": 3.0}, "privacy", "one of the two, not both"),
        ({"max_grad_norm": 1.0, "delta": 1e-5}, "privacy", "one of the two, not both"),
        ({**PRIVATE, "delta": 0}, "privacy.delta", "greater than 0"),
        ({**PRIVATE, "delta": 1}, "privacy.delta", "less than 1"),
        ({**PRIVATE, "max_grad_norm": -1.0}, "privacy.max_grad_norm", "greater than 0"),
        ({**PRIVATE, "noise_multiplier": 0.0}, "privacy.noise_multiplier", "greater than 0"),
        ({**PRIVATE, "secure": False}, "privacy.secure", "known are accountant, delta, max_grad_norm"),
        ({"noise_multiplier": 1.0, "delta": 1e-5}, "privacy.max_grad_norm", "required"),
        ("yes", "privacy", "valid dictionary"),
    ],
)
def test_a_bad_wish_for_privacy_is_named(privacy: Any, param: str, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence) as caught:
        parse(body(hyperparameters={"privacy": privacy}))
    assert caught.value.param == f"method.supervised.hyperparameters.{param}"


@pytest.mark.parametrize("place", [{"seed": 3}, {"hyperparameters": {"privacy": PRIVATE, "seed": 0}}])
def test_a_private_job_takes_no_seed(place: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="takes no seed"):
        parse(body(**{"hyperparameters": {"privacy": PRIVATE}, **place}))


def test_a_private_job_is_judged_by_rows_that_are_public_only() -> None:
    fields = {"validation_file": "file-2", "promote": "if_not_worse"}
    with pytest.raises(InvalidRequestError, match="its rows need no protection"):
        parse(body(hyperparameters={"privacy": PRIVATE}, **fields))
    public = {**PRIVATE, "validation_is_public": True}
    assert parse(body(hyperparameters={"privacy": public}, **fields)).promote == "if_not_worse"
    with pytest.raises(InvalidRequestError, match="needs a validation_file"):
        parse(body(hyperparameters={"privacy": public}, promote="if_not_worse"))
