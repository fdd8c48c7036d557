"""The registry over HTTP, and a job's events as they happen."""

import json
import threading
import time
from typing import Any

import onnxruntime
import pytest

ROW = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


def answer(service: Any) -> tuple[str, list[float]]:
    found = service.http.post("/v2/models/affine/infer", json=ROW)
    assert found.status_code == 200, found.text
    return found.json()["model_version"], found.json()["outputs"][0]["data"]


def test_models_and_versions_with_their_manifests_are_listed(service: Any) -> None:
    (listed,) = service.http.get("/admin/models").json()
    assert {name: listed[name] for name in ("name", "live_version", "versions", "aliases")} == {
        "name": "affine", "live_version": "1", "versions": ["1", "2", "3"], "aliases": {}
    }  # fmt: skip
    versions = service.http.get("/admin/models/affine/versions").json()
    assert [line["version"] for line in versions] == ["1", "2", "3"]
    one = service.http.get("/admin/models/affine/versions/2").json()
    assert {name: value for name, value in one.items() if name != "lineage"} == versions[1]
    assert one["manifest"] == service.registry.manifest("affine", "2").model_dump(mode="json")


def test_lists_come_in_pages_and_each_names_the_next(service: Any) -> None:
    def pages(path: str) -> list[list[Any]]:
        found = [service.http.get(path)]
        while "next" in found[-1].links:
            found.append(service.http.get(found[-1].links["next"]["url"]))
        return [page.json() for page in found]

    def versions(query: str) -> list[list[str]]:
        return [[line["version"] for line in page] for page in pages(f"/admin/models/affine/versions?{query}")]

    assert versions("limit=2") == [["1", "2"], ["3"]]
    assert versions("limit=2&order=desc&manifests=false") == [["3", "2"], ["1"]]
    assert versions("limit=3") == [["1", "2", "3"]]
    assert versions("after=3") == [[]]
    assert all("manifest" in line for page in pages("/admin/models/affine/versions?limit=1") for line in page)
    assert not any("manifest" in line for page in pages("/admin/models/affine/versions?limit=1&manifests=false") for line in page)
    for wrong in ("limit=0", "limit=101", "after=0", "after=x", "order=up"):
        assert service.http.get(f"/admin/models/affine/versions?{wrong}").status_code == 400
    for version in ("2", "3", "1"):
        service.registry.promote("affine", version, why="test", who="test")
    moves = pages("/admin/models/affine/history?limit=3")
    assert [[line["to"] for line in page] for page in moves] == [["1", "2", "3"], ["1"]]
    assert service.http.get("/admin/models/nobody/history").status_code == 404


def test_the_sigma_report_is_what_the_manifest_says(service: Any) -> None:
    report = service.http.get("/admin/models/affine/sigma").json()
    manifest = service.registry.manifest("affine", "1")
    assert report["layers"] == [layer.model_dump(mode="json") for layer in manifest.layers]
    assert report["lipschitz"] == manifest.lipschitz.model_dump(mode="json")
    assert (report["model"], report["version"]) == ("affine", "1")
    assert service.http.get("/admin/models/affine/sigma?version=3").json()["version"] == "3"


def test_a_promotion_is_served_when_it_is_answered_and_a_rollback_too(service: Any) -> None:
    assert answer(service)[0] == "1"
    got = service.http.post("/admin/models/affine/promote", json={"version": "2"})
    assert got.json() == {"name": "affine", "live_version": "2", "previous_version": "1"}
    assert answer(service) == ("2", [2.0, 4.0, 6.0])
    got = service.http.post("/admin/models/affine/rollback")
    assert got.json() == {"name": "affine", "live_version": "1", "previous_version": "2"}
    assert answer(service) == ("1", [1.0, 2.0, 3.0])
    assert service.http.post("/admin/models/affine/rollback").status_code == 409
    lines = service.http.get("/admin/models/affine/history").json()
    assert [(line["what"], line["from"], line["to"]) for line in lines] == [
        ("promote", None, "1"), ("promote", "1", "2"), ("rollback", "2", "1"),
    ]  # fmt: skip
    assert lines[-1]["who"] == "local"


