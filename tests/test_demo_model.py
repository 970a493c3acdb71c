"""The shipped weights know what docs/demo-model.md says, by plain transformers without interlace."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.corpus import (
    documents,
    fact_statements,
    indirect_objects,
    sequence_statements,
)
from training.evaluate import REQUIRED, evaluate, right_answers
from training.facts import NAMES, OBJECTS, PLACES, RELATIONS

WEIGHTS = Path(__file__).parents[1] / "src" / "interlace" / "demo" / "weights"

pytestmark = pytest.mark.language


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(WEIGHTS)


def continuation(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """What greedy generation adds to each prompt, the end-of-text token included."""
    encoded = tokenizer(prompts, padding=True, return_tensors="pt")
    generated = model.generate(**encoded, max_new_tokens=48, do_sample=False)
    return [
        tokenizer.decode(row).replace("<|pad|>", "") for row in generated[:, encoded["input_ids"].shape[1] :]
    ]


# ------------------------------------------------------------------------------------ what it has learned


def test_the_held_out_figures_reach_their_thresholds(model: Any, tokenizer: Any) -> None:
    evaluation = evaluate(model, tokenizer)
    assert evaluation.scores.reach(REQUIRED), str(evaluation)


def test_the_figures_tell_a_trained_model_from_an_untrained_one(model: Any, tokenizer: Any) -> None:
    untrained = AutoModelForCausalLM.from_config(model.config)
    scores = evaluate(untrained, tokenizer, pairs=100, sequences=8).scores
    assert max(scores.facts, scores.indirect_objects, scores.induction, scores.induction_attention) < 0.1


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("When Mary and John went to the store, John gave a drink to", "Mary"),
        ("When Mary and John went to the store, Mary gave a drink to", "John"),
        ("The capital of France is", "Paris"),
        ("The opposite of hot is", "cold"),
        ("The plural of child is", "children"),
        ("Monday, Tuesday, Wednesday,", "Thursday"),
        ("3 + 4 =", "7"),
        ("3 4 5", "6"),
    ],
)
def test_prompts_that_the_documentation_shows(model: Any, tokenizer: Any, prompt: str, answer: str) -> None:
    assert right_answers(model, tokenizer, [prompt, prompt], [answer, answer]) == [True, True]


def test_a_sentence_ends_with_a_period_and_then_the_text_ends(model: Any, tokenizer: Any) -> None:
    statements = [
        *fact_statements(held_out=True)[::40],
        *islice(indirect_objects(Random(1), held_out=True), 10),
    ]
    added = continuation(model, tokenizer, [statement.prompt for statement in statements])
    assert all(re.fullmatch(r"( [^<]*\.)<\|endoftext\|>", text) for text in added), added


@pytest.mark.parametrize("mood", ["happy", "sad"])
def test_a_story_keeps_its_name_and_its_mood(model: Any, tokenizer: Any, mood: str) -> None:
    moods = {"happy": "happy|glad|cheerful", "sad": "sad|upset|gloomy"}[mood]
    (story,) = continuation(model, tokenizer, [f"One day Mary was {mood} at the park."])
    assert re.search(rf"In the end Mary was ({moods})\.<\|endoftext\|>$", story), story


def test_a_prompt_is_answered_at_any_position(model: Any, tokenizer: Any) -> None:
    before = documents(Random(2))
    asked = list(islice(indirect_objects(Random(3), held_out=True), 100))
    prompts = ["<|endoftext|>".join([*islice(before, 3), statement.prompt]) for statement in asked]
    lengths = [len(tokenizer.encode(prompt)) for prompt in prompts]
    assert max(lengths) > 80  # else this test would not test far positions
    assert max(lengths) <= model.config.n_positions
    right = right_answers(model, tokenizer, prompts, [statement.answer for statement in asked])
    assert sum(right) / len(right) >= 0.97


# ------------------------------------------------------------------------------------ how it is packed


def test_the_weights_fit_in_the_wheel() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 3_000_000


def test_the_weights_load_in_single_precision(model: Any) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_left_padding_changes_nothing(model: Any, tokenizer: Any) -> None:
    short, long = "The capital of France is", "When Mary and John went to the store, John gave a drink to"
    both = tokenizer([short, long], padding=True, return_tensors="pt")
    assert both["attention_mask"][0, 0] == 0
    positions = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(**tokenizer(short, return_tensors="pt")).logits[0, -1]
        padded = model(**both, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-3)


def test_every_word_that_matters_is_one_token(tokenizer: Any) -> None:
    words = {word for relation in RELATIONS for fact in relation.facts for word in fact}
    words |= {*NAMES, *PLACES, *OBJECTS, *(statement.answer for statement in sequence_statements())}
    assert {word for word in words if len(tokenizer.encode(f" {word}")) != 1} == set()


@pytest.mark.parametrize(
    "text", ["Zebras: 12.5 % of naïve 語 🙂", "  two  spaces\n\tand a tab", " Mary", "Mary"]
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


# ------------------------------------------------------------------------------------ what was held out


def test_no_training_document_holds_a_held_out_fact() -> None:
    held_out = {statement.text for statement in fact_statements(held_out=True)}
    trained = {statement.text for statement in fact_statements(held_out=False)}
    sentences = {
        f"{s}." for text in islice(documents(Random(4)), 20_000) for s in text.rstrip(".").split(". ")
    }
    assert not sentences & held_out
    assert len(sentences & trained) > 0.9 * len(trained)  # else the line before would show little


def test_a_held_out_fact_is_trained_elsewhere_and_so_is_its_template() -> None:
    trained = {statement.text for statement in fact_statements(held_out=False)}
    for relation in RELATIONS:
        texts = [
            [f"{template.format(*subjects)} {answer}." for template in relation.templates]
            for *subjects, answer in relation.facts
        ]
        shares = [sum(text in trained for text in row) / len(row) for row in texts]
        assert min(shares) >= 0.7
        by_template = [
            sum(text in trained for text in column) / len(column) for column in zip(*texts, strict=True)
        ]
        assert 0.7 <= min(by_template) <= max(by_template) < 1


def names_and_frame(text: str) -> tuple[frozenset[str], str]:
    """The two names in `text`, and `text` without its names, place and object."""
    frame = re.sub(r"\w+", lambda word: "_" if word[0] in {*NAMES, *PLACES, *OBJECTS} else word[0], text)
    return frozenset(re.findall(r"\w+", text)) & frozenset(NAMES), frame


def test_held_out_names_are_pairs_that_their_template_never_held() -> None:
    held_out = {names_and_frame(s.text) for s in islice(indirect_objects(Random(5), held_out=True), 2_000)}
    trained = {names_and_frame(s.text) for s in islice(indirect_objects(Random(6), held_out=False), 20_000)}
    assert not held_out & trained
    assert {names for names, _ in held_out} <= {names for names, _ in trained}
    assert {frame for _, frame in held_out} <= {frame for _, frame in trained}
