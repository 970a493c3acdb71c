"""The pictures of the report, drawn from what was found."""

from __future__ import annotations

from interlace.demo.story import Findings, Head
from interlace.plots import Svg, heatmap

__all__ = ["attention", "heads", "lens", "patching", "pictures"]

STRONG = 0.5  # the least attention that is outlined


def pictures(findings: Findings) -> dict[str, Svg]:
    """Draw every picture, by the name that its file has."""
    found = {f"attention-{head.layer}-{head.head}": attention(findings, head) for head in findings.found}
    return {
        "patching": patching(findings),
        "heads": heads(findings),
        "logit-lens": lens(findings),
        **found,
    }


def patching(findings: Findings) -> Svg:
    """Draw how much of the answer each depth and position brings back."""
    return heatmap(
        findings.patched,
        rows=_depths(findings),
        columns=findings.tokens,
        legend="share of the answer brought back (0 = corrupted run, 1 = clean run)",
        column_title="position in the prompt",
        row_title="residual stream",
        low=0,
        high=1,
        cells=[[f"{v:.2f}" if abs(v) >= 0.05 else "" for v in row] for row in findings.patched.tolist()],
        cell_width=62,
        cell_height=34,
    )


def heads(findings: Findings) -> Svg:
    """Draw how much of the answer each head brings back, the found ones outlined."""
    layers, count = findings.heads.shape
    return heatmap(
        findings.heads,
        rows=[f"layer {layer}" for layer in range(layers)],
        columns=[f"head {head}" for head in range(count)],
        legend="share of the answer brought back",
        cells=[[f"{v + 0.0:.2f}" for v in row] for row in findings.heads.round(decimals=2).tolist()],
        marks=[(head.layer, head.head) for head in findings.found],
        low=0,
        cell_width=110,
        cell_height=42,
    )


def attention(findings: Findings, head: Head) -> Svg:
    """Draw where one head looks; what lies after a token cannot be seen from it and is left empty."""
    seen = head.pattern.clone()
    later = seen.new_ones(seen.shape).triu(1).bool()
    return heatmap(
        seen.masked_fill(later, float("nan")),
        rows=[token.strip() for token in findings.tokens],
        columns=findings.tokens,
        legend="attention (a row sums to 1)",
        row_title="this token",
        column_title="looks at",
        low=0,
        high=1,
        marks=[(head.query_pos, head.key_pos)] if head.attention >= STRONG else [],
        cell_width=25,
        cell_height=25,
    )


def lens(findings: Findings) -> Svg:
    """Draw what the model would say if it ended at each depth."""
    return heatmap(
        findings.lens_probabilities,
        rows=_depths(findings),
        columns=findings.tokens,
        legend="probability of the token in the cell",
        column_title="after reading",
        row_title="residual stream",
        low=0,
        high=1,
        cells=findings.lens_tokens,
        cell_width=62,
        cell_height=34,
    )


def _depths(findings: Findings) -> list[str]:
    return ["embeddings", *(f"after layer {depth}" for depth in range(len(findings.patched) - 1))]
