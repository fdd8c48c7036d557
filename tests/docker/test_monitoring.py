"""Prometheus of Debian in the place of Docker Hub's: it finds the service, and every rule and panel asks for what there is."""

import json
import time

import httpx
import numpy as np
import pytest

from tests.docker.conftest import ROOT, Stack, free_port, stand_in

FOLDER = ROOT / "examples" / "deployment"
LINES = ["RUN install -d -o 65534 /prometheus", "USER 65534", 'ENTRYPOINT ["/usr/bin/prometheus"]']


@pytest.fixture(scope="module")
def watched(built):
    port = free_port()
    image = stand_in("specnorm-test/prometheus", "prometheus", "promtool", lines=LINES)
    stack = Stack({**built, "PROMETHEUS_IMAGE": image, "PROMETHEUS_PORT": str(port)})
    stack.prometheus = f"http://127.0.0.1:{port}/api/v1"
    with stack.up("service", "prometheus"):
        yield stack


def queries():
    dashboard = json.loads((FOLDER / "grafana" / "dashboards" / "specnorm.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$model", ".*")


def test_every_panel_has_something_to_show_and_every_rule_can_be_evaluated(watched, digits):
    ask = httpx.Client(base_url=watched.prometheus, trust_env=False)
    begun = time.monotonic()
    empty = dict(queries())
    while empty and time.monotonic() < begun + 90:
        watched.infer(digits.data[:4].astype(np.float32))
        for title, query in list(queries()):
            told = ask.get("/query", params={"query": query}).json()
            assert told["status"] == "success", (title, told)
            if told["data"]["result"]:
                empty.pop(title, None)
    (target,) = ask.get("/targets").json()["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert set(empty) <= {"Fine-tune jobs"}  # there was none
    groups = ask.get("/rules").json()["data"]["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []
