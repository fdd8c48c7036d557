"""Borders: Pad, and what a convolution makes of one that copies pixels.

Border and convolution are one linear map, whose norm is less than the product of both: a circular convolution of norm 1 would count double.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export.audit.node import Node
from export.audit.values import Array, Dim, NoBoundError, Value, root, times

Widths = dict[int, tuple[int, int]]

PAD_COPIES: dict[bytes, Callable[[int, int, int], Array]] = {
    b"edge": lambda n, before, after: np.pad(np.arange(n), (before, after), mode="edge"),
    b"reflect": lambda n, before, after: np.pad(np.arange(n), (before, after), mode="reflect"),
    b"wrap": lambda n, before, after: np.pad(np.arange(n), (before, after), mode="wrap"),
}
PADDING_MODES = {b"edge": "replicate", b"reflect": "reflect", b"wrap": "circular"}
"""What the bounds of a convolution call them."""


@dataclass(frozen=True)
class Border:
    """An image of known size, and the pixels of its own that surround it."""

    image: Value
    size: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    mode: str


def widths_of(node: Node) -> Widths:
    """Return what a Pad adds before and after, by axis.

    Raises:
        NoBoundError: its pads do not fit its axes.
    """
    pads = [int(p) for p in node.option("pads", 1, [])]
    rank = node.rank()
    axes = node.axes([int(a) for a in node.constant(3).ravel()], rank) if node.present(3) else tuple(range(rank))
    if len(pads) != 2 * len(axes):
        raise NoBoundError(f"{len(pads)} pads do not fit {len(axes)} axes")
    return dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))


def pad(node: Node) -> Value:
    """Pad with a constant: norm 1. Copies of the border count as often as the most copied entry occurs."""
    x, widths = node.input(), widths_of(node)
    mode = node.attribute("mode", b"constant")
    rows = x.rows and widths.get(0, (0, 0)) == (0, 0)
    repeats = 1
    shape: list[Dim] = []
    for axis, size in enumerate(x.shape or ()):
        before, after = widths.get(axis, (0, 0))
        if (before, after) != (0, 0) and mode != b"constant":
            if mode not in PAD_COPIES or not isinstance(size, int) or min(before, after) < 0:
                raise NoBoundError(f"mode {mode!r} copies an unknown number of entries", rows=rows)
            repeats *= int(np.unique(PAD_COPIES[mode](size, before, after), return_counts=True)[1].max())
        shape.append(size + before + after if isinstance(size, int) else size if before == after == 0 else f"{size}+{before}+{after}")
    return Value(node.proto.output[0], tuple(shape), bound=times(x.bound, root(float(repeats))), rows=rows, chain=x.chain)


def border_of(x: Value) -> Border | None:
    """Return the border that the node before made ``x`` of; None where it made none that copies pixels, or whose size is not known."""
    node = x.maker
    mode = PADDING_MODES.get(node.attribute("mode", b"constant")) if node is not None and node.op == "Pad" else None
    if node is None or mode is None or x.causes:
        return None
    image, widths = node.input(), widths_of(node)
    sizes = (image.shape or ())[2:]
    if widths.get(0, (0, 0)) != (0, 0) or widths.get(1, (0, 0)) != (0, 0):
        return None
    known = tuple(d for d in sizes if isinstance(d, int))
    pads = tuple(widths.get(axis + 2, (0, 0)) for axis in range(len(sizes)))
    return Border(image, known, pads, mode) if known and len(known) == len(sizes) else None
