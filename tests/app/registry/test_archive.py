"""A bundle as one file: the same bytes every time, and nothing that an archive says is believed."""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import pytest

from app.errors import InvalidRequestError, TooLargeError
from app.registry import archive as archives
from app.registry.archive import MOST_FILES, pack
from export.bundle import MANIFEST, Manifest, parse


def archive(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as written:
        for name, content in members:
            written.writestr(zipfile.ZipInfo(name), content, how)
    return out


def unpack(stream: BinaryIO, *, limit: int) -> dict[str, bytes]:
    return {name: b"".join(pieces) for name, pieces in archives.unpack(stream, limit=limit)}


def packed_of(manifest: Manifest, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    pack(out, manifest, lambda name: io.BytesIO(files[name]))
    return out.getvalue()


def test_what_is_packed_comes_back_and_is_always_the_same_file(make: Callable[..., Any]) -> None:
    manifest, files = make(b"graph", checkpoint_safetensors=b"weights")
    packed = packed_of(manifest, files)
    found = unpack(io.BytesIO(packed), limit=10_000)
    assert parse(found.pop(MANIFEST)) == manifest
    assert found == files
    assert packed_of(manifest, files) == packed


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "folder/", "C:x", "ä"])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="no plain file name"):
        unpack(archive((name, b"x")), limit=100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="twice"):
        unpack(archive(("model.onnx", b"x"), ("model.onnx", b"y")), limit=100)


def test_a_bomb_is_left_alone_once_it_passes_the_limit() -> None:
    bomb = archive(("model.onnx", b"\0" * (64 << 20)))
    assert len(bomb.getvalue()) < 1 << 17
    with pytest.raises(TooLargeError):
        unpack(bomb, limit=1 << 20)
    with pytest.raises(TooLargeError):
        unpack(archive(("a", b"x" * 60), ("b", b"y" * 60)), limit=100)


def test_a_size_that_the_directory_lies_about_does_not_get_past_the_limit() -> None:
    content = bytearray(archive(("model.onnx", b"\0" * (4 << 20))).getvalue())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = content.find(mark)
        content[at + offset : at + offset + 4] = struct.pack("<I", 10)
    with pytest.raises((TooLargeError, InvalidRequestError)):
        unpack(io.BytesIO(bytes(content)), limit=1 << 20)


def test_too_many_files_are_refused() -> None:
    with pytest.raises(TooLargeError):
        unpack(archive(*((f"f{number}", b"") for number in range(MOST_FILES + 1))), limit=100)


def test_what_is_no_archive_or_is_damaged_is_refused() -> None:
    good = archive(("model.onnx", b"abcdefgh" * 100), how=zipfile.ZIP_STORED).getvalue()
    for content in (b"", b"no archive", good[:-10], good.replace(b"abcdefgh", b"abcdefgX", 1)):
        with pytest.raises(InvalidRequestError):
            unpack(io.BytesIO(content), limit=10_000)
