"""What `interlace demo` does to the embedded model: its experiments, and what each of them found.

It uses the recipes as any user would. It knows nothing of pictures or pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interlace.config import config
from interlace.demo import demo_model
from interlace.language import LanguageModel
from interlace.recipes import (
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

T = TypeVar("T")

__all__ = ["Findings", "Guess", "Head", "Steered", "tell"]

SENTENCE = "When {receiver} and {giver} went to the {place}, {giver} gave a {thing} to"
NAMES = (
    "Mary Anna Alice Emma Laura John Sarah Julia Kate Lucy Tom James Peter Paul David Mark Simon George "
    "Henry Jack Robert Daniel Helen Rachel Susan Martin Oliver Sophie Victor Clara"
)
PLACES = "store park school station garden library museum market beach office"
THINGS = "drink ring book ball letter gift flower ticket camera sandwich"
OTHER_PROMPTS = 32
ENOUGH = 0.1  # of the answer, brought back: a head that moves the name, a position that carries it
AT_MOST = 4
OPENINGS = {
    "One day Mary went to the park.": (0.0, 1.0),
    "One day John was sad at the beach.": (0.0, 4.0),
    "One day Tom was happy at the school.": (0.0, -4.0),
}
MOOD = "One day Mary was {} at the park."
STEERED_LAYER = 3


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that the model may say next, and its probability."""

    token: str
    probability: float


@dataclass(frozen=True, slots=True)
class Head:
    """A head that moves the name: what it brings back, and where it looks.

    Args:
        layer: From 0.
        head: From 0.
        effect: The share of the answer that patching this head alone brings back, over the other prompts.
        query_pos: From where it looks hardest in the clean prompt, among the carriers of the name.
        key_pos: At which of them it looks.
        attention: How hard, from 0 to 1.
        pattern: All of it, `query_pos key_pos`.
    """

    layer: int
    head: int
    effect: float
    query_pos: int
    key_pos: int
    attention: float
    pattern: Tensor

    @property
    def name(self) -> str:
        """Layer and head as a reader would say them."""
        return f"layer {self.layer}, head {self.head}"


