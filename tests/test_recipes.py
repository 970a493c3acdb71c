"""Each recipe gives the values that its definition demands, on the embedded model."""

from __future__ import annotations

import pytest
import torch

import interlace as il
from interlace import recipes
from interlace.language import LanguageModel
from interlace.recipes import (
    Metric,
    attention_patterns,
    logit_difference,
    logit_lens,
    measure,
    patch_heads,
    patch_residual,
    recovered,
    residual_stream,
    steer,
)

pytestmark = pytest.mark.language

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Anna and John went to the store, John gave a drink to"
NAME_POS = 1


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return il.demo_model(attn_implementation="eager")


@pytest.fixture(scope="module")
def prefers(model: LanguageModel) -> Metric:
    mary, anna = (torch.tensor(model.tokenizer.encode(name)) for name in (" Mary", " Anna"))
    return logit_difference(mary, anna)


@pytest.fixture(scope="module")
def patched(model: LanguageModel, prefers: Metric) -> torch.Tensor:
    """The share that each depth and position brings back."""
    gpt = model.transformer
    raw = patch_residual(model, [*gpt.h, gpt.ln_f], model.lm_head, CLEAN, CORRUPTED, prefers)
    return recovered(raw, *(measure(model, model.lm_head, text, prefers) for text in (CLEAN, CORRUPTED)))


# ------------------------------------------------------------------------------------ patching the stream


def test_the_last_position_of_the_last_depth_holds_the_whole_answer(patched: torch.Tensor) -> None:
    assert patched[-1, -1].item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(patched[-1, :-1], torch.zeros(13), rtol=0, atol=1e-4)


def test_the_embedding_of_the_only_word_that_differs_holds_the_whole_answer(patched: torch.Tensor) -> None:
    assert patched[0, NAME_POS].item() == pytest.approx(1, abs=1e-4)


def test_what_comes_before_the_difference_holds_nothing(patched: torch.Tensor) -> None:
    torch.testing.assert_close(patched[:, :NAME_POS], torch.zeros(5, NAME_POS), rtol=0, atol=1e-4)


def test_patching_a_run_into_itself_changes_nothing(model: LanguageModel, prefers: Metric) -> None:
    gpt, untouched = model.transformer, measure(model, model.lm_head, CLEAN, prefers)
    stream = patch_residual(model, [*gpt.h, gpt.ln_f], model.lm_head, CLEAN, CLEAN, prefers)
    projections = [block.attn.c_proj for block in gpt.h]
    heads = patch_heads(model, projections, 4, model.lm_head, CLEAN, CLEAN, prefers)
    assert set(stream.flatten().tolist()) == {untouched.item()}
    assert set(heads.flatten().tolist()) == {untouched.item()}


# ------------------------------------------------------------------------------------------------- heads


def test_a_layer_of_one_head_is_patched_as_a_whole(model: LanguageModel, prefers: Metric) -> None:
    projection = model.transformer.h[2].attn.c_proj
    with torch.no_grad(), model.trace(CLEAN):
        written = projection.input.clone()
    with torch.no_grad(), model.trace(CORRUPTED):
        projection.input[:] = written
        expected = prefers(model.lm_head.output)
    whole = patch_heads(model, [projection], 1, model.lm_head, CLEAN, CORRUPTED, prefers)
    torch.testing.assert_close(whole, expected.reshape(1, 1))


@pytest.mark.parametrize(
    "prompts", [(CLEAN, "The capital of France is"), ("The capital of France is", CLEAN)]
)
def test_prompts_of_two_lengths_are_refused(
    model: LanguageModel, prefers: Metric, prompts: tuple[str, str]
) -> None:
    """There is no position of the one for each of the other; the shorter into the longer went unnoticed."""
    gpt = model.transformer
    with pytest.raises(ValueError, match=r"have (14 and 5|5 and 14) tokens"):
        patch_residual(model, [*gpt.h, gpt.ln_f], model.lm_head, *prompts, prefers)


