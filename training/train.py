"""Trains the embedded demo model on two cores: `python training/train.py [--out DIR] [--seed N]`.

It stops as soon as the held-out figures stand above their thresholds with a margin, writes what
`from_pretrained` loads, and prints the figures of the model read back from there. A run reaches the
thresholds, not the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script sees its own folder only, and this one is part of a package

from training.corpus import documents, vocabulary_texts  # noqa: E402
from training.evaluate import REQUIRED, WITH_MARGIN, evaluate  # noqa: E402
from training.tokenizer import make_tokenizer  # noqa: E402

WEIGHTS = ROOT / "src" / "interlace" / "demo" / "weights"

CONTEXT = 128
TOKENS = 4096
STEPS = 2400
WARMUP = 50
EVALUATE_EVERY = 100
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
INITIAL_SCALE = 0.08
UNPREDICTABLE = 0.02
"""The weight in the loss of random tokens that nothing before them tells."""


Weighted: TypeAlias = tuple[list[int], list[float]]
"""Token ids, and the weight of each in the loss."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum: in short rows, with few tokens to tell apart, induction forms soon."""

    until: int
    """The step that ends it."""
    row: int
    """Tokens in a row."""
    longest: int
    """Tokens in the longest random sequence, of which the shortest has 3."""
    times: int
    """How often a random sequence stands in a row at most, and twice at least."""
    share: float
    """Random sequences for each document of text."""


CURRICULUM = (
    Stage(until=700, row=32, longest=10, times=8, share=0.4),
    Stage(until=1100, row=64, longest=24, times=4, share=0.25),
    Stage(until=STEPS, row=CONTEXT, longest=50, times=2, share=0.15),
)


def main() -> int:
    """Train, write, read back, and report; the exit status is 0 where the thresholds are reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the text (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()
    tokenizer = make_tokenizer(vocabulary_texts(), CONTEXT)
    model = make_model(tokenizer)
    train(model, tokenizer, arguments.seed)
    save(model, tokenizer, arguments.out)
    figures = evaluate(*load(arguments.out))
    print(f"{figures}\ntrained in {(time.monotonic() - started) / 60:.1f} minutes, saved in {arguments.out}")
    return 0 if figures.scores.reach(REQUIRED) else 1


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 of four layers of four heads, with random weights.

    Positions begin as the sinusoids of "Attention Is All You Need", by which a head soon finds the previous
    token, and weights at about `1 / sqrt(d_model)`: from GPT-2's own 0.02, attention this narrow stays
    uniform.
    """
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        initializer_range=INITIAL_SCALE,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    angles = torch.outer(torch.arange(CONTEXT), torch.logspace(0, -3, config.n_embd // 2))
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(INITIAL_SCALE * torch.cat([angles.sin(), angles.cos()], dim=1))
    return model


def train(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Train until the figures stand above their thresholds with a margin, or for `STEPS` steps."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate)
    model.train()
    progress = tqdm(batches(tokenizer, Random(seed)), total=STEPS, unit="step", mininterval=2)
    for step, (ids, weights) in enumerate(progress, start=1):
        loss = weighted_loss(model, ids, weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
        if step % EVALUATE_EVERY == 0:
            figures = evaluate(model, tokenizer)
            progress.write(f"step {step}: {figures}")
            if step == STEPS or figures.scores.reach(WITH_MARGIN):
                return


def _rate(step: int) -> float:
    """The learning rate's factor: a linear rise, then a cosine down to a twentieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (STEPS - WARMUP))))


def weighted_loss(model: GPT2LMHeadModel, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy of each next token, in nats, weighted by the token that is predicted."""
    logits = model(input_ids=ids).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    chosen = weights[:, 1:].flatten()
    return (losses * chosen).sum() / chosen.sum()


def batches(tokenizer: PreTrainedTokenizerFast, random: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch for each step: token ids and their weights in the loss, both `batch pos`."""
    done = 0
    for stage in CURRICULUM:
        written = tokenized_documents(tokenizer, stage, random)
        for _ in range(stage.until - done):
            number = TOKENS // stage.row
            rows = [packed_row(written, stage.row, tokenizer.eos_token_id, random) for _ in range(number)]
            ids, weights = zip(*rows, strict=True)
            yield torch.tensor(ids), torch.tensor(weights)
        done = stage.until


def packed_row(written: Iterator[Weighted], length: int, end: int, random: Random) -> Weighted:
    """Documents with end-of-text tokens between them, cut off at `length`; half the rows begin with one."""
    ids, weights = ([end], [1.0]) if random.random() < 0.5 else ([], [])
    while len(ids) < length:
        more_ids, more_weights = next(written)
        ids += [*more_ids, end]
        weights += [*more_weights, more_weights[0]]
    return ids[:length], weights[:length]


def tokenized_documents(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, random: Random, at_once: int = 256
) -> Iterator[Weighted]:
    """Endless documents and repeated random sequences."""
    texts = documents(random)
    ordinary = range(len(tokenizer.all_special_ids), len(tokenizer))
    while True:
        for ids in tokenizer([next(texts) for _ in range(at_once)]).input_ids:
            yield ids, [1.0] * len(ids)
            if random.random() < stage.share:
                yield repeated_sequence(ordinary, stage, random)


def repeated_sequence(vocabulary: range, stage: Stage, random: Random) -> Weighted:
    """Random tokens several times over, of which only the repetitions count, from their second token on."""
    once = random.choices(vocabulary, k=random.randint(3, stage.longest))
    ids = once * random.randint(2, stage.times)
    unknown = len(once) + 1
    return ids, [UNPREDICTABLE] * unknown + [1.0] * (len(ids) - unknown)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in half precision, under a configuration by which they are loaded in single precision."""
    halved = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(out, state_dict=halved)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    # Version 5 of transformers writes a class name that version 4 does not know; both know this one.
    path = out / "tokenizer_config.json"
    written = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def load(out: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Read model and tokenizer back by the ordinary path."""
    return AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)


if __name__ == "__main__":
    sys.exit(main())
