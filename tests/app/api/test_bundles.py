"""Bundles as one file, and what the command line asks of a running service: the same as of its workspace."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.registry.archive import pack, unpack
from export.bundle import MANIFEST, read


def specnorm(*arguments: str | Path, service: Any = None, code: int = 0) -> str:
    command = [sys.executable, "-m", "app.cli", "models", *map(str, arguments)]
    if service is not None:
        command += ["--url", str(service.http.base_url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize("out", ["bundle", "bundle.zip"])
def test_a_version_is_exported_of_a_service_as_of_its_workspace(service: Any, tmp_path: Path, out: str) -> None:
    specnorm("export", "affine:2", "--out", tmp_path / "a" / out if out == "bundle" else tmp_path / f"a-{out}", service=service)
    specnorm("export", "affine:2", "--out", tmp_path / "b" / out if out == "bundle" else tmp_path / f"b-{out}", "--workspace", tmp_path)
    if out == "bundle":
        assert read(tmp_path / "a" / out) == read(tmp_path / "b" / out)
        assert read(tmp_path / "a" / out)[1] == service.registry.files("affine", "2")
    else:
        assert (tmp_path / f"a-{out}").read_bytes() == (tmp_path / f"b-{out}").read_bytes()


def test_the_live_version_and_an_alias_are_names_too(service: Any, tmp_path: Path) -> None:
    service.registry.set_alias("affine", "stable", "3", who="anna")
    assert service.http.get("/admin/resolve", params={"name": "affine@stable"}).json() == {"model": "affine", "version": "3"}
    assert "affine:1 is in" in specnorm("export", "affine", "--out", tmp_path / "live.zip", service=service)
    assert "affine:3 is in" in specnorm("export", "affine@stable", "--out", tmp_path / "stable.zip", service=service)
    assert service.http.get("/admin/resolve", params={"name": "affine@gone"}).status_code == 404


def test_two_versions_are_compared_and_one_is_traced_through_a_service_as_in_its_workspace(service: Any, tmp_path: Path) -> None:
    local = json.loads(specnorm("diff", "affine:1", "affine:2", "--json", "--workspace", tmp_path))
    assert json.loads(specnorm("diff", "affine:1", "affine:2", "--json", service=service)) == local
    assert [row["what"] for row in local["rows"] if row["differs"]] == ["model_digest"]
    assert "lipschitz_bound" in specnorm("diff", "affine:1", "affine:2", service=service)
    about = json.loads(specnorm("show", "affine:2", "--json", service=service))
    assert about == json.loads(specnorm("show", "affine:2", "--json", "--workspace", tmp_path))
    assert about["model_digest"] == service.registry.manifest("affine", "2").model_digest


def test_an_archive_that_is_sent_is_taken_for_the_bundle_in_it(service: Any) -> None:
    out = io.BytesIO()
    pack(out, service.registry.manifest("affine", "2"), service.registry.opener("affine", "2"))
    packed = out.getvalue()
    sent = service.http.post("/admin/models?wait=0", data={"name": "copy"}, files=[("file", ("affine.zip", packed))])
    assert sent.status_code == 202
    assert sent.json()["status"] == "waiting"
    content = service.http.get("/admin/models/affine/versions/2/bundle")
    assert (content.headers["content-type"], content.content) == ("application/zip", packed)
    assert MANIFEST in dict(unpack(io.BytesIO(content.content), limit=1 << 20))


def test_an_archive_that_would_lead_elsewhere_is_refused_and_nothing_waits(service: Any) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../model.onnx", b"x")
    refused = service.http.post("/admin/models?wait=0", data={"name": "copy"}, files=[("file", ("evil.zip", out.getvalue()))])
    assert refused.status_code == 400
    assert "no plain file name" in refused.json()["error"]


def test_an_alias_is_set_moved_and_removed_by_the_command(service: Any, tmp_path: Path) -> None:
    assert specnorm("alias", "affine", "stable", "2", "--workspace", tmp_path) == "affine@stable is affine:2\n"
    assert specnorm("alias", "affine", "stable", "3", "--workspace", tmp_path) == "affine@stable is affine:3; before it was 2\n"
    assert specnorm("alias", "affine", "stable", "--remove", "--workspace", tmp_path) == "affine@stable is removed\n"
    specnorm("alias", "affine", "stable", "--workspace", tmp_path, code=1)
    assert specnorm("alias", "affine", "canary", "2", service=service) == "affine@canary is affine:2\n"
    assert specnorm("alias", "affine", "canary", "3", service=service) == "affine@canary is affine:3; before it was 2\n"
    assert service.registry.aliases() == {"affine": {"canary": "3"}}
    assert specnorm("alias", "affine", "canary", "--remove", service=service) == "affine@canary is removed\n"
    assert service.registry.aliases() == {}
