"""The experiments of the field, each as short as its description, on the public API alone.

Example:
    >>> import interlace as il
    >>> from interlace.recipes import logit_lens
    >>> model = il.demo_model()
    >>> gpt = model.transformer
    >>> readers = [*gpt.h, gpt.ln_f]
    >>> logits = logit_lens(model, readers, gpt.ln_f, model.lm_head, "The capital of France is")
    >>> model.tokenizer.decode(logits[-1, 0, -1].argmax())
    ' Paris'

A recipe is told which modules of the model play which part. The `readers` are those that are given the
residual stream, in order: every block, then the last norm; so depth 0 is the embeddings, and the last
depth is what the model ends with. It knows nothing of one architecture's names, and nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from interlace.config import config
from interlace.envoy import Envoy
from interlace.language import LanguageModel

__all__ = [
    "Metric",
    "attention_patterns",
    "logit_difference",
    "logit_lens",
    "measure",
    "patch_heads",
    "patch_residual",
    "recovered",
    "residual_stream",
    "steer",
]

Metric: TypeAlias = Callable[[Tensor], Tensor]
"""From logits, `batch pos d_vocab`, to one number."""


def logit_difference(right: Tensor, wrong: Tensor) -> Metric:
    """Measure by how much the last position prefers one token to another, in logits, averaged over the batch.

    Example:
        >>> import torch
        >>> prefers = logit_difference(torch.tensor([0]), torch.tensor([1]))
        >>> prefers(torch.tensor([[[3.0, 1.0]]])).item()
        2.0

    Args:
        right: The ids of the tokens that should follow, `batch`.
        wrong: The ids of the tokens that they compete with, `batch`.
    """

    def metric(logits: Tensor) -> Tensor:
        if len(logits) != len(right):
            raise ValueError(
                f"The tokens are those of {len(right)} prompts, and these are the logits of {len(logits)}. Give one "
                "token of each kind for every prompt."
            )
        rows = torch.arange(len(right))
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).float().mean()

    return metric


def recovered(values: Tensor, clean: Tensor, corrupted: Tensor) -> Tensor:
    """Scale a metric so that 0 is the corrupted run and 1 the clean one.

    Example:
        >>> import torch
        >>> recovered(torch.tensor([-4.0, 1.0]), torch.tensor(6.0), torch.tensor(-4.0)).tolist()
        [0.0, 0.5]
    """
    return (values - corrupted) / (clean - corrupted)


def measure(model: LanguageModel, unembed: Envoy, prompt: str | list[str], metric: Metric) -> Tensor:
    """Say what the metric is when nothing is changed.

    Example:
        >>> import interlace as il
        >>> model = il.demo_model()
        >>> paris, rome = (torch.tensor(model.tokenizer.encode(word)) for word in (" Paris", " Rome"))
        >>> bool(measure(model, model.lm_head, "The capital of France is", logit_difference(paris, rome)) > 0)
        True
    """
    with torch.no_grad(), model.trace(prompt):
        return metric(unembed.output)


def residual_stream(model: LanguageModel, readers: Sequence[Envoy], prompt: str | list[str]) -> Tensor:
    """Read the residual stream as each of its readers gets it, `depth batch pos d_model`, a copy.

    Example:
        >>> import interlace as il
        >>> gpt = (model := il.demo_model()).transformer
        >>> residual_stream(model, [*gpt.h, gpt.ln_f], "The capital of France is").shape
        torch.Size([5, 1, 5, 128])
    """
    with torch.no_grad(), model.trace(prompt):
        streams = [reader.input.clone() for reader in readers]
    return torch.stack(streams)


def patch_residual(
    model: LanguageModel,
    readers: Sequence[Envoy],
    unembed: Envoy,
    clean: str | list[str],
    corrupted: str | list[str],
    metric: Metric,
) -> Tensor:
    """Put the clean run's residual stream into a corrupted run, one depth and position at a time.

    Where the answer comes back, the stream carries what the two prompts differ in. The result is what
    `metric` says of each patched run, `depth pos`; `recovered` scales it. The two prompts must have the
    same number of tokens.

    Raises:
        ValueError: They have not.

    Source: Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis";
    Meng et al. 2022, "Locating and Editing Factual Associations in GPT".
    """
    streams = residual_stream(model, readers, clean)
    depths, _, positions, _ = streams.shape
    patched = torch.empty(depths, positions)
    sweep = [(depth, pos) for depth in range(depths) for pos in range(positions)]
    for depth, pos in tqdm(
        sweep, desc="patching the stream", delay=1, leave=False, disable=not config.progress
    ):
        with torch.no_grad(), model.trace(corrupted):
            stream = readers[depth].input
            if stream.shape[1] != positions:
                raise ValueError(
                    f"The two prompts have {positions} and {stream.shape[1]} tokens. Patching goes from each position "
                    "to the same one: give prompts of the same length."
                )
            stream[:, pos] = streams[depth, :, pos]
            patched[depth, pos] = metric(unembed.output)
    return patched


def patch_heads(
    model: LanguageModel,
    projections: Sequence[Envoy],
    heads: int,
    unembed: Envoy,
    clean: str | list[str],
    corrupted: str | list[str],
    metric: Metric,
) -> Tensor:
    """Put what one attention head wrote in the clean run into a corrupted run, one head at a time.

    A layer's projection (`c_proj`, `o_proj`) is given the outputs of all its heads side by side,
    `batch pos (head d_head)`, so a head is a slice of that input. Every position is patched. The result is
    what `metric` says of each patched run, `layer head`; `recovered` scales it.

    Source: Wang et al. 2022, "Interpretability in the Wild: a Circuit for Indirect Object Identification in
    GPT-2 small".
    """
    with torch.no_grad(), model.trace(clean):
        written = [projection.input.clone() for projection in projections]
    size = written[0].shape[-1] // heads
    patched = torch.empty(len(projections), heads)
    sweep = [(layer, head) for layer in range(len(projections)) for head in range(heads)]
    for layer, head in tqdm(sweep, desc="patching heads", delay=1, leave=False, disable=not config.progress):
        part = slice(head * size, (head + 1) * size)
        with torch.no_grad(), model.trace(corrupted):
            projections[layer].input[..., part] = written[layer][..., part]
            patched[layer, head] = metric(unembed.output)
    return patched


def logit_lens(
    model: LanguageModel, readers: Sequence[Envoy], norm: Envoy, unembed: Envoy, prompt: str | list[str]
) -> Tensor:
    """Read the residual stream at every depth as if the model ended there.

    The result is logits, `depth batch pos d_vocab`; the last depth is what the model says. The model's own
    last norm and unembedding run on the side, so the run itself is untouched.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    with torch.no_grad(), model.trace(prompt):
        logits = [unembed(norm(reader.input)) for reader in readers]
    return torch.stack(logits)


