"""How often a convolution computes with one pixel because its border copies it; numpy only, never torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from specnorm_core.convolution import Geometry, pad_map


def zeros_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """Zero padding copies nothing."""
    return 1


def circular_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """Circular padding that lets windows start at more places than there are pixels computes outputs twice."""
    if size is None:
        if any(sum(p) > q - 1 for p, q in zip(geometry.pads, geometry.window, strict=True)):
            raise ValueError("circular padding beyond the window has no bound for every size: give input_size")
        return 1
    unit = replace(geometry, stride=(1,) * len(size))
    return math.prod(max(1, -(-starts // n)) for starts, n in zip(unit.outputs(size), size, strict=True))


def border_copies(geometry: Geometry, size: Sequence[int] | None) -> int:
    """How often the padded image holds the pixel that it holds most often."""
    copies = 1
    for axis, pads in enumerate(geometry.pads):
        n = size[axis] if size is not None else None
        if n is not None:
            copies *= int(np.bincount(pad_map(n, pads, geometry.mode)).max())
        else:
            copies *= 1 + sum(pads) if geometry.mode == "replicate" else 1 + sum(p > 0 for p in pads)
    return copies


COPIES: dict[str, Callable[[Geometry, Sequence[int] | None], int]] = {
    "zeros": zeros_copies,
    "circular": circular_copies,
    "reflect": border_copies,
    "replicate": border_copies,
}
