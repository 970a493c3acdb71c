"""The models that are measured, all made in place: nothing is downloaded, the weights are random.

Each takes the load off something else: the overhead nets leave only the tool to be measured, the small
language models are where the tool is a visible part, the real-size one is where it should not be.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from interlace.trees import tensors


class Overhead(nn.Module):
    """`depth` blocks that do nothing, so that what is left to measure is the calls and the tool."""

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Cold(Overhead):
    """The same, but each block walks over more memory than a core's own caches hold, as those of a real model do.

    What runs between two blocks then finds neither its code nor its data there.
    """

    class Block(nn.Module):
        def __init__(self, memory: Tensor) -> None:
            super().__init__()
            self.memory = memory

        def forward(self, x: Tensor) -> Tensor:
            self.memory.add_(1)
            return x

    def __init__(self, depth: int, megabytes: int = 4) -> None:
        nn.Module.__init__(self)
        memory = torch.zeros(megabytes << 18)
        self.blocks = nn.ModuleList(self.Block(memory) for _ in range(depth))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and one input of it.

    Every block of `stack` returns one tensor of the shape of `replacement`. `prompt` is what a generation
    starts from, if the model generates.
    """

    name: str
    net: nn.Module
    stack: str
    replacement: Tensor
    args: tuple[Tensor, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)  # as a model's forward takes them: anything
    prompt: Tensor | None = None

    @property
    def edited(self) -> int:
        """The block whose output the workloads on one block read or replace."""
        return self.blocks // 2

    @property
    def generation(self) -> dict[str, Any]:
        """How a generation is called, but for its length."""
        assert self.prompt is not None, f"{self.name} generates nothing"
        return {"inputs": self.prompt, "attention_mask": torch.ones_like(self.prompt), "do_sample": False}

    @property
    def modules(self) -> int:
        return sum(1 for _ in self.net.modules())

    @property
    def blocks(self) -> int:
        return sum(1 for _ in self.net.get_submodule(self.stack).children())

    def to(self, device: str) -> "Subject":
        """The same on another device."""
        kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.kwargs.items()}
        return replace(
            self,
            net=self.net.to(device),
            replacement=self.replacement.to(device),
            args=tuple(arg.to(device) for arg in self.args),
            kwargs=kwargs,
            prompt=None if self.prompt is None else self.prompt.to(device),
        )

    def copy(self) -> Any:  # a module, whose attributes are its own
        """Modules of its own for each tool, so that what one leaves on them reaches no other."""
        shared = [*self.net.parameters(), *self.net.buffers()]
        return copy.deepcopy(self.net, {id(tensor): tensor for tensor in shared})


def logits(result: Any) -> Tensor:  # of whatever class the model returns
    """The tensor in what a subject's model returned."""
    return result if isinstance(result, Tensor) else result.logits


def first(value: Any) -> Tensor:  # whatever a module returned
    """The first tensor in what a module returned."""
    return next(tensors(value))


def overhead(depth: int) -> Subject:
    x = torch.zeros(1, 4)
    return Subject(f"overhead net, {depth} blocks", Overhead(depth), "blocks", torch.ones(1, 4), (x,))


def cold(depth: int, megabytes: int = 4) -> Subject:
    x, name = torch.zeros(1, 4), f"overhead net, {depth} blocks, caches cold"
    return Subject(name, Cold(depth, megabytes), "blocks", torch.ones(1, 4), (x,))


def gpt2(name: str, *, layers: int, width: int, heads: int, vocabulary: int, tokens: int = 16) -> Subject:
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds; the overhead nets do without

    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=256,
        bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return _language(name, GPT2LMHeadModel(config), "transformer.h", width, tokens, vocabulary)


def llama(name: str, *, layers: int, width: int, heads: int, vocabulary: int, tokens: int = 16) -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=2 * width, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocabulary, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return _language(name, LlamaForCausalLM(config), "model.layers", width, tokens, vocabulary)


def _language(name: str, net: nn.Module, stack: str, width: int, tokens: int, vocabulary: int) -> Subject:
    net.eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (1, tokens), generator=random)
    replacement = torch.randn(1, tokens, width, generator=random)
    call = {"input_ids": ids, "use_cache": False}
    return Subject(name, net, stack, replacement, kwargs=call, prompt=ids)


def subjects(*, tiny: bool = False) -> list[Callable[[], Subject]]:
    """What makes the models, one at a time; `tiny` makes each as small as its kind can be."""
    if tiny:
        return [
            lambda: overhead(3),
            lambda: cold(2, 1),
            lambda: gpt2("GPT-2, tiny", layers=2, width=8, heads=2, vocabulary=32, tokens=4),
            lambda: llama("Llama, tiny", layers=2, width=8, heads=2, vocabulary=32, tokens=4),
        ]
    return [
        lambda: overhead(32),
        lambda: overhead(400),
        lambda: cold(32),
        lambda: gpt2("GPT-2, 12 layers of width 64", layers=12, width=64, heads=4, vocabulary=1000),
        lambda: llama("Llama, 32 layers of width 64", layers=32, width=64, heads=4, vocabulary=1000),
        lambda: gpt2("GPT-2, 124M parameters", layers=12, width=768, heads=12, vocabulary=50257),
    ]


def tokenizer(vocabulary: int) -> Any:  # transformers has no types
    """One word for each id, for models whose prompts are ids anyway."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{index}": index for index in range(vocabulary)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0")
