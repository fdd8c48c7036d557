"""`.ci/setup` on a package of our own, which needs nothing that is not here: no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "probe-1-py3-none-any.whl"
    extras = "Provides-Extra: one\\nProvides-Extra: two\\n"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        wheel.writestr("probe.py", "")
        wheel.writestr("probe-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: probe\\nVersion: 1\\n" + extras)
        wheel.writestr("probe-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: probe\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("probe-1.dist-info/RECORD", "")
    return name

build_wheel = build_editable
"""

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "probe"
version = "1"
description = "{about}"
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci")
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(about="first"))
    return tmp_path


def setup(package: Path, extras: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "HOME": str(package / "home")}
    return subprocess.run(
        [sys.executable, ".ci/setup", "env", extras], cwd=package, env=environment, capture_output=True, text=True, check=False
    )


def installed(package: Path) -> list[str]:
    extras: list[str] = json.loads((package / "env" / "installed.json").read_text())["extras"]
    return extras


def test_an_environment_is_made_once_brought_up_to_date_and_healed(package: Path) -> None:
    first = setup(package, "one")
    assert first.returncode == 0, first.stderr
    assert installed(package) == ["one"]

    again = setup(package, "one")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    kept = package / "env" / "kept"
    kept.touch()
    assert setup(package, "two").returncode == 0
    assert installed(package) == ["one", "two"]
    (package / "pyproject.toml").write_text(PROJECT.format(about="second"))
    assert "installing specnorm[one,two]" in setup(package, "one").stderr
    assert kept.exists()

    (package / "env" / "installing").touch()  # as an installation that was cut off leaves it
    healed = setup(package, "one")
    assert healed.returncode == 0
    assert "anew" in healed.stderr
    assert not kept.exists()


def test_what_cannot_be_installed_is_told_in_pips_own_words_and_not_taken_for_done(package: Path) -> None:
    (package / "backend.py").write_text("raise RuntimeError('the backend is broken')")
    failed = setup(package, "one")
    assert failed.returncode == 1
    assert "could not be installed" in failed.stderr
    assert "the backend is broken" in failed.stderr
    assert not (package / "env" / "installed.json").exists()
    assert (package / "env" / "installing").exists()