def attention_patterns(model: LanguageModel, attentions: Sequence[Envoy], prompt: str | list[str]) -> Tensor:
    """Read where every head looks, `layer batch head query_pos key_pos`; each query's row sums to 1.

    The model must compute patterns at all: load it with `attn_implementation="eager"`.
    """
    with torch.no_grad(), model.trace(prompt):
        patterns = [attention.output[1] for attention in attentions]
    if any(pattern is None for pattern in patterns):
        raise ValueError(
            "This model computes attention without its patterns. "
            'Load it with `attn_implementation="eager"` to read them.'
        )
    return torch.stack(patterns)


def steer(
    model: LanguageModel,
    reader: Envoy,
    direction: Tensor,
    prompt: str,
    *,
    scale: float = 1.0,
    **generation: Any,
) -> Tensor:
    """Generate while a direction is added to the stream that `reader` gets, at every step and position.

    The direction, `d_model`, is usually the difference of the stream of two prompts that differ in what is
    wanted. The result is the token ids, `batch pos`, the prompt's included. Scale 0 changes nothing, a
    negative scale steers away. `generation` is what the model's `generate` takes.

    Source: Turner et al. 2023, "Activation Addition: Steering Language Models Without Optimization".
    """
    with model.generate(prompt, **generation) as tracer:
        for _ in tracer.iter[:]:
            reader.input[:] += scale * direction
    ids: Tensor = tracer.result
    return ids
