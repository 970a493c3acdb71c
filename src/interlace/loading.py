"""Loading what transformers loads: by which class, from where on the hub, and its shape before its weights.

It knows no envoys and no prompts.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from interlace.errors import InputError

HUB = (
    "revision", "cache_dir", "token", "subfolder", "local_files_only", "trust_remote_code", "force_download",
    "proxies", "gguf_file",
)  # fmt: skip
"""What of `from_pretrained`'s arguments also says where a tokenizer is found."""

REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A name on the hub."""


def auto_class(automodel: Any) -> Any:
    """The class that loads a model, which may be given by its name."""
    found = getattr(transformers, automodel, None) if isinstance(automodel, str) else automodel
    if not hasattr(found, "from_pretrained"):
        raise InputError(
            f"`automodel={automodel!r}` is no class of transformers that loads a model.\n"
            'Give the class or its name: `automodel="AutoModelForSeq2SeqLM"`.'
        )
    return found


def reads_tokens(module: nn.Module) -> bool:
    """Whether a model of transformers reads text; one of images or of sound says what it reads."""
    return getattr(module, "main_input_name", "input_ids") == "input_ids"


@dataclass(frozen=True, slots=True)
class Hub:
    """Where on the hub a model is from.

    Attributes:
        id: Its repository, as `openai-community/gpt2`.
        folder: Where the hub's cache keeps it.
    """

    id: str
    folder: Path


def hub_of(given: str | Path | nn.Module, module: nn.Module, cache: Any) -> Hub | None:
    """The hub's repository of a model, None for one that is not from there."""
    source = str(given)
    if isinstance(given, nn.Module):
        source = str(getattr(getattr(module, "config", None), "_name_or_path", ""))
    if isinstance(given, Path) or not REPOSITORY.fullmatch(source) or Path(source).exists():
        return None
    folder = Path(cache or HF_HUB_CACHE).expanduser() / f"models--{source.replace('/', '--')}"
    return Hub(source, folder)


def empty(source: str, kwargs: Mapping[str, Any], auto: Any) -> nn.Module:
    """The model that `from_pretrained` would make, without weights, on the meta device."""
    config = kwargs.get("config")
    if config is None or isinstance(config, (str, Path)):
        skipped = {"config", "quantization_config", "device_map"}
        skipped |= {name for name in ("dtype", "torch_dtype") if kwargs.get(name) == "auto"}
        given = {name: value for name, value in kwargs.items() if name not in skipped}
        config, _ = AutoConfig.from_pretrained(str(config or source), return_unused_kwargs=True, **given)
    if auto is AutoModelForCausalLM:
        _check(source, config)
    passed = {n: kwargs[n] for n in ("attn_implementation", "trust_remote_code") if n in kwargs}
    with torch.device("meta"):
        make = getattr(auto, "from_config", None) or auto._from_config  # a class that is no Auto class
        module: nn.Module = make(copy.deepcopy(config), **passed)
    return module.eval()


def _check(source: str, config: Any) -> None:
    """Refuse what is no causal language model, and say what to write instead."""
    if config.is_encoder_decoder:
        kind, auto = "an encoder-decoder model", "AutoModelForSeq2SeqLM"
    elif any(getattr(config, f"{part}_config", None) is not None for part in ("vision", "audio")):
        kind, auto = "a multimodal model", "AutoModelForImageTextToText"
    elif type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
        kind, auto = "no causal language model", "AutoModel"
    else:
        return
    raise InputError(
        f"{source!r} ({type(config).__name__}) is {kind}; a LanguageModel continues text.\n"
        f'Write `il.LanguageModel({source!r}, automodel="{auto}")`, and call it with what it takes.'
    )
