"""Tiny language models of transformers, saved in a folder with a tokenizer of their own."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

WORDS = ["<eos>", "<unk>", *"abcdefghijklmnop", "user", "assistant", ":"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
SIZES: dict[str, Any] = {
    "gpt2": (GPT2Config, {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 64}),
    "llama": (
        LlamaConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "hidden_size": 8,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
        },
    ),
    "neox": (
        GPTNeoXConfig,
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_size": 8,
            "intermediate_size": 16,
            "max_position_embeddings": 64,
        },
    ),
}
BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers", "neox": "gpt_neox.layers"}


def head(model: Any) -> Any:
    """The envoy of the unembedding, which GPT-NeoX has under another name in each line of transformers."""
    return getattr(model, "lm_head" if "lm_head" in model._module._modules else "embed_out")


def tokenizer() -> Any:
    """Words of one letter; it has an end-of-text token and nothing to pad with."""
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    made.chat_template = CHAT
    return made


def ready(name: str) -> Any:
    """The model, with random weights that tell tokens and positions apart."""
    torch.manual_seed(1)
    config, sizes = SIZES[name]
    model: Any = AutoModelForCausalLM.from_config(
        config(vocab_size=len(WORDS), eos_token_id=0, bos_token_id=0, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
    return model.eval()


def save(name: str, folder: Path) -> str:
    """Save a model and its tokenizer; the path."""
    ready(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
