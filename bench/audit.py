"""Seconds and memory of an audit of ONNX files as large as a ResNet-50 (100 MB) and a VGG-19 (550 MB), weights drawn at random (He).

.venv/bin/python bench/audit.py [--models resnet50,vgg19] [--runs 5]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))
VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)


class Draft:
    """Nodes and weights in the making."""

    def __init__(self, seed):
        self.rng, self.nodes, self.weights = np.random.default_rng(seed), [], []

    def weight(self, *shape):
        fan = int(np.prod(shape[1:])) or 1
        name = f"w{len(self.weights)}"
        value = self.rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / fan) ** 0.5)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op, *inputs, **attributes):
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x, inner, out, kernel, stride=1):
        pads = [kernel // 2] * 4
        return self.node("Conv", x, self.weight(out, inner, kernel, kernel), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def write(self, last, path):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "bench",
            [value("input", TensorProto.FLOAT, ["N", 3, 224, 224])],
            [value(last, TensorProto.FLOAT, ["N", 1000])],
            self.weights,
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def resnet50(path):
    g = Draft(0)
    x = g.node("Relu", g.conv("input", 3, 64, 7, 2))
    x = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = 64
    for stage, (width, out, blocks) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = g.node("Relu", g.conv(x, inner, width, 1))
            y = g.node("Relu", g.conv(y, width, width, 3, stride))
            y = g.conv(y, width, out, 1)
            x = g.node("Relu", g.node("Add", y, x if block else g.conv(x, inner, out, 1, stride)))
            inner = out
    x = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.write(g.node("Gemm", x, g.weight(1000, 2048), transB=1), path)


def vgg19(path):
    g = Draft(1)
    x, inner = "input", 3
    for width in VGG:
        if width:
            x, inner = g.node("Relu", g.conv(x, inner, width, 3)), width
        else:
            x = g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Flatten", x)
    for out, wide in ((4096, 25088), (4096, 4096)):
        x = g.node("Relu", g.node("Gemm", x, g.weight(out, wide), transB=1))
    g.write(g.node("Gemm", x, g.weight(1000, 4096), transB=1), path)


MODELS = {"resnet50": resnet50, "vgg19": vgg19}


def load_seconds(path):
    """Processor seconds that ONNX Runtime takes to load the file, in a process of its own."""
    code = "import sys, onnxruntime as ort; ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    return spent([sys.executable, "-c", code, str(path)])[1]


def spent(command):
    """Wall and processor seconds of a command, peak memory in bytes, and what it printed."""
    before, begun = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begun, processor, used.ru_maxrss * 1024, printed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", nargs=2, metavar=("MODEL", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        MODELS[given.write[0]](given.write[1])
        return
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.onnx"
            # In a process of its own: Linux counts what the parent holds at the start as part of a child's peak memory.
            spent([sys.executable, __file__, "--write", name, str(path)])
            size = path.stat().st_size
            loads = [load_seconds(path) for _ in range(given.runs)]
            runs = [spent([sys.executable, "-m", "export.audit", str(path)]) for _ in range(given.runs)]
        wall, processor, peak = (sorted(run[i] for run in runs) for i in range(3))
        half = len(runs) // 2
        print(
            f"{name}: {size / 1e6:.0f} MB, {wall[half]:.0f} s ({wall[0]:.0f} to {wall[-1]:.0f}), {processor[half]:.0f} s of processor, "
            f"{processor[half] / sorted(loads)[half]:.0f} x what ONNX Runtime takes to load it, "
            f"peak memory {peak[-1] / size:.1f} x the file, {runs[0][3].count('looser:')} layers looser than they might be"
        )
        print("\n".join(runs[0][3].splitlines()[-3:]))


if __name__ == "__main__":
    main()
