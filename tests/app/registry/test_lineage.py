"""Where a version came from, and how it differs from another, as the manifests say it."""

from collections.abc import Callable
from typing import Any

from app.registry.lineage import differences, lineage
from app.registry.registry import Registry
from export.bundle import Layer, Lipschitz, Manifest, Training


def trained(make: Callable[..., Any], sigma: float, *, accuracy: float, seed: int) -> tuple[Manifest, dict[str, bytes]]:
    manifest, files = make(b"graph %f" % sigma)
    layer = Layer.model_validate(
        {
            "name": "0", "kind": "linear", "shape": (2, 2), "norm": "operator", "constraint": "unit", "target": 1.0,
            "sigma_estimate": sigma,
            "sigma_upper": sigma, "operator_sigma_upper": sigma, "folded_sigma_upper": 0.5, "stable_rank": 1.0,
        }
    )  # fmt: skip
    training = Training(data_digest="d" * 64, hyperparameters={"n_epochs": 3}, metrics={"accuracy": accuracy}, seed=seed)
    bound = Lipschitz(bound=sigma / 2, rigorous=True, method="product")
    return manifest.model_copy(update={"layers": (layer,), "training": training, "lipschitz": bound, "tools": {"numpy": "2"}}), files


def test_a_version_tells_its_parent_data_settings_and_its_sigmas_beside_those_of_its_parent(
    registry: Registry, make: Callable[..., Any]
) -> None:
    registry.publish("digits", *trained(make, 3.0, accuracy=0.5, seed=1))
    registry.publish("digits", *trained(make, 4.0, accuracy=0.75, seed=2), parent="1", job="ftjob-1")
    registry.set_alias("digits", "stable", "2", who="anna")
    about = lineage(registry, "digits", "2")
    told = {name: about[name] for name in ("parent", "job", "aliases", "seed", "hyperparameters", "data_digest", "tools", "gradient_mode")}
    assert told == {
        "parent": "digits:1", "job": "ftjob-1", "aliases": ["stable"], "seed": 2, "hyperparameters": {"n_epochs": 3},
        "data_digest": "d" * 64, "tools": {"numpy": "2"}, "gradient_mode": "full",
    }  # fmt: skip
    assert about["sigma"] == [{"layer": "0", "before": 3.0, "after": 4.0, "folded": 0.5}]
    assert about["lipschitz_bound"] == {"before": 1.5, "after": 2.0}
    assert lineage(registry, "digits", "1")["sigma"] == [{"layer": "0", "before": None, "after": 3.0, "folded": 0.5}]


def test_two_versions_stand_side_by_side_with_what_changed(make: Callable[..., Any]) -> None:
    first, second = trained(make, 3.0, accuracy=0.5, seed=1)[0], trained(make, 4.0, accuracy=0.75, seed=1)[0]
    rows = {row["what"]: row for row in differences(first, second)}
    assert rows["sigma_upper of 0"] == {"what": "sigma_upper of 0", "a": 3.0, "b": 4.0, "change": 1.0, "differs": True}
    assert rows["accuracy (metric)"]["change"] == 0.25
    assert rows["lipschitz_bound"]["change"] == 0.5
    assert not rows["seed"]["differs"]
    assert rows["gradient_mode"]["change"] is None


def test_a_layer_that_only_one_of_them_has_is_told(make: Callable[..., Any]) -> None:
    first, second = trained(make, 3.0, accuracy=0.5, seed=1)[0], make(b"graph")[0]
    rows = {row["what"]: row for row in differences(first, second)}
    assert (rows["sigma_upper of 0"]["b"], rows["sigma_upper of 0"]["change"]) == (None, None)
