"""Standard normal draws from one random word of 64 bits each, exact but for the rounding of float64.

Under the density lie ``2 n`` strips, rectangles of mass ``1 / STRIPS`` each that reach from the axis to the density at their far end. The
low bits of a word choose one of ``STRIPS`` numbers; if it is that of a strip, the word as a whole is the place in it: two look-ups, one
multiplication, one addition. The few numbers that are left over, as many as there is mass left over, stand for what lies between the strips
and the density and beyond the last strip; there a draw is by rejection. (The idea of Marsaglia and Tsang's ziggurat, turned by a right
angle, so that a draw of the common kind needs no test of its own.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Words = Callable[[int], NDArray[np.uint64]]
"""Returns so many random words of 64 bits."""

STRIPS = 2**12
"""One over the mass of a strip, a power of two; a word's lowest bits choose among so many, which leaves 52 for the place."""


def density(x: Floats | float) -> Floats:
    """Return the density of the standard normal distribution."""
    found: Floats = np.exp(np.square(x) * -0.5) * (2 * math.pi) ** -0.5
    return found


@dataclass(frozen=True)
class Strips:
    """The strips of both sides, first those of the positive one from zero outwards, then their mirror images."""

    centre: Floats
    """Of each strip; of the numbers that stand for none, 0: ``(STRIPS,)``."""
    width: Floats
    """Likewise."""
    count: int
    """How many there are."""
    rest: Floats
    """Of each strip of the positive side, and of the tail: where it begins, width, height, what it lacks above it: ``(n + 1, 4)``."""
    shares: Floats
    """Sums of the areas of the boxes between strips and density, and of what the tail is drawn from: ``(n + 1,)``."""


@cache
def strips() -> Strips:
    """Return the strips."""
    edges = [0.0]
    while (end := _end(edges[-1])) is not None:
        edges.append(end)
    begin, width = np.array(edges[:-1]), np.diff(edges)
    middle, count, last = begin + width / 2, len(width), edges[-1]
    spare = np.zeros(STRIPS - 2 * count)
    height = 1 / (STRIPS * width)
    lacking = density(begin) - height
    tail = float(density(last))
    return Strips(
        centre=np.concatenate([middle, -middle, spare]),
        width=np.concatenate([width, width, spare]),
        count=2 * count,
        rest=np.vstack([np.stack([begin, width, height, lacking], axis=1), [last, 0.0, 0.0, tail]]),
        shares=np.cumsum(np.append(width * lacking, tail / last)),
    )


def _end(begin: float) -> float | None:
    """Return where the strip that begins there ends: ``(end - begin) density(end)`` is its mass; None where no strip has so much."""
    largest = (begin + math.sqrt(begin * begin + 4)) / 2  # there the mass would be at its most
    if (largest - begin) * float(density(largest)) <= 1 / STRIPS:
        return None
    end = begin
    while True:  # Newton's method on a concave function, from the left
        height = float(density(end))
        missing = 1 / STRIPS - (end - begin) * height
        following = end + missing / (height * (1 - end * (end - begin)))
        if following <= end:
            return end
        end = following


class Draws:
    """Draws of ``N(0, deviation^2)``, up to ``most`` at a time, in memory that is used again each time.

    Args:
        words: where the randomness comes from.
        deviation: standard deviation.
        most: for how many there is memory, four numbers of 64 bits each.
    """

    def __init__(self, words: Words, deviation: float, most: int) -> None:
        table = strips()
        self._words, self._deviation, self._count = words, deviation, table.count
        self._width, self._centre = table.width * (deviation * 2.0**-64), table.centre * deviation
        self._chosen, self._drawn, self._from = np.empty(most, dtype=np.intp), np.empty(most), np.empty(most)

    def common(self, count: int) -> tuple[Floats, NDArray[np.intp]]:
        """Return ``count`` draws, good until the next call, and the places of those that are none yet: :meth:`rare` draws these."""
        word = self._words(count).view(np.int64)
        chosen = np.bitwise_and(word, STRIPS - 1, out=self._chosen[:count])
        drawn = np.take(self._width, chosen, mode="clip", out=self._drawn[:count])
        drawn *= word
        drawn += np.take(self._centre, chosen, mode="clip", out=self._from[:count])
        return drawn, (chosen >= self._count).nonzero()[0]

    def rare(self, count: int) -> Floats:
        """Return ``count`` draws from between the strips and the density, and from beyond the last strip."""
        table = strips()
        found: Floats = np.empty(0)
        while len(found) < count:
            word = self._words(3 * (2 * (count - len(found)) + 8)).reshape(3, -1)
            which, place, level = (word >> np.uint64(11)) * 2.0**-53  # each of [0, 1)
            part = np.searchsorted(table.shares[:-1], which * table.shares[-1], side="right")
            begin, width, height, lacking = table.rest[part].T
            # The tail is drawn from an exponential distribution that lies above it (Marsaglia 1964).
            beyond = np.where(part == len(table.rest) - 1, -np.log1p(-place), 0.0)
            x = begin + width * place + beyond / table.rest[-1, 0]
            kept = height + lacking * np.exp(-beyond) * level < density(x)
            found = np.append(found, np.where(word[0] & np.uint64(1), x, -x)[kept])
        return found[:count] * self._deviation
