"""One HTML page with everything that the demo found: no script, no font, nothing fetched from anywhere."""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from interlace.demo import listings, sentences
from interlace.demo.pictures import pictures
from interlace.demo.story import Findings, Guess, Steered

__all__ = ["page"]

GOOD = r"happy|glad|cheerful|warm|sweet|wonderful|lovely|laughed|danced|kind|smile|hug"
BAD = r"sad|upset|gloomy|cold|bitter|terrible|awful|cried|shouted|mean|howled|noise"
STYLE = files("interlace.demo").joinpath("report.css").read_text(encoding="utf-8")


def page(findings: Findings) -> str:
    """Write the report, one self-contained HTML page."""
    drawn = pictures(findings)
    layers, count = findings.heads.shape
    found = "".join(
        f"<div><figcaption><b>{head.name[0].upper() + head.name[1:]}</b></figcaption>"
        f"{drawn[f'attention-{head.layer}-{head.head}']}</div>"
        for head in findings.found
    )
    looks = f'<figure class="pair">{found}</figure>'
    sections = [
        ("Read what happens inside", sentences.said(findings), _answers(findings), listings.READING),
        ("Find the name", sentences.patching(findings), _figure(drawn["patching"]), listings.PATCHING),
        ("Find the heads that move it", sentences.heads(findings), _figure(drawn["heads"]), listings.HEADS),
        ("See where they look", sentences.attention(findings), looks, listings.ATTENTION),
        ("Watch the answer form", sentences.lens(findings), _figure(drawn["logit-lens"]), listings.LENS),
        ("Steer what it writes", sentences.steering(), _stories(findings.steered), listings.STEERING),
    ]  # fmt: skip
    body = "".join(_section(n, *section) for n, section in enumerate(sections, 1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Inside a small language model · interlace</title><style>{STYLE}</style></head><body><main>"
        "<header><h1>Inside a small language model</h1>"
        f'<p class="lead">A GPT-2 of {layers} layers with {count} heads each, which ships with interlace, '
        "reads a sentence. Six experiments show how it finds the answer, each with the code that made it. "
        "Every value shows under the pointer.</p>"
        f"<pre>{_colored(listings.SETUP)}</pre></header>{body}"
        "<footer>Written by <code>interlace demo</code>. All listings share the first lines above.</footer>"
        "</main></body></html>\n"
    )


def _section(number: int, title: str, words: str, figure: str, listing: str) -> str:
    return (
        f'<section><h2><span class="number">{number}</span>{title}</h2><p>{escape(words)}</p>'
        f"{figure}<pre>{_colored(listing)}</pre></section>"
    )


def _figure(picture: str) -> str:
    return f"<figure>{picture}</figure>"


def _answers(findings: Findings) -> str:
    both = ((findings.clean, findings.said), (findings.corrupted, findings.said_corrupted))
    parts = "".join(f"<div>{_prompt(findings, prompt)}{_bars(guesses)}</div>" for prompt, guesses in both)
    return f'<figure class="pair">{parts}</figure>'


def _prompt(findings: Findings, prompt: str) -> str:
    """The prompt, with the word that the two prompts differ in marked."""
    other = findings.corrupted if prompt == findings.clean else findings.clean
    pairs = zip(prompt.split(), other.split(), strict=True)
    words = (escape(word) if word == its else f"<b>{escape(word)}</b>" for word, its in pairs)
    return f'<p class="prompt">{" ".join(words)} …</p>'


def _bars(guesses: Sequence[Guess]) -> str:
    rows = "".join(
        f'<span class="token">{escape(guess.token.strip())}</span>'
        f'<i style="width:{guess.probability:.1%}"></i><span class="value">{guess.probability:.1%}</span>'
        for guess in guesses
    )
    return f'<div class="bars">{rows}</div>'


def _stories(runs: Iterable[Steered]) -> str:
    rows = "".join(
        f"<tr><th>{_strength(run.scale)}</th>"
        f'<td><span class="given">{escape(run.prompt)}</span>{_mooded(run.added)}</td></tr>'
        for run in runs
    )
    return f"<figure><table>{rows}</table></figure>"


def _strength(scale: float) -> str:
    return "untouched" if scale == 0 else f"{abs(scale):g} &times; {'happy' if scale > 0 else 'sad'}"


def _mooded(text: str) -> str:
    """Mark the words that tell the mood."""
    marked = re.sub(rf"\b({GOOD})\b", r'<b class="good">\1</b>', escape(text, quote=False))
    return re.sub(rf"\b({BAD})\b", r'<b class="bad">\1</b>', marked)


def _colored(source: str) -> str:
    """Color comments, strings and keywords of Python source."""
    lines = source.splitlines()
    drawn, row, column = [], 1, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = _kind(token)
        if kind:
            start, end = token.start, token.end
            drawn.append(escape(_between(lines, (row, column), start), quote=False))
            drawn.append(f'<span class="{kind}">{escape(token.string, quote=False)}</span>')
            row, column = end
    drawn.append(escape(_between(lines, (row, column), (len(lines), len(lines[-1]))), quote=False))
    return "".join(drawn)


def _kind(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.COMMENT:
        return "comment"
    if token.type == tokenize.STRING:
        return "string"
    return "word" if token.type == tokenize.NAME and keyword.iskeyword(token.string) else ""


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    (row, column), (last, stop) = start, end
    if row == last:
        return lines[row - 1][column:stop]
    return "\n".join([lines[row - 1][column:], *lines[row : last - 1], lines[last - 1][:stop]])
