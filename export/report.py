"""What an export says to the person who ran it."""

from rich.console import Console
from rich.table import Table

from export.bundle import Manifest


def print_report(manifest: Manifest, console: Console) -> None:
    """Print sigma per layer, the bound, and how the folded model differs from the trained one."""
    table = Table(
        title="sigma per layer (the estimate is a lower bound; folded is audited in the bytes)",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in ("layer", "kind", "shape", "norm", "estimate", "upper", "folded", "target"):
        table.add_column(column, justify="left" if column in {"layer", "kind", "norm"} else "right", no_wrap=True)
    for layer in manifest.layers:
        table.add_row(
            layer.name, layer.kind, "x".join(map(str, layer.shape)), layer.norm, f"{layer.sigma_estimate:.6f}",
            f"{layer.sigma_upper:.6f}", f"{layer.folded_sigma_upper:.9f}", f"{layer.target:g}",
        )  # fmt: skip
    console.print(table)
    lipschitz = manifest.lipschitz
    if lipschitz.bound is None:
        console.print(f"no Lipschitz bound: {lipschitz.reason}", soft_wrap=True)
    else:
        console.print(f"Lipschitz bound (L2, method {lipschitz.method}, proved of the file's bytes): {lipschitz.bound:.9g}", soft_wrap=True)
    seen = manifest.verification
    kind = "real" if seen.get("real_inputs") else "random"
    console.print(
        f"ONNX Runtime against the folded model on {seen['inputs']:.0f} {kind} inputs: largest difference {seen['max_abs_error']:.2e}"
    )
    console.print(
        f"against the trained model: sigma lag {seen['sigma_lag']:.2e}, largest shift of an output {seen['logit_shift']:.2e}",
        soft_wrap=True,
    )
    if "accuracy_trained" in seen:
        console.print(f"accuracy: trained {seen['accuracy_trained']:.4f}, folded {seen['accuracy_folded']:.4f}", soft_wrap=True)
