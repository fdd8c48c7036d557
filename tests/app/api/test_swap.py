"""Promotions and rollbacks while clients ask without a pause."""

import asyncio
import json
import threading
from typing import Any

from app.cli import load

BODY = json.dumps({"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
ASK = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def test_swaps_under_load_fail_no_request_and_every_answer_is_of_the_version_that_it_names(service: Any) -> None:
    seen: dict[str, int] = {}
    crossed: list[Any] = []

    def look(_head: bytes, body: bytes) -> None:
        answer = json.loads(body)
        version = answer["model_version"]
        seen[version] = seen.get(version, 0) + 1
        if answer["outputs"][0]["data"] != [int(version) * value for value in (1, 2, 3)]:
            crossed.append(answer)

    digests = {row["version"]: row["model_digest"] for row in service.registry.describe("affine")}
    done = threading.Event()
    live: list[str] = []

    def swap() -> None:
        for number in range(10):
            wanted = {"version": str(number % 3 + 1), "why": "test"}
            said = service.http.post("/admin/models/affine/promote", json=wanted) if number % 4 < 3 else None
            said = said or service.http.post("/admin/models/affine/rollback", json={})
            assert said.status_code == 200, said.text
            live.append(said.json()["live_version"])
        done.set()

    swapping = threading.Thread(target=swap)
    target = load.Target("127.0.0.1", service.http.base_url.port)

    async def both() -> load.Load:
        swapping.start()
        found = await load.run(target, [ASK], connections=8, seconds=0.3, seen=look)
        while not done.is_set() and swapping.is_alive():
            more = await load.run(target, [ASK], connections=8, seconds=0.2, seen=look)
            found = load.Load(found.seconds + more.seconds, found.taken + more.taken, found.at + more.at, found.failures + more.failures)
        return found

    found = asyncio.run(both())
    swapping.join()
    assert done.is_set()
    assert found.failures == []
    assert not crossed
    assert len(found.taken) == sum(seen.values())
    assert set(seen) <= set(digests)
    assert len(seen) > 1
