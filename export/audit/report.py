"""What an audit says."""

from collections.abc import Mapping, Sequence

from pydantic import Field

from export.bundle import Frozen, Lipschitz, Tensor


class AuditError(ValueError):
    """The file is no ONNX model that can be read; the sentence says why."""


class AuditedLayer(Frozen):
    """The norm of one linear layer: of the true linear map, for a convolution at the image size that the graph gives.

    ``looser`` says why the upper bound is not as close as it might be (time or cost); None where it is.
    """

    name: str
    op: str
    kind: str
    shape: tuple[int, ...]
    sigma_estimate: float
    sigma_upper: float
    looser: str | None = None


class Bounds(Frozen):
    """Every number about one output's constant, side by side, so that a reader sees how loose each is; None: there is none.

    ``product`` multiplies the layers of a path, ``graph`` follows sums and joins, ``chain`` is the quadratic certificate: all proved.
    ``searched`` is the largest quotient that a search met: what any bound must exceed, up to the rounding of the runtime.
    """

    product: float | None = None
    graph: float | None = None
    chain: float | None = None
    searched: float | None = None


class Report(Frozen):
    """Norms of the layers, a bound per output, and what is proved about rows.

    ``lipschitz`` is of the function in real arithmetic from all float inputs, stacked, to that output; rounding at run time comes on top.
    ``rows_independent`` is true only where it is proved that row ``i`` of every output depends on row ``i`` of the inputs alone,
    in the same way for every ``i`` and every number of rows. Both rest on the sizes that the file declares: sizes of one name are equal.
    ``on_box`` takes the place of ``lipschitz`` where a ``box`` was asked for: these bounds hold for inputs within it, and
    nowhere else; then ``lipschitz`` has no bound, so that none of them is taken for one of the whole space.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[AuditedLayer, ...]
    lipschitz: dict[str, Lipschitz]
    bounds: dict[str, Bounds] = Field(default_factory=dict)
    rows_independent: bool
    box: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    on_box: dict[str, Lipschitz] = Field(default_factory=dict)


def in_words(box: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return a box as a reader would write it."""
    return ", ".join(f"{name} in {' x '.join(f'[{low:g}, {high:g}]' for low, high in pairs)}" for name, pairs in box.items())
