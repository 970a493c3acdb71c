"""What was found, in plain sentences whose figures come from the findings.

They are for a reader who knows PyTorch and nothing of this field.
"""

from __future__ import annotations

from interlace.demo.story import OTHER_PROMPTS, Findings, Head

__all__ = ["attention", "heads", "lens", "patching", "said", "steering", "summary"]

HALF = 0.5
VISIBLE = 0.2  # a cell worth a word


def said(findings: Findings) -> str:
    """What the model answers to either prompt."""
    right, wrong = findings.said[0], findings.said_corrupted[0]
    return (
        "Two prompts differ in one word, and so do the answers:"
        f"{_quoted(right.token)} ({right.probability:.0%}) "
        f"and{_quoted(wrong.token)} ({wrong.probability:.0%}). "
        "Somewhere inside, the name travels from the start of the sentence to its end; the next pictures "
        "find out where, by copying values from the first run into the second."
    )


def patching(findings: Findings) -> str:
    """Where the answer sits at each depth."""
    name, last = findings.name_pos, len(findings.tokens) - 1
    shares = [(float(column.max()), pos) for pos, column in enumerate(findings.patched.T)]
    parked = [(share, pos) for share, pos in shares if pos not in (name, last) and share >= VISIBLE]
    stop = ""
    if parked:
        share, pos = max(parked)
        stop = f"; on the way, up to {share:.0%} of it waits at{_quoted(findings.tokens[pos])}"
    return (
        "Every layer reads and adds to one vector per token, the residual stream. Each cell is a run of the "
        "second prompt in which one of these vectors comes from the first; its color says how much of the "
        f"first answer comes back. The answer starts at{_quoted(findings.tokens[name])}, and "
        f"{_depth(_arrival(findings))} it sits at the last token, where the next word is chosen{stop}."
    )


def heads(findings: Findings) -> str:
    """Which heads move the name."""
    first = findings.found[0]
    return (
        "Attention alone moves anything from one token to another, in independent parts called heads; here "
        "one head at a time writes what it wrote in the first run. The outlined heads matter most: "
        f"{first.name} alone brings back {first.effect:.0%} of the answer. (The picture is the mean over "
        f"{OTHER_PROMPTS} pairs of prompts with other names, places and objects, the code does one pair.)"
    )


def attention(findings: Findings) -> str:
    """Where the found heads look."""
    sharpest = max(findings.found, key=lambda head: head.attention)
    return (
        "Each row is a token of the first prompt, and its colors say which tokens the head takes values "
        "from. Outlined is a strong look between tokens that carry the name: "
        f"{_look(findings, sharpest)}"
    )


def lens(findings: Findings) -> str:
    """What the model would say at each depth."""
    return (
        "Each cell is the word that would come next if the model ended at that depth: its last step, applied "
        f"to an earlier vector. At the last token it settles on{_quoted(findings.lens_tokens[-1][-1])} "
        f"{_depth(findings.answer_depth)}."
    )


def steering() -> str:
    """What steering does."""
    return (
        "The stream of a happy story minus that of a sad one is a direction, which can be added or "
        "subtracted while the model writes. Each opening is continued twice, untouched and steered, "
        "the last two against what the opening itself says."
    )


def summary(findings: Findings) -> str:
    """What was found, for a terminal."""
    right, arrived = findings.said[0], _depth(_arrival(findings))
    strongest = ", ".join(f"{head.name} ({head.effect:.0%})" for head in findings.found)
    lines = {
        "prompt": f"{findings.clean} ...{right.token} ({right.probability:.1%})",
        "patching": f"the name starts at position {findings.name_pos}; {arrived} it is at the last one",
        "heads": f"that move it: {strongest}",
        "attention": _look(findings, max(findings.found, key=lambda head: head.attention)),
        "logit lens": f"reads{_quoted(findings.lens_tokens[-1][-1])} {_depth(findings.answer_depth)}",
        "steering": f"untouched: {_ending(findings, 0)} Steered: {_ending(findings, 1)}",
    }
    return "\n".join(f"{name:<11} {line}" for name, line in lines.items())


def _ending(findings: Findings, scale: float) -> str:
    """The last sentence of the first story written at a scale."""
    added = next(run.added for run in findings.steered if run.scale == scale)
    return added.strip().rsplit(". ", 1)[-1]


def _look(findings: Findings, head: Head) -> str:
    asker, asked = findings.tokens[head.query_pos], findings.tokens[head.key_pos]
    return (
        f"{head.name} takes {head.attention:.0%} of what it brings to{_quoted(asker)} from{_quoted(asked)}."
    )


def _arrival(findings: Findings) -> int:
    """The first depth at which the last position alone brings back more than half."""
    last = findings.patched[:, -1].tolist()
    return next(depth for depth, share in enumerate(last) if share >= HALF)


def _depth(depth: int) -> str:
    return "in the embeddings" if depth == 0 else f"after layer {depth - 1}"


def _quoted(token: str) -> str:
    return f" “{token.strip()}”"