@dataclass(frozen=True, slots=True)
class Steered:
    """One generation: the prompt, how hard it was steered towards happy, and what was written."""

    prompt: str
    scale: float
    added: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report shows.

    Args:
        clean: The prompt with the right name.
        corrupted: The same prompt with another name.
        tokens: Of the clean prompt, `pos`.
        name_pos: Where the two prompts differ.
        said: The five likeliest next tokens after the clean prompt.
        said_corrupted: The same after the corrupted one.
        patched: Share of the answer brought back, `depth pos`.
        heads: Share brought back by each head, `layer head`, over `OTHER_PROMPTS` pairs.
        found: The heads with the largest share.
        lens_tokens: The likeliest token, `depth pos`.
        lens_probabilities: Its probability, `depth pos`.
        answer_depth: The first depth from which on the lens reads the answer at the last position.
        steered: The generations.
    """

    clean: str
    corrupted: str
    tokens: list[str]
    name_pos: int
    said: list[Guess]
    said_corrupted: list[Guess]
    patched: Tensor
    heads: Tensor
    found: list[Head]
    lens_tokens: list[list[str]]
    lens_probabilities: Tensor
    answer_depth: int
    steered: list[Steered]


def tell() -> Findings:
    """Load the embedded model and run every experiment on it, in a few seconds."""
    model = demo_model(attn_implementation="eager")
    gpt = model.transformer
    readers = [*gpt.h, gpt.ln_f]
    clean = SENTENCE.format(receiver="Mary", giver="John", place="store", thing="drink")
    corrupted = clean.replace("Mary", "Anna")
    tokens = _tokens(model, clean)
    name_pos = tokens.index(" Mary")
    prefers = logit_difference(_ids(model, ["Mary"]), _ids(model, ["Anna"]))
    with tqdm(total=5, desc="experiments", unit="", delay=1, leave=False, disable=not config.progress) as bar:

        def done(result: T) -> T:
            bar.update()
            return result

        raw = done(patch_residual(model, readers, model.lm_head, clean, corrupted, prefers))
        heads = done(_heads(model))
        patterns = done(attention_patterns(model, [block.attn for block in gpt.h], clean))[:, 0]
        lens = done(logit_lens(model, readers, gpt.ln_f, model.lm_head, clean))[:, 0]
        steered = done(_steered(model))
    patched = recovered(raw, *(measure(model, model.lm_head, text, prefers) for text in (clean, corrupted)))
    best = lens.softmax(-1).max(-1)
    lens_tokens = [[model.tokenizer.decode(token) for token in row] for row in best.indices]
    return Findings(
        clean=clean,
        corrupted=corrupted,
        tokens=tokens,
        name_pos=name_pos,
        said=_said(model, clean),
        said_corrupted=_said(model, corrupted),
        patched=patched,
        heads=heads,
        found=_found(heads, patterns, patched.amax(0) >= ENOUGH),
        lens_tokens=lens_tokens,
        lens_probabilities=best.values,
        answer_depth=_settled([row[-1] == lens_tokens[-1][-1] for row in lens_tokens]),
        steered=steered,
    )


def _tokens(model: LanguageModel, prompt: str) -> list[str]:
    return [model.tokenizer.decode([token]) for token in model.tokenizer.encode(prompt)]


def _ids(model: LanguageModel, names: list[str]) -> Tensor:
    return torch.tensor([model.tokenizer.encode(f" {name}")[0] for name in names])


def _said(model: LanguageModel, prompt: str) -> list[Guess]:
    with torch.no_grad(), model.trace(prompt):
        logits = model.lm_head.output[0, -1]
    top = logits.softmax(-1).topk(5)
    guesses = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [Guess(model.tokenizer.decode([token]), probability) for token, probability in guesses]


def _heads(model: LanguageModel) -> Tensor:
    """Patch every head over many prompts at once; in each, another receiver makes the corrupted one."""
    random = Random(0)
    cleans, corrupteds, receivers, others = [], [], [], []
    for _ in range(OTHER_PROMPTS):
        receiver, giver, other = random.sample(NAMES.split(), 3)
        place, thing = random.choice(PLACES.split()), random.choice(THINGS.split())
        cleans.append(SENTENCE.format(receiver=receiver, giver=giver, place=place, thing=thing))
        corrupteds.append(SENTENCE.format(receiver=other, giver=giver, place=place, thing=thing))
        receivers.append(receiver)
        others.append(other)
    prefers = logit_difference(_ids(model, receivers), _ids(model, others))
    projections = [block.attn.c_proj for block in model.transformer.h]
    raw = patch_heads(model, projections, model.config.n_head, model.lm_head, cleans, corrupteds, prefers)
    return recovered(raw, *(measure(model, model.lm_head, texts, prefers) for texts in (cleans, corrupteds)))


def _found(heads: Tensor, patterns: Tensor, carriers: Tensor) -> list[Head]:
    """Keep the heads that bring back enough, the strongest first, and see which carrier reads which."""
    layers_heads = [
        divmod(place, heads.shape[1]) for place in heads.flatten().argsort(descending=True).tolist()
    ]
    enough = [(layer, head) for layer, head in layers_heads if heads[layer, head] >= ENOUGH]
    found = []
    for layer, head in (enough or layers_heads)[:AT_MOST]:
        between = (patterns[layer, head] * carriers[:, None] * carriers).tril(-1)
        query_pos, key_pos = divmod(int(between.argmax()), len(carriers))
        attention, effect = float(between[query_pos, key_pos]), float(heads[layer, head])
        found.append(Head(layer, head, effect, query_pos, key_pos, attention, patterns[layer, head]))
    return found


def _settled(right: list[bool]) -> int:
    """Say from which index on everything is right; the last one must be.

    >>> _settled([True, False, True, True])
    2
    """
    return len(right) - next((n for n, one in enumerate(reversed(right)) if not one), len(right))


def _steered(model: LanguageModel) -> list[Steered]:
    reader = model.transformer.h[STEERED_LAYER]
    happy, sad = (residual_stream(model, [reader], MOOD.format(word))[0, 0, -1] for word in ("happy", "sad"))
    runs = []
    for opening, scales in OPENINGS.items():
        for scale in scales:
            ids = steer(model, reader, happy - sad, opening, scale=scale, max_new_tokens=48, do_sample=False)
            written = model.tokenizer.decode(ids[0], skip_special_tokens=True)
            runs.append(Steered(opening, scale, written.removeprefix(opening)))
    return runs
