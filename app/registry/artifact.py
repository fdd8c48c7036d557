"""What the registry hands to whoever serves a version."""

from typing import NamedTuple

from export.bundle import Manifest


class Artifact(NamedTuple):
    """A version's manifest and the bytes of its ``model.onnx``, whose sha256 was checked against it."""

    manifest: Manifest
    model: bytes
