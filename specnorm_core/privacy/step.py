"""One step of DP-SGD (Abadi et al. 2016): a Poisson batch, clipped gradients, noise."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from specnorm_core.norms import spectral_layers
from specnorm_core.privacy.ahead import Noise
from specnorm_core.privacy.clipping import clip
from specnorm_core.privacy.noise import Secure, Source, spacing


def set_gradients(
    model: nn.Module, losses: Callable[[], Tensor] | None, *, max_grad_norm: float, noise_multiplier: float, expected_rows: float,
    source: Source | None = None,
) -> None:  # fmt: skip
    """Put into every trainable parameter's ``.grad`` what DP-SGD steps by; an optimiser's ``step()`` follows.

    ``(sum_b clip(grad_b, C) + N(0, (noise_multiplier C)^2)) / expected_rows``: divided by the expected size of the batch, since the
    realised one is a secret. An empty batch gives noise alone.

    Args:
        model: as of :func:`specnorm_core.privacy.clipped_sum`.
        losses: runs the forward pass and returns one loss per row ``(B,)``; None for an empty batch.
        max_grad_norm: C.
        noise_multiplier: standard deviation of the noise over C.
        expected_rows: sampling rate times number of rows.
        source: where the noise comes from; the system's cryptographic one without it.

    Raises:
        NotPrivateError: the model or the loss has no per-sample gradients that could be clipped.
    """
    deviation = noise_multiplier * max_grad_norm / expected_rows
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with Noise(trained, deviation, source or Secure()) as noise:
        if losses is not None:
            # Rounded to the grid, a sum of n entries moves by up to sqrt(n) spacings more.
            entries = sum(parameter.numel() for parameter in trained)
            room = math.sqrt(entries) * spacing(deviation) * expected_rows if deviation > 0 else 0.0
            clip(model, losses, noise.add, max_grad_norm=max_grad_norm - room, divisor=expected_rows)
        for layer in spectral_layers(model).values():
            layer.forget_image()  # an empty batch leaves none: (u, v), and sigma, would tell which batches were empty
        for parameter, gradient in noise.gradients():
            parameter.grad = gradient