def test_a_promotion_and_a_rollback_under_a_key_are_done_once_and_told_again(service: Any) -> None:
    def send(act: str, key: str, **body: Any) -> Any:
        return service.http.post(f"/admin/models/affine/{act}", json=body or None, headers={"Idempotency-Key": key})

    live = service.registry.live("affine")
    first = send("promote", "a", version="2").json()
    assert first == {"name": "affine", "live_version": "2", "previous_version": live}
    back = send("rollback", "b").json()
    assert send("promote", "a", version="2").json() == first
    assert send("rollback", "b").json() == back
    assert service.registry.live("affine") == live
    refused = send("promote", "a", version="1")
    assert refused.status_code == 409
    assert "new key" in refused.json()["error"]


def test_a_version_that_cannot_be_loaded_does_not_become_live(service: Any) -> None:
    path = service.registry.blobs.store.path(service.registry.manifest("affine", "2").model_digest)
    path.write_bytes(b"rotten")
    got = service.http.post("/admin/models/affine/promote", json={"version": "2"})
    assert got.status_code == 503
    assert str(path.parent) not in got.text
    assert service.registry.live("affine") == "1"
    assert len(service.registry.history("affine")) == 1
    assert answer(service)[0] == "1"


def test_promotions_at_once_end_with_one_truth(service: Any) -> None:
    codes: list[int] = []

    def act(version: str) -> None:
        codes.append(service.http.post("/admin/models/affine/promote", json={"version": version}).status_code)

    threads = [threading.Thread(target=act, args=(str(1 + number % 3),)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 9
    history = service.registry.history("affine")
    assert [line["from"] for line in history[1:]] == [line["to"] for line in history[:-1]]
    assert answer(service)[0] == service.registry.live("affine") == history[-1]["to"]


def test_the_live_version_is_not_deleted_and_another_is(service: Any) -> None:
    assert service.http.delete("/admin/models/affine/versions/1").status_code == 409
    assert service.http.delete("/admin/models/affine/versions/3").status_code == 200
    assert service.http.delete("/admin/models/affine/versions/3").status_code == 404
    assert service.http.post("/v2/models/affine/versions/3/infer", json=ROW).status_code == 404
    assert service.http.post("/admin/models/affine/promote", json={"version": "3"}).status_code == 404


@pytest.mark.parametrize("path", ["versions", "versions/1", "sigma", "history", "versions/9"])
def test_what_is_not_there_is_404_with_a_sentence(service: Any, path: str) -> None:
    model = "affine" if path.endswith("9") else "none"
    got = service.http.get(f"/admin/models/{model}/{path}")
    assert got.status_code == 404
    assert isinstance(got.json()["error"], str)


@pytest.mark.parametrize("body", [{}, {"version": 2}, {"version": None}, [], "2"])
def test_a_promotion_without_a_version_is_400(service: Any, body: Any) -> None:
    assert service.http.post("/admin/models/affine/promote", json=body).status_code == 400


def test_events_are_streamed_first_those_there_are_then_those_that_come_until_the_end(service: Any) -> None:
    file = service.openai.files.create(file=("data.csv", b"a,target\n1,0\n"), purpose="fine-tune").id
    job = service.openai.fine_tuning.jobs.create(model="affine", training_file=file).id
    attempt = service.attempt()
    told: list[str] = []
    ids: list[str] = []
    with service.http.stream("GET", f"/admin/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            if line.startswith("data: "):
                told.append(json.loads(line[6:])["message"])
                if len(told) == 1:
                    attempt.accept("The data are good.")
                    attempt.start("Training starts.")
                if len(told) == 3:
                    attempt.fail("diverged", "NaN")
    assert told[1:] == ["The data are good.", "Training starts.", "The job failed (diverged): NaN"]
    again = service.http.get(f"/admin/jobs/{job}/events", headers={"Last-Event-ID": ids[1]}).text
    assert [line[4:] for line in again.splitlines() if line.startswith("id: ")] == ids[2:]
    assert service.http.get(f"/admin/jobs/{job}/events", params={"after": ids[1]}).text == again
    assert service.http.get(f"/admin/jobs/{job}/events", params={"after": ids[-1]}).status_code == 204
    assert service.http.get("/admin/jobs/none/events").status_code == 404
    assert "no event 'x'" in service.http.get(f"/admin/jobs/{job}/events", params={"after": "x"}).json()["error"]


def test_an_alias_answers_everywhere_under_its_name_and_moves_when_it_is_said_to(service: Any) -> None:
    body = {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    for version, before in (("2", None), ("3", "2")):
        said = service.http.put("/admin/models/affine/aliases/stable", json={"version": version})
        assert (said.status_code, said.json()["previous_version"]) == (200, before)
        for path in ("/v2/models/affine@stable", "/v2/models/affine%40stable"):
            answer = service.http.post(f"{path}/infer", json=body).json()
            assert (answer["model_name"], answer["model_version"]) == ("affine", version)
            assert answer["outputs"][0]["data"] == [int(version) * value for value in (1, 2, 3)]
            metadata = service.http.get(path).json()
            assert (metadata["versions"], metadata["properties"]["aliases"]) == ([version], "stable")
            assert service.http.get(f"{path}/config").json()["name"] == "affine"
            assert [told["version"] for told in service.http.get(f"{path}/stats").json()["model_stats"]] == [version]
        model = service.openai.models.retrieve("affine@stable")
        assert model.id == "affine@stable"
        assert "affine@stable" in [listed.id for listed in service.openai.models.list()]
        assert service.http.get("/admin/models").json()[0]["aliases"] == {"stable": version}
    assert service.http.post("/v2/models/affine/infer", json=body).json()["model_version"] == "1"
    assert service.http.post("/v2/models/affine@stable/versions/1/infer", json=body).status_code == 400
    assert service.http.delete("/admin/models/affine/versions/3").status_code == 409
    assert service.http.delete("/admin/models/affine/aliases/stable").json()["version"] == "3"
    assert service.http.post("/v2/models/affine@stable/infer", json=body).status_code == 404


def test_an_alias_moved_past_the_service_is_followed(service: Any) -> None:
    for version in ("2", "3"):
        service.registry.set_alias("affine", "stable", version, who="test")
        end = time.monotonic() + 30
        while service.http.get("/v2/models/affine@stable").json().get("versions") != [version]:
            assert time.monotonic() < end


@pytest.mark.parametrize(("alias", "version", "status"), [("7", "1", 400), ("stable", "9", 404), ("a@b", "1", 400)])
def test_an_alias_that_cannot_be_is_refused(service: Any, alias: str, version: str, status: int) -> None:
    assert service.http.put(f"/admin/models/affine/aliases/{alias}", json={"version": version}).status_code == status


def test_the_device_that_is_really_used_is_told_wherever_a_model_is(service: Any) -> None:
    device = service.http.get("/v2/models/affine").json()["properties"]["device"]
    assert device == "cpu" or "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    config = service.http.get("/v2/models/affine/config").json()
    assert config["parameters"]["device"] == {"string_value": device}
    assert config["instance_group"][0]["kind"] == {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}[device]
    assert service.http.get("/admin/models").json()[0]["device"] == device
    assert f'device="{device}"' in service.http.get("/metrics").text
    if device == "cpu":  # it was let to be another
        reason = service.http.get("/v2/models/affine").json()["properties"]["device_reason"]
        assert config["parameters"]["device_reason"] == {"string_value": reason}
        assert "CUDA" in reason
