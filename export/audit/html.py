"""The report as one page that needs nothing else: no script, no font, no picture from elsewhere; readable in light and dark."""

from html import escape

from export.audit.report import AuditedLayer, Bounds, Report, in_words

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d0d7de; --proved: #1f5fbf; --seen: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa5b1; --paper: #0f1419; --line: #30363d; --proved: #6ea8fe; --seen: #f0a45d; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; }
thead th { overflow-wrap: normal; } .scroll { overflow-x: auto; } p.note { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
p.box { border-left: 4px solid var(--seen); padding-left: .8rem; }
.proved { fill: var(--proved); } .seen { fill: var(--seen); } .axis { stroke: var(--line); }
"""
WORDS = {
    "product": "product of the layers (proved)",
    "graph": "graph rules (proved)",
    "chain": "quadratic certificate (proved)",
    "searched": "largest met in a search (an estimate from below)",
}
MOST_BARS = 80


def page(report: Report, title: str) -> str:
    """Return the report on the model called ``title`` as HTML."""
    parts = [f"<h1>Audit of {escape(title)}</h1>"]
    if report.box:
        parts.append(
            f"<p class='box'>On the box <strong>{escape(in_words(report.box))}</strong> alone: outside of it these bounds do not hold.</p>"
        )
    for name, found in (report.on_box or report.lipschitz).items():
        parts.append(f"<h2>Output {escape(name)}</h2>")
        if found.bound is None:
            parts.append(f"<p><strong>No bound</strong>: {escape(found.reason or '')}.</p>")
            continue
        kind = "proved" if found.rigorous else "not proved in full"
        parts.append(
            f"<p>L2 Lipschitz constant <strong>at most {found.bound:.9g}</strong> ({kind}, by the {escape(str(found.method))} bound): two "
            f"inputs {'in the box ' if report.box else ''}at L2 distance d give outputs at most {found.bound:.6g} d apart.</p>"
        )
        if found.reason:
            parts.append(f"<p class='note'>{escape(found.reason)}.</p>")
        parts.append(waterfall(name, report.bounds.get(name, Bounds())))
    parts += [*sigmas(report.layers), *table(report.layers)]
    rows = "proved" if report.rows_independent else "not proved"
    parts.append(f"<h2>Rows</h2><p>That each row of a batch is answered by itself: <strong>{rows}</strong>.</p>")
    parts.append(
        "<p class='note'>Bounds are about the exact function of the weights in the file; the rounding of a runtime comes on top. "
        "What lies outside the graph, such as a normalisation of its inputs, is not included.</p>"
    )
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>Audit of {escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def waterfall(name: str, bounds: Bounds) -> str:
    """Return the bounds of one output as bars, from the loosest to what was met."""
    found = [(WORDS[key], value, key == "searched") for key, value in bounds.model_dump().items() if value is not None]
    if not found:
        return ""
    largest = max(value for _, value, _ in found) or 1.0
    height = 44 * len(found) + 4
    bars = []
    for i, (words, value, seen) in enumerate(found):
        y, width = 44 * i, max(2.0, 560 * value / largest)
        bars.append(
            f"<text x='0' y='{y + 14}'>{escape(words)}</text>"
            f"<rect class='{'seen' if seen else 'proved'}' x='0' y='{y + 20}' width='{width:.1f}' height='16' rx='2'/>"
            f"<text x='{width + 8:.1f}' y='{y + 33}'>{value:.6g}</text>"
        )
    told = ", ".join(f"{words} {value:.6g}" for words, value, _ in found)
    return f"<svg viewBox='0 0 720 {height}' role='img' aria-label='Bounds of {escape(name)}: {escape(told)}'>{''.join(bars)}</svg>"


def sigmas(layers: tuple[AuditedLayer, ...]) -> list[str]:
    """Return the norms of the layers as pairs of bars: what is proved from above, and the estimate from below."""
    shown = layers[:MOST_BARS]
    largest = max((layer.sigma_upper for layer in shown), default=0.0)
    if largest == 0:
        return []
    step = 720 / len(shown)
    bars = []
    for i, layer in enumerate(shown):
        for place, (kind, value) in enumerate((("proved", layer.sigma_upper), ("seen", layer.sigma_estimate))):
            height = 150 * value / largest
            bars.append(
                f"<rect class='{kind}' x='{i * step + place * step * 0.42:.1f}' y='{160 - height:.1f}' width='{step * 0.4:.1f}' "
                f"height='{height:.1f}'><title>{escape(layer.name)}: {value:.6g}</title></rect>"
            )
    rest = f", the first {MOST_BARS} of {len(layers)}" if len(layers) > MOST_BARS else ""
    return [
        f"<h2>Sigma per layer</h2><p class='note'>Left bar: proved upper bound. Right bar: estimate, a lower bound. The highest is "
        f"{largest:.6g}{rest}.</p>",
        f"<svg viewBox='0 0 720 164' role='img' aria-label='Sigma of {len(shown)} layers; the table below has the numbers'>"
        f"{''.join(bars)}<line class='axis' x1='0' x2='720' y1='161' y2='161'/></svg>",
    ]


def table(layers: tuple[AuditedLayer, ...]) -> list[str]:
    """Return the norms of the layers as a table."""
    if not layers:
        return ["<p>The graph has no linear layer with constant weights.</p>"]
    head = "".join(f"<th scope='col'{c}>{t}</th>" for t, c in (
        ("layer", ""), ("operator", ""), ("shape", ""), ("sigma at least", " class='number'"), ("sigma at most", " class='number'"),
        *([("looser than it might be", "")] if any(layer.looser for layer in layers) else []),
    ))  # fmt: skip
    rows = "".join(
        f"<tr><th scope='row'>{escape(layer.name)}</th><td>{escape(layer.op)}</td><td>{' x '.join(map(str, layer.shape))}</td>"
        f"<td class='number'>{layer.sigma_estimate:.9g}</td><td class='number'>{layer.sigma_upper:.9g}</td>"
        f"{f'<td>{escape(layer.looser)}</td>' if layer.looser else ''}</tr>"
        for layer in layers
    )
    caption = "<caption>Norms of the linear layers, of the bytes of the file</caption>"
    return [f"<div class='scroll'><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"]
