"""Measures what the demo model has learned, on combinations that its training text never held.

The training script stops by these figures and the tests check the shipped weights by them. Accuracies are
shares, from 0 to 1, of prompts whose most probable next token is the right one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from random import Random
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.corpus import Statement, fact_statements, indirect_objects, sequence_statements

__all__ = ["REQUIRED", "WITH_MARGIN", "Evaluation", "Scores", "evaluate", "right_answers"]

HALF = 40
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Scores:
    """The four figures that the model is held to."""

    facts: float
    """Accuracy on held-out pairs of fact and template."""
    indirect_objects: float
    """Accuracy on held-out names and templates."""
    induction: float
    """Accuracy on the second half of repeated random sequences."""
    induction_attention: float
    """Mean attention of the best head from there to the token after the previous occurrence."""

    def reach(self, thresholds: Scores) -> bool:
        """Whether every figure is at least its threshold."""
        return all(getattr(self, field.name) >= getattr(thresholds, field.name) for field in fields(self))


REQUIRED = Scores(facts=0.99, indirect_objects=0.99, induction=0.95, induction_attention=0.5)
WITH_MARGIN = Scores(facts=0.997, indirect_objects=0.997, induction=0.97, induction_attention=0.6)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores, and what lies behind them."""

    scores: Scores
    by_kind: dict[str, float]
    """Accuracy on each relation's held-out prompts, and on sequences, which are not held out."""
    induction_heads: Tensor
    """Mean attention to the induction target, `layer head`."""

    def __str__(self) -> str:
        layer, head = divmod(int(self.induction_heads.argmax()), self.induction_heads.shape[1])
        figures = [f"{field.name} {getattr(self.scores, field.name):.4f}" for field in fields(self.scores)]
        kinds = [f"{kind} {accuracy:.4f}" for kind, accuracy in self.by_kind.items()]
        return f"{', '.join(figures)} (layer {layer}, head {head})\n{', '.join(kinds)}"


class _Output(Protocol):
    logits: Tensor
    attentions: tuple[Tensor, ...]


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: int = 1000,
    sequences: int = 64,
    seed: int = 0,
) -> Evaluation:
    """Measure `model` on all held-out facts, `pairs` indirect objects and `sequences` repeated sequences."""
    was_training = model.training
    model.eval()
    random = Random(seed)
    facts = fact_statements(held_out=True)
    givers = list(islice(indirect_objects(random, held_out=True), pairs))
    statements = [*facts, *givers, *sequence_statements()]
    right = right_answers(model, tokenizer, [s.prompt for s in statements], [s.answer for s in statements])
    by_kind = _by_kind(statements, right)
    induction, heads = _induction(model, tokenizer, sequences, seed)
    model.train(was_training)
    scores = Scores(
        facts=sum(right[: len(facts)]) / len(facts),
        indirect_objects=by_kind["indirect objects"],
        induction=induction,
        induction_attention=float(heads.max()),
    )
    return Evaluation(scores, by_kind, heads)


def _by_kind(statements: Sequence[Statement], right: Sequence[bool]) -> dict[str, float]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for statement, is_right in zip(statements, right, strict=True):
        outcomes[statement.kind].append(is_right)
    return {kind: sum(rights) / len(rights) for kind, rights in outcomes.items()}


@torch.no_grad()
def right_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[bool]:
    """Whether each prompt's most probable next token is its answer, a word without its leading space.

    The prompts are asked by turns at the start of a text and after an end-of-text token.
    """
    right: list[bool] = []
    begin = (f"{tokenizer.eos_token}", "")
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        chosen = range(start, min(start + PROMPTS_AT_ONCE, len(prompts)))
        texts = [begin[i % 2] + prompts[i] for i in chosen]
        encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        last = encoded["attention_mask"].sum(dim=1) - 1
        output: _Output = model(**encoded)
        predicted = output.logits[range(len(texts)), last].argmax(-1).tolist()
        expected = [tokenizer.encode(f" {answers[i]}") for i in chosen]
        right += [[guess] == answer for guess, answer in zip(predicted, expected, strict=True)]
    return right


def _induction(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: int, seed: int
) -> tuple[float, Tensor]:
    """Accuracy on the second half of repeated sequences, and attention to the target, `layer head`."""
    generator = torch.Generator().manual_seed(seed)
    specials = len(tokenizer.all_special_ids)
    half = torch.randint(specials, len(tokenizer), (sequences, HALF), generator=generator)
    ids = torch.cat([half, half], dim=1)
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output: _Output = model(input_ids=ids, output_attentions=True)
    model.set_attn_implementation(implementation)
    queries = torch.arange(HALF, 2 * HALF - 1)
    hits = output.logits[:, queries].argmax(-1) == ids[:, queries + 1]
    patterns = torch.stack(output.attentions)  # layer batch head query_pos key_pos
    heads = patterns[..., queries, queries - HALF + 1].mean(dim=(1, 3))
    return float(hits.float().mean()), heads
