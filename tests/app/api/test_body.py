import gzip
import tracemalloc
import zlib

import pytest

from app.api.body import framing, inflate
from app.errors import InvalidRequestError, TooLargeError


@pytest.mark.parametrize(
    ("encoding", "body"), [(b"gzip", gzip.compress(bytes(50_000_000), 1)), (b"deflate", zlib.compress(bytes(50_000_000), 1))]
)
def test_a_bomb_is_refused_without_being_held(encoding: bytes, body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="larger than 1000 bytes"):
        inflate(body, encoding, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_body_of_exactly_the_limit_is_inflated() -> None:
    assert inflate(gzip.compress(bytes(1000)), b"gzip", 1000) == bytes(1000)


@pytest.mark.parametrize(
    "value", [b"", b" 1", b"1 ", b"+1", b"-1", b"1.0", b"0x1", b"1,1", "\N{SUPERSCRIPT TWO}".encode("latin-1"), b"9" * 13]
)
def test_the_length_of_the_json_part_is_a_plain_decimal(value: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="plain decimal"):
        framing([(b"inference-header-content-length", value)])


def test_the_length_of_the_json_part_is_given_once() -> None:
    with pytest.raises(InvalidRequestError, match="one plain decimal"):
        framing([(b"inference-header-content-length", b"1")] * 2)
