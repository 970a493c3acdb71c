"""Language models of Hugging Face: loading, prompts, generation.

Loading and generating are transformers'; everything that `from_pretrained` and `generate` accept passes through. Weights
stay on the meta device until something runs. This is the only module of the library that knows transformers.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from interlace.errors import InputError, InterlaceWarning
from interlace.model import Model
from interlace.prompts import encode, pad_labels, position_ids
from interlace.rename import Aliases

HUB = ("revision", "cache_dir", "token", "subfolder", "local_files_only", "trust_remote_code", "force_download")
"""What of `from_pretrained`'s arguments also says where a config and a tokenizer are found."""


class Streamed(nn.Module):
    """The site of the tokens of a generation, as each is sampled: `model.generator.streamer.output`."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pass the tokens through."""
        return tokens


class Generator(nn.Module):
    """The site of a whole generation: `model.generator.output`, the token ids that `generate` returned."""

    def __init__(self) -> None:
        super().__init__()
        self.streamer = Streamed()

    def forward(self, ids: Any) -> Any:
        """Pass the result through."""
        return ids


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Hands each sampled token to the streamer's site, and to a streamer of the user's own."""

    def __init__(self, site: Streamed, other: Any) -> None:
        self.site, self.other = site, other

    def put(self, value: torch.Tensor) -> None:
        value = self.site(value)
        if self.other is not None:
            self.other.put(value)

    def end(self) -> None:
        if self.other is not None:
            self.other.end()


class LanguageModel(Model):
    """A causal language model of Hugging Face, with its tokenizer.

    Args:
        model: A hub id, a path, or a model that is ready.
        tokenizer: Its tokenizer; needed with a ready model that is to take text.
        tokenizer_kwargs: What the tokenizer is loaded with.
        dispatch: Load the weights now, not when they are first needed.
        rename: Other names for modules; see `Envoy`.
        envoys: Other classes for envoys; see `Envoy`.
        **kwargs: Passed to `from_pretrained`: `revision`, `device_map`, `dtype`, `attn_implementation`, ...

    Raises:
        InputError: The model is not a causal language model, or a prompt cannot be read.

    Example:
        >>> import interlace as il
        >>> model = il.demo_model()
        >>> with model.generate("The capital of France is", max_new_tokens=2) as tracer:
        ...     for step in tracer.iter[:]:
        ...         logits = model.lm_head.output[:, -1]
        ...     ids = tracer.result
        >>> model.tokenizer.decode(ids[0])
        'The capital of France is Paris.'
    """

    def __init__(
        self,
        model: str | nn.Module,
        *,
        tokenizer: Any = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        dispatch: bool = False,
        rename: Aliases | None = None,
        envoys: Any = None,
        **kwargs: Any,
    ) -> None:
        own = self.__dict__
        self.__dict__["tokenizer"] = tokenizer
        ready = isinstance(model, nn.Module)
        module = model if ready else self._empty(model, kwargs, dict(tokenizer_kwargs or {}))
        super().__init__(module, rename, envoys)
        if not ready:
            self._tree.loader = partial(AutoModelForCausalLM.from_pretrained, model, **kwargs)
        self._tree.extras["generator"] = Generator()
        self._set_pad_token()
        if dispatch:
            self.dispatch()

    # -- loading ------------------------------------------------------------------------------------------------

    def _empty(self, source: str, kwargs: dict[str, Any], tokenizer_kwargs: dict[str, Any]) -> nn.Module:
        """The model without weights, on the meta device."""
        hub = {name: kwargs[name] for name in HUB if name in kwargs}
        config = kwargs.get("config") or AutoConfig.from_pretrained(source, **hub)
        if type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
            raise InputError(
                f"{source!r} is a {type(config).__name__}, which transformers does not load as a causal language "
                "model.\nLoad it with its own class and wrap that: `il.Model(AutoModel...from_pretrained(...))`."
            )
        if self.__dict__["tokenizer"] is None:
            self.__dict__["tokenizer"] = AutoTokenizer.from_pretrained(source, **hub, **tokenizer_kwargs)
        given = {name: kwargs[name] for name in ("attn_implementation", "trust_remote_code") if name in kwargs}
        with torch.device("meta"):
            module: nn.Module = AutoModelForCausalLM.from_config(config, **given)
        return module.eval()

    def dispatch(self) -> "LanguageModel":
        """Load the weights, if they are not there yet."""
        self._tree.load()
        return self

    def _set_pad_token(self) -> None:
        tokenizer = self.tokenizer
        if tokenizer is not None and getattr(tokenizer, "pad_token", None) is None:
            tokenizer.pad_token = tokenizer.eos_token

    # -- input --------------------------------------------------------------------------------------------------

    def _prepare_input(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Token ids, attention mask and position ids of prompts; everything else passes through."""
        args, kwargs = self._encoded(args, kwargs)
        if kwargs.get("input_ids") is not None and "position_ids" not in kwargs and not args:
            mask = kwargs.get("attention_mask")
            if mask is not None and self._takes("position_ids") and not bool(mask.all()):
                kwargs["position_ids"] = position_ids(mask)
        return args, kwargs

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        if args:
            encoding = encode(args[0], self.tokenizer)
            labels = kwargs.get("labels")
            if labels is not None:
                kwargs["labels"] = pad_labels(labels, encoding["input_ids"], self.tokenizer)
            return (), {**dict(zip(self._positional(), args[1:], strict=False)), **encoding, **kwargs}
        if not any(kwargs.get(name) is not None for name in ("input_ids", "inputs_embeds", "inputs")):
            raise InputError(
                f"There is nothing to run on: {', '.join(kwargs) or 'no arguments'}.\n"
                f'Write `{self._path}.trace("some text")`, or give `input_ids=` or `inputs_embeds=`.'
            )
        return args, kwargs

    def _positional(self) -> list[str]:
        names = list(inspect.signature(self._module.forward).parameters)
        return names[1:]

    def _takes(self, name: str) -> bool:
        return name in inspect.signature(self._module.forward).parameters

    # -- generation ---------------------------------------------------------------------------------------------

    def __interlace_generate__(self, *args: Any, **kwargs: Any) -> Any:
        """What `model.generate(...)` runs: transformers' own, with its tokens reported to the generator's sites."""
        generator: Any = self._tree.extras["generator"]
        if kwargs.get("num_beams", 1) in (1, None) and not kwargs.get("assistant_model"):
            kwargs["streamer"] = _Streamer(generator.streamer, kwargs.pop("streamer", None))
        if not kwargs.get("disable_compile"):
            if kwargs.get("cache_implementation") in ("static", "hybrid", "sliding_window"):
                warnings.warn(
                    "A traced generation runs uncompiled: a compiled model cannot be read.", InterlaceWarning, stacklevel=2
                )
            kwargs["disable_compile"] = True
        module: Any = self._module
        return generator(module.generate(*args, **kwargs))

    def _function_input(self, fn: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Input of another method than the model's own call: a prompt where it takes token ids, else as it is.

        Position ids are that method's to make.
        """
        taken = inspect.signature(fn if callable(fn) else getattr(self._module, fn)).parameters
        if not {"input_ids", "inputs"} & set(taken):
            return args, kwargs
        return self._encoded(args, kwargs)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._module.config
