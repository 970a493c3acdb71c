"""The code that the report shows is the code that gives the report's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interlace.demo import listings
from interlace.recipes import (
    attention_patterns,
    logit_difference,
    logit_lens,
    patch_heads,
    patch_residual,
    residual_stream,
    steer,
)

pytestmark = pytest.mark.language


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    """What the first lines of the report leave behind."""
    names: dict[str, Any] = {}
    with torch.no_grad():  # which puts the mode back that the listing sets
        exec(listings.SETUP, names)
    return names


def run(listing: str, start: dict[str, Any]) -> dict[str, Any]:
    names = dict(start)
    with torch.no_grad():
        exec(listing, names)
    return names


def prefers(start: dict[str, Any]) -> Any:
    return logit_difference(torch.tensor([start["mary"]]), torch.tensor([start["anna"]]))


def test_reading(start: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(listings.READING, start)
    shape, first, *_ = capsys.readouterr().out.splitlines()
    assert f"{shape}" in listings.READING
    assert first.endswith(" Mary")


def test_patching(start: dict[str, Any]) -> None:
    model, gpt = start["model"], start["gpt"]
    expected = patch_residual(
        model, [*gpt.h, gpt.ln_f], model.lm_head, start["clean"], start["corrupted"], prefers(start)
    )
    torch.testing.assert_close(run(listings.PATCHING, start)["patched"], expected)


def test_heads(start: dict[str, Any]) -> None:
    model, gpt = start["model"], start["gpt"]
    projections = [block.attn.c_proj for block in gpt.h]
    expected = patch_heads(
        model, projections, 4, model.lm_head, start["clean"], start["corrupted"], prefers(start)
    )
    torch.testing.assert_close(run(listings.HEADS, start)["patched"], expected)


def test_attention(start: dict[str, Any]) -> None:
    model, gpt = start["model"], start["gpt"]
    expected = attention_patterns(model, [block.attn for block in gpt.h], start["clean"])
    torch.testing.assert_close(torch.stack(run(listings.ATTENTION, start)["patterns"]), expected)


def test_lens(start: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    model, gpt = start["model"], start["gpt"]
    expected = logit_lens(model, [*gpt.h, gpt.ln_f], gpt.ln_f, model.lm_head, start["clean"])
    torch.testing.assert_close(torch.stack(run(listings.LENS, start)["logits"]), expected)
    assert capsys.readouterr().out.splitlines()[-1].startswith("4  Mary ")


def test_steering(start: dict[str, Any]) -> None:
    model, reader = start["model"], start["gpt"].h[3]
    happy, sad = (f"One day Mary was {mood} at the park." for mood in ("happy", "sad"))
    direction = (residual_stream(model, [reader], happy) - residual_stream(model, [reader], sad))[0, 0, -1]
    expected = steer(model, reader, direction, "One day Mary went to the park.", max_new_tokens=40)
    assert torch.equal(run(listings.STEERING, start)["tracer"].result, expected)
