import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from onnx import numpy_helper, parser

from export.audit import audit
from export.audit.html import page
from export.audit.search import searched, with_search

RNG = np.random.default_rng(3)
W = RNG.standard_normal((5, 4)).astype(np.float32)


def model(body, weights, x="float[N,4] x", y="float[N,M] y"):
    found = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g ({x}) => ({y}) {{ {body} }}')
    found.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    return found


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what attributes and texts say."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(report, title="m.onnx"):
    reader = Reader()
    reader.feed(page(report, title))
    assert reader.open == []
    return reader


def test_the_page_holds_every_number_and_nothing_from_elsewhere():
    found = model("a = Gemm<transB=1>(x, w) y = Relu(a)", {"w": W})
    report = audit(found, chain=True)
    reader = read(with_search(report, {"y": 1.25}))
    for words in ("quadratic certificate (proved)", "1.25", f"{report.layers[0].sigma_upper:.9g}", "5 x 4", "Rows"):
        assert words in reader.text
    assert not [value for name, value in reader.attributes if name in {"src", "href"} or "//" in (value or "")]
    assert all(value for name, value in reader.attributes if name == "aria-label")


def test_a_hostile_name_is_text_and_a_missing_bound_has_its_reason():
    found = model("y = Exp(x)", {})
    found.graph.node[0].name = "<script>alert(1)</script>"
    reader = read(audit(found), "<b>.onnx")
    assert "No bound" in reader.text
    assert "<script>alert(1)</script>" in reader.text


@pytest.mark.parametrize(
    "body", ["y = Gemm<transB=1>(x, w)", "a = Gemm<transB=1>(x, w) y = Relu(a)", "a = Gemm<transB=1>(x, w) y = Tanh(a)"]
)
def test_the_search_stays_below_the_bound_and_finds_a_linear_norm(body):
    found = model(body, {"w": W})
    report = audit(found, chain=True)
    largest = searched(found.SerializeToString(), report)["y"]
    assert largest <= report.lipschitz["y"].bound
    if "a" not in body.split("=")[0]:
        assert largest >= np.linalg.norm(W.astype(float), 2) * 0.999


@pytest.mark.parametrize(
    ("x", "share"), [("float[N,3,24,24] x", 0.7), ("float[1,3,24,24] x", 0.7), ("float[N,3,H,W] x", 0.7), ("float[2,3,7,5] x", 0.9)]
)
def test_the_search_finds_a_bound_from_below_of_wide_images_and_fixed_or_open_sizes(x, share):
    kernel = np.random.default_rng(3).uniform(0.0, 0.2, (4, 3, 3, 3)).astype(np.float32)
    found = model("c = Conv<pads=[1,1,1,1]>(x, w) y = Relu(c)", {"w": kernel}, x=x, y="float[A,B,C,D] y")
    report = audit(found)
    assert share * report.lipschitz["y"].bound <= searched(found.SerializeToString(), report)["y"] <= report.lipschitz["y"].bound


def test_the_search_keeps_to_a_box_of_channels_of_a_wide_image():
    found = model("y = Mul(x, x)", {}, x="float[N,2,30,30] x", y="float[A,B,C,D] y")
    report = audit(found, box={"x": ((0.0, 0.5), (-2.0, 1.0))})
    assert 2.0 <= searched(found.SerializeToString(), report)["y"] <= report.on_box["y"].bound == pytest.approx(4.0)


@pytest.mark.parametrize("size", [40, 4000])
@pytest.mark.parametrize("kind", ["float", "double"])
def test_the_search_does_not_take_rounding_for_a_slope(size, kind):
    numbers = np.float32 if kind == "float" else np.float64
    weights = {"w": numbers(1e-6 if kind == "float" else 1e-15), "b": numbers(1e3)}
    found = model("a = Mul(x, w) y = Add(a, b)", weights, x=f"{kind}[N,{size}] x", y=f"{kind}[N,{size}] y")
    report = audit(found)
    assert searched(found.SerializeToString(), report, seconds=1.0).get("y", 0.0) <= report.lipschitz["y"].bound


@pytest.mark.parametrize("size", [40, 4000])
def test_a_search_whose_time_is_up_has_tried_once_and_tells_how_far_it_is(size):
    found = model("y = Relu(x)", {}, x=f"float[N,{size}] x")
    report, told = audit(found), []
    assert 0.1 < searched(found.SerializeToString(), report, seconds=1e-9, progress=told.append)["y"] <= 1.0
    assert told == [1.0]


def test_the_search_leaves_what_it_cannot_run():
    found = model("y = Relu(x)", {})
    report = audit(found)
    assert searched(b"no model", report) == {}
    assert searched(found.SerializeToString(), report.model_copy(update={"inputs": report.inputs * 2})) == {}


def test_the_command_writes_the_page_and_shows_every_bound_side_by_side(tmp_path):
    (tmp_path / "m.onnx").write_bytes(model("a = Gemm<transB=1>(x, w) y = Relu(a)", {"w": W}).SerializeToString())
    command = [sys.executable, "-m", "export.audit", str(tmp_path / "m.onnx"), "--html", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("product ", "graph ", "chain ", "searched "))
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert done.stderr == ""
    bounds = json.loads(subprocess.run([*command, "--json", "--no-search"], capture_output=True, text=True, check=True).stdout)["bounds"][
        "y"
    ]
    assert bounds["searched"] is None
    assert bounds["chain"] > 0
