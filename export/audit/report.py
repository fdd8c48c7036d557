"""What an audit says."""

from export.bundle import Frozen, Lipschitz, Tensor


class AuditError(ValueError):
    """The file is no ONNX model that can be read; the sentence says why."""


class AuditedLayer(Frozen):
    """The norm of one linear layer: of the true linear map, for a convolution at the image size that the graph gives."""

    name: str
    op: str
    kind: str
    shape: tuple[int, ...]
    sigma_estimate: float
    sigma_upper: float


class Report(Frozen):
    """Norms of the layers, a bound per output, and what is proved about rows.

    ``lipschitz`` is of the function in real arithmetic from all float inputs, stacked, to that output; rounding at run time comes on top.
    ``rows_independent`` is true only where it is proved that row ``i`` of every output depends on row ``i`` of the inputs alone,
    in the same way for every ``i`` and every number of rows. Both rest on the sizes that the file declares: sizes of one name are equal.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[AuditedLayer, ...]
    lipschitz: dict[str, Lipschitz]
    rows_independent: bool
