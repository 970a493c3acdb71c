"""Tiny models, one for each way in which a model's modules may be called."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


def sequential(width: int = 4) -> nn.Sequential:
    """Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


def chain(width: int = 4) -> nn.Sequential:
    """Linear, ReLU, Linear, all of one width."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class Attention(nn.Module):
    """Self-attention that returns `(output, pattern)`, as those of Hugging Face do."""

    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, pos, d_model = hidden.shape
        q, k, v = (
            part.reshape(batch, pos, self.n_head, -1).transpose(1, 2)
            for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask
        pattern = scores.softmax(-1)
        mixed = (pattern @ v).transpose(1, 2).reshape(batch, pos, d_model)
        return self.proj(mixed), pattern


class Mlp(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 2 * d_model)
        self.act = nn.GELU()
        self.down = nn.Linear(2 * d_model, d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.up(hidden)))
        return out


class Block(nn.Module):
    """A pre-norm block that returns a tuple of one."""

    def __init__(self, d_model: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_head)
        self.ln_2 = nn.LayerNorm(d_model)
        self.mlp = Mlp(d_model)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        hidden = hidden + self.attn(self.ln_1(hidden), mask=mask)[0]
        return (hidden + self.mlp(self.ln_2(hidden)),)


@dataclass
class Decoded:
    """What a `Transformer` returns."""

    logits: Tensor
    hidden: Tensor | None = None


class Transformer(nn.Module):
    """A decoder of `layers` blocks over `d_vocab` tokens, with a greedy `generate`."""

    def __init__(self, layers: int = 2, d_model: int = 8, n_head: int = 2, d_vocab: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(d_vocab, d_model)
        self.h = nn.ModuleList(Block(d_model, n_head) for _ in range(layers))
        self.ln_f = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, d_vocab, bias=False)

    @property
    def first(self) -> nn.Module:
        return self.h[0]

    def forward(self, ids: Tensor) -> Decoded:
        hidden = self.embed(ids)
        mask = hidden.new_full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        for block in self.h:
            hidden = block(hidden, mask=mask)[0]
        return Decoded(self.lm_head(self.ln_f(hidden)), hidden)

    @torch.no_grad()
    def generate(self, ids: Tensor, steps: int = 3) -> Tensor:
        for _ in range(steps):
            ids = torch.cat([ids, self(ids).logits[:, -1:].argmax(-1)], dim=1)
        return ids

    def itself(self) -> nn.Module:
        return self


def ids(batch: int = 2, pos: int = 5) -> Tensor:
    """Token ids for a `Transformer`."""
    return torch.arange(batch * pos).reshape(batch, pos) % 11


class Looped(nn.Module):
    """Calls one block several times."""

    def __init__(self, times: int = 5, width: int = 3) -> None:
        super().__init__()
        self.times = times
        self.block = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.block(x))
        out: Tensor = self.head(x)
        return out


class Experts(nn.Module):
    """A mixture of experts: every row goes to one, so some may see nothing."""

    def __init__(self, experts: int = 4, width: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        out = torch.zeros_like(x)
        for n, expert in enumerate(self.experts):
            rows = (chosen == n).nonzero().flatten()
            if len(rows):
                out = out.index_copy(0, rows, expert(x[rows]))
        return out


class Encoded(NamedTuple):
    """What an encoder returns."""

    hidden: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Linear(width, width)

    def forward(self, *, x: Tensor) -> Encoded:
        hidden = self.block(x)
        return Encoded(hidden, hidden.mean(0))


class Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Linear(width, width)
        self.cross = nn.Linear(width, width)

    def forward(self, x: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        hidden = self.block(x) + self.cross(encoded.hidden) + encoded.pooled
        return {"hidden": hidden, "sum": hidden.sum()}


class EncoderDecoder(nn.Module):
    """Keyword-only calls, a named tuple and a dict on the way."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.decoder = Decoder(width)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = self.decoder(x, encoded=self.encoder(x=x))
        return out


class Bert(nn.Module):
    """Submodules named like features of an envoy."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.attention = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.attention(x).relu())
        return out


class Tied(nn.Module):
    """One module under two names."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = self.a
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.b(self.a(x).relu()))
        return out


class Odd(nn.Module):
    """Calls that stretch the rules: nothing given, None returned, an error, a branch not taken."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.constant = Constant(width)
        self.silent = Silent()
        self.inner = nn.Linear(width, width)
        self.dead = nn.Linear(width, width)
        self.fails = Fails()

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        self.silent(x)
        x = self.inner(x) + self.constant()
        out: Tensor = self.fails(x) if fail else x
        return out


class Constant(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(width))

    def forward(self) -> Tensor:
        return self.value * 2


class Silent(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError("the model's own")
