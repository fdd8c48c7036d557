import json

import pytest

from export import bundle

FILES = {"model.onnx": b"graph", "architecture.json": b"{}"}


def manifest(**changes):
    values = {
        "signature": bundle.Signature(inputs=(), outputs=()),
        "lipschitz": bundle.Lipschitz(bound=1.0, rigorous=True, method="product"),
        "origin": "specnorm",
        "files": {name: bundle.digest(content) for name, content in FILES.items()},
    }
    return bundle.Manifest(**(values | changes))


def test_a_bundle_reads_back_as_written(tmp_path):
    bundle.write(tmp_path / "b", manifest(), FILES)
    assert bundle.read(tmp_path / "b") == (manifest(), FILES)


def test_one_flipped_bit_is_refused(tmp_path):
    bundle.write(tmp_path / "b", manifest(), FILES)
    (tmp_path / "b" / "model.onnx").write_bytes(b"grapi")
    with pytest.raises(bundle.BundleError, match=r"model\.onnx has sha256 .*: the file was changed"):
        bundle.read(tmp_path / "b")
    (tmp_path / "b" / "model.onnx").unlink()
    with pytest.raises(bundle.BundleError, match=r"lacks model\.onnx"):
        bundle.read(tmp_path / "b")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("precious")
    with pytest.raises(bundle.BundleError, match="not empty"):
        bundle.write(tmp_path / "b", manifest(), FILES)
    assert (tmp_path / "b" / "mine").read_text() == "precious"


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    class Broken(bytes):
        def __buffer__(self, flags):
            raise OSError("no space")

    with pytest.raises(bundle.BundleError, match="digests"):
        bundle.write(tmp_path / "b", manifest(), FILES | {"model.onnx": b"other"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "manifest.json"])
def test_a_manifest_that_names_a_path_is_refused(name):
    text = json.loads(manifest().model_dump_json())
    text["files"][name] = "0" * 64
    with pytest.raises(bundle.BundleError, match="plain name"):
        bundle.parse(json.dumps(text))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{" * 5000, '{"format": 2}', "null"])
def test_what_is_no_manifest_is_refused_with_a_sentence(text):
    with pytest.raises(bundle.BundleError, match="not a manifest of format 1"):
        bundle.parse(text)


def test_a_manifest_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        manifest().origin = "other"