def test_a_metric_of_another_number_of_prompts_is_refused(model: LanguageModel, prefers: Metric) -> None:
    with pytest.raises(ValueError, match="of 1 prompts, and these are the logits of 2"):
        measure(model, model.lm_head, [CLEAN, CORRUPTED], prefers)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_shown_if_the_settings_say_so(
    model: LanguageModel, prefers: Metric, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    hidden = []

    def bar(sweep: list[tuple[int, int]], **how: object) -> list[tuple[int, int]]:
        hidden.append(how.get("disable", False))
        return sweep[:1]

    monkeypatch.setattr(il.config, "progress", shown)
    monkeypatch.setattr(recipes, "tqdm", bar)
    patch_residual(model, [model.transformer.ln_f], model.lm_head, CLEAN, CORRUPTED, prefers)
    patch_heads(model, [model.transformer.h[0].attn.c_proj], 4, model.lm_head, CLEAN, CORRUPTED, prefers)
    assert hidden == [not shown] * 2


def test_several_prompts_give_the_mean_of_each(model: LanguageModel) -> None:
    other = (
        "When Emma and Paul went to the park, Paul gave a ring to",
        "When Lucy and Paul went to the park, Paul gave a ring to",
    )
    ids = [
        torch.tensor([model.tokenizer.encode(f" {name}")[0] for name in names])
        for names in (("Mary", "Emma"), ("Anna", "Lucy"))
    ]
    projections = [block.attn.c_proj for block in model.transformer.h]
    both = patch_heads(
        model, projections, 4, model.lm_head, [CLEAN, other[0]], [CORRUPTED, other[1]], logit_difference(*ids)
    )
    alone = [
        patch_heads(model, projections, 4, model.lm_head, *texts, logit_difference(ids[0][[n]], ids[1][[n]]))
        for n, texts in enumerate(((CLEAN, CORRUPTED), other))
    ]
    torch.testing.assert_close(both, torch.stack(alone).mean(0), rtol=1e-4, atol=1e-4)


def test_the_metric_is_the_mean_difference_at_the_last_position() -> None:
    logits = torch.zeros(2, 3, 4)
    logits[:, -1] = torch.tensor([[5.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]])
    assert logit_difference(torch.tensor([0, 2]), torch.tensor([1, 3]))(logits).item() == 1.0


# ------------------------------------------------------------------------------------------ reading


def test_the_stream_is_read_at_every_depth(model: LanguageModel) -> None:
    gpt = model.transformer
    stream = residual_stream(model, [*gpt.h, gpt.ln_f], CLEAN)
    assert stream.shape == (5, 1, 14, 128)
    assert not any(torch.equal(stream[depth], stream[depth + 1]) for depth in range(4))


def test_the_lens_ends_with_what_the_model_says(model: LanguageModel) -> None:
    gpt = model.transformer
    lens = logit_lens(model, [*gpt.h, gpt.ln_f], gpt.ln_f, model.lm_head, CLEAN)
    with torch.no_grad(), model.trace(CLEAN):
        logits = model.lm_head.output
    assert torch.equal(lens[-1], logits)


def test_every_row_of_a_pattern_sums_to_one_and_looks_back(model: LanguageModel) -> None:
    patterns = attention_patterns(model, [block.attn for block in model.transformer.h], CLEAN)
    assert patterns.shape == (4, 1, 4, 14, 14)
    torch.testing.assert_close(patterns.sum(-1), torch.ones(4, 1, 4, 14))
    assert not patterns.triu(1).any()


def test_a_model_that_computes_no_patterns_says_how_to_load_it() -> None:
    fused = il.demo_model(attn_implementation="sdpa")
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        attention_patterns(fused, [block.attn for block in fused.transformer.h], CLEAN)


# ------------------------------------------------------------------------------------------ steering


def test_scale_zero_writes_what_the_model_writes_anyway(model: LanguageModel) -> None:
    prompt, block = "One day Mary went to the park.", model.transformer.h[2]
    with model.generate(prompt, max_new_tokens=8, do_sample=False) as tracer:
        pass
    ids = steer(model, block, torch.ones(128), prompt, scale=0, max_new_tokens=8, do_sample=False)
    assert torch.equal(ids, tracer.result)


def test_a_direction_reaches_every_step(model: LanguageModel) -> None:
    """The unembedding of one token, added before the last norm, makes every step say it."""
    mary = model.tokenizer.encode(" Mary")[0]
    direction = 1e4 * model.lm_head.weight.detach()[mary]
    prompt = "One day John went to the park."
    ids = steer(model, model.transformer.ln_f, direction, prompt, max_new_tokens=5, do_sample=False)
    assert ids[0, -5:].tolist() == [mary] * 5
