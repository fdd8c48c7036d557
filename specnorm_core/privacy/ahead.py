"""The noise of one step, drawn by a thread of its own while the gradients are computed."""

import math
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import Self

import torch
from torch import Tensor, nn

from specnorm_core.privacy.noise import Source, spacing, to_grid

BLOCK = 2**16
"""Entries of a parameter that are summed and added at a time: what stays in a cache, and what is small beside the parameter."""

DRAWN = 4 * BLOCK
"""Entries that are drawn at a time: each time costs a tenth of a millisecond for the draws out of the common."""


def blocks(shape: torch.Size, entries: int = BLOCK) -> Iterator[slice]:
    """Yield slices of the first axis that hold about so many entries each, of at least one row."""
    rows = max(1, entries * shape[0] // max(1, math.prod(shape)))
    yield from (slice(at, min(at + rows, shape[0])) for at in range(0, shape[0], rows))


def _memory(parameter: nn.Parameter) -> Tensor:
    """Return memory for the gradient of ``parameter``, whose contents are of no use: that of the gradient before where it will do."""
    kind, old = torch.promote_types(parameter.dtype, torch.float32), parameter.grad
    if old is not None and old.device.type == "cpu" and old.dtype == kind and old.is_contiguous() and old.ndim and not old.requires_grad:
        return old
    return torch.empty(parameter.shape or (1,), dtype=kind)


class Noise:
    """Noise for the gradients of ``parameters``, of one step and no other: nothing is kept that another batch could meet again.

    The thread draws in the order of the parameters, so the same source gives the same noise whatever the threads' pace.

    Args:
        parameters: whose gradients are to be noisy.
        deviation: standard deviation of the noise; 0 for none.
        source: where it comes from; nobody else may draw from it before the last gradient was taken.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], deviation: float, source: Source) -> None:
        self._deviation, self._source = deviation, source
        self._sums = {parameter: _memory(parameter) for parameter in parameters}
        if deviation == 0:
            for sums in self._sums.values():
                sums.zero_()
        self._drawn = {parameter: 0 if deviation > 0 else len(sums) for parameter, sums in self._sums.items()}
        self._news: SimpleQueue[tuple[nn.Parameter, int] | Exception] = SimpleQueue()
        self._over = Event()
        self._thread = Thread(target=self._draw, args=(dict(self._sums),), name="noise", daemon=True)

    def __enter__(self) -> Self:
        if self._deviation == 0:
            return self
        if sum(sums.numel() for sums in self._sums.values()) > BLOCK:
            self._thread.start()
        else:  # not worth a thread
            self._draw(self._sums)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    @torch.no_grad()
    def _draw(self, sums: dict[nn.Parameter, Tensor]) -> None:
        try:
            for parameter, values in sums.items():
                for rows in blocks(values.shape, DRAWN):
                    if self._over.is_set():
                        return
                    self._source.fill(values[rows].view(-1), self._deviation)
                    self._news.put((parameter, rows.stop))
        except Exception as error:  # the step that waits for the noise raises it
            self._news.put(error)

    def _await(self, parameter: nn.Parameter, rows: int) -> None:
        while self._drawn[parameter] < rows:
            news = self._news.get()
            if isinstance(news, Exception):
                raise news
            self._drawn[news[0]] = news[1]

    def add(self, parameter: nn.Parameter, rows: slice, part: Tensor) -> None:
        """Add ``part``, which is used up, to the noise of ``rows`` of ``parameter``."""
        sums = self._sums[parameter]
        near = part.device == sums.device
        self._await(parameter, rows.indices(len(sums))[1] if near else len(sums))
        if not near:
            sums = self._sums[parameter] = sums.to(part.device)
        total, into = part.to(sums.dtype), sums[rows]
        if self._deviation > 0:
            step = spacing(self._deviation)
            _ = to_grid(total.numpy(), step) if near else to_grid(total, step)  # NumPy's calls cost less
        into.add_(total.view_as(into))

    def gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield every parameter with what has been added to its noise."""
        for parameter, sums in self._sums.items():
            self._await(parameter, len(sums))
            yield parameter, sums.to(parameter).view(parameter.shape)
