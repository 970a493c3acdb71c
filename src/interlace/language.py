"""Language models of Hugging Face: loading, prompts, generation.

Loading and generating are transformers'; what `from_pretrained` and `generate` accept passes through. Weights
stay on the meta device until something runs. This module and `loading` alone know transformers.
"""

import copy
import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from interlace import fakes
from interlace.batch import Batch
from interlace.calls import Function, Input, resolve
from interlace.edit import DEFAULT
from interlace.envoy import Envoy
from interlace.errors import ExportError, InputError, InterlaceWarning
from interlace.loading import HUB, Hub, auto_class, empty, hub_of, reads_tokens
from interlace.model import Model
from interlace.prompts import decoder_labels, encode, first_position, pad_labels, pad_together, position_ids
from interlace.rename import Aliases
from interlace.served import Finished, Served
from interlace.switch import carried

if TYPE_CHECKING:
    from interlace.tree import Tree

IN_CACHE = "interlace"
"""What exported edits are called in the cache's folder of their model."""

COMPILED = ("static", "hybrid", "sliding_window", "hybrid_chunked", "offloaded_static", "offloaded_hybrid")
"""Caches for which `generate` compiles the model, where the device allows it."""


class Streamed(nn.Module):
    """The site of the tokens of a generation, one `batch` a step: `model.generator.streamer.output`."""

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
    """Hands the tokens of each step to the streamer's site; a streamer of the user's own gets all."""

    def __init__(self, site: Streamed, other: Any, finished: Finished | None) -> None:
        self.site, self.other, self.finished = site, other, finished
        self.started = False

    def put(self, value: torch.Tensor) -> None:
        if self.started:
            if self.finished is not None:
                self.finished.saw(value.tolist())
            value = self.site(value)
        self.started = True  # what comes first is the prompt
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
        automodel: Another class of transformers that loads the model, or its name: `"AutoModelForSeq2SeqLM"`.
        dispatch: Load the weights now, not when they are first needed.
        rename: Other names for modules; see `Envoy`.
        envoys: Other classes for envoys; see `Envoy`.
        import_edits: Load the edits that were exported for the model, or those of this variant.
        **kwargs: Passed to `from_pretrained`: `revision`, `device_map`, `dtype`, `attn_implementation`, ...

    Raises:
        InputError: The model is not of the kind that `automodel` loads, or a prompt cannot be read.

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
        model: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        automodel: Any = AutoModelForCausalLM,
        dispatch: bool = False,
        rename: Aliases | None = None,
        envoys: Any = None,
        import_edits: bool | str = False,
        **kwargs: Any,
    ) -> None:
        loader = None
        if isinstance(model, nn.Module):
            if kwargs:
                raise TypeError(f"A model that is ready is not loaded, so it takes no {', '.join(kwargs)}.")
            module = model
        elif not isinstance(model, (str, os.PathLike)):
            raise TypeError(
                f"A language model is given by its hub id, its path, or ready, not by {type(model).__name__}."
            )
        else:
            source, auto = str(model), auto_class(automodel)
            loader = partial(auto.from_pretrained, source, **kwargs)
            module = empty(source, kwargs, auto)
            if tokenizer is None and reads_tokens(module):
                hub = {name: kwargs[name] for name in HUB if name in kwargs}
                tokenizer = AutoTokenizer.from_pretrained(source, **{**hub, **(tokenizer_kwargs or {})})
        super().__init__(module, rename, envoys)
        self._tree.loader = loader
        self.tokenizer = tokenizer
        if tokenizer is not None and tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tree.hub = hub_of(model, module, kwargs.get("cache_dir"))
        if import_edits:
            self.import_edits(variant=DEFAULT if import_edits is True else import_edits)
        if dispatch:
            self.dispatch()

    # -- loading ------------------------------------------------------------------------------------------

    def _stand(self, tree: "Tree", module: nn.Module, path: str, fused: bool) -> None:
        tree.extras.setdefault("generator", Generator())
        super()._stand(tree, module, path, fused)

    def dispatch(self) -> "LanguageModel":
        """Load the weights, if they are not there yet. The first run does it by itself."""
        self._tree.load()
        return self

    # -- edits --------------------------------------------------------------------------------------------

    def export_edits(
        self,
        name: str | None = None,
        export_dir: str | os.PathLike[str] | None = None,
        variant: str = DEFAULT,
    ) -> Path:
        """Write the stored edits to files. See `Envoy.export_edits`.

        Args:
            name: What the edits are called; by default the model's id on the hub. With neither a name nor a folder
                they are kept beside the model, in the hub's cache.
            export_dir: The folder around it.
            variant: Which of several of that name.

        Raises:
            ExportError: No edit is stored; or there is no name, and the model is not from the hub.
            TravelError: An edit reads something that cannot be written down; it is named.
        """
        return super().export_edits(*self._named(name, export_dir, "export_edits"), variant)

    def import_edits(
        self,
        name: str | None = None,
        export_dir: str | os.PathLike[str] | None = None,
        variant: str = DEFAULT,
    ) -> None:
        """Add edits that were exported to those that are stored. See `Envoy.import_edits`.

        Args:
            name: As for `export_edits`.
            export_dir: As for `export_edits`.
            variant: Which of several of that name.

        Raises:
            NoExportError: There is none of that name; those that exist are named.
            ExportError: It is damaged or does not fit; or there is no name, and the model is not from the hub.
        """
        super().import_edits(*self._named(name, export_dir, "import_edits"), variant)

    def _named(self, name: str | None, export_dir: Any, feature: str) -> tuple[str, Any]:
        if name is not None:
            return name, export_dir
        hub: Hub | None = self._tree.hub
        if hub is None:
            raise ExportError(
                f"This model is not from the hub, so its edits have no name by themselves.\n"
                f'Write `model.{feature}("a-name")`.'
            )
        return (hub.id, export_dir) if export_dir is not None else (IN_CACHE, hub.folder)

    def __copy__(self) -> Envoy:
        self.dispatch()  # or each would load weights of its own
        return super().__copy__()

    def __reduce__(self) -> Any:
        self.dispatch()
        return super().__reduce__()

    # -- input --------------------------------------------------------------------------------------------

    def _prepare_input(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Token ids, attention mask and position ids of prompts; everything else passes through."""
        if not reads_tokens(self._module):
            return args, kwargs
        kwargs = self._encoded(args, kwargs)
        if not self._has_input(kwargs):
            raise InputError(
                f"There is nothing to run on: {', '.join(kwargs) or 'no arguments'}.\n"
                f'Write `{self._path}.trace("some text")`, or give `input_ids=` or `inputs_embeds=`.'
            )
        mask = kwargs.get("attention_mask")
        if (
            kwargs.get("position_ids") is None
            and mask is not None
            and _hides(mask)
            and "position_ids" in self._takes()
        ):
            given = kwargs.get("input_ids")
            given = kwargs["inputs_embeds"] if given is None else given
            kwargs = {**kwargs, "position_ids": self._positions(mask)[:, -given.shape[1] :]}
        return (), kwargs

    def _positions(self, mask: torch.Tensor) -> torch.Tensor:
        """Position ids as this model counts them."""
        return position_ids(mask, first_position(self._module))

    @property
    def _decodes(self) -> bool:
        """Whether an encoder reads the prompt, and a decoder writes the labels."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    _pads = True

    def _row_inputs(self, rows: list[Any]) -> list[Input]:
        """The prompts of a dataset, each by itself; texts, and token ids, are prepared together."""
        ids = all(isinstance(row, list) and row and isinstance(row[0], int) for row in rows)
        if ids or all(isinstance(row, str) for row in rows):
            together = encode(rows, self.tokenizer)
            pairs = zip(together["input_ids"], together["attention_mask"], strict=True)
            alone = [row[mask.bool()][None] for row, mask in pairs]
            found = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in alone]
        else:
            found = [self._encoded((row,), {}) for row in rows]
        more = {"use_cache": False} if "use_cache" in self._takes() else {}
        return [((), {**kwargs, **more}) for kwargs in found]

    def _has_input(self, kwargs: dict[str, Any]) -> bool:
        """Whether there are tokens; other arguments may stand at the trace, for the prompts of its invokes."""
        return kwargs.get("input_ids") is not None or kwargs.get("inputs_embeds") is not None

    def _combine(self, inputs: list[Input], fn: Function) -> Batch:
        """One batch of several prompts, padded on the left."""
        if any(args for args, _ in inputs):
            return super()._combine(inputs, fn)
        pad = getattr(self.tokenizer, "pad_token_id", None)
        encodings = [kwargs for _, kwargs in inputs]
        together, lengths = pad_together(encodings, 0 if pad is None else pad, self._positions, self._decodes)
        args, kwargs, rows = super()._combine([((), kwargs) for kwargs in together], fn)
        longest = max(lengths)
        padded = [
            replace(own, padding=longest - length, length=longest)
            for own, length in zip(rows, lengths, strict=True)
        ]
        return (*(self._prepare_input(*args, **kwargs) if fn is None else (args, kwargs)), padded)

    def _copies(self, fn: Function, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """Beams, and sequences that are returned, stand next to each other, prompt after prompt."""
        if getattr(fn, "__name__", fn) != "generate":
            return ()
        found = (self._generation(name, kwargs) for name in ("num_beams", "num_return_sequences"))
        return tuple(times for times in dict.fromkeys(found) if times is not None and times > 1)

    def _function_input(self, fn: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Another function gets token ids for a prompt if it takes them; positions are its own."""
        name = getattr(fn, "__name__", fn)
        if name != "generate" and "input_ids" not in inspect.signature(resolve(self, fn)).parameters:
            return args, kwargs
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim > 1:
            return args, kwargs  # `generate` finds the padding itself
        if not reads_tokens(self._module):
            return args, kwargs
        return (), self._encoded(args, kwargs)

    def _encoded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, with the prompt, if there is one, as token ids."""
        if not args or args[0] is None:
            return kwargs
        encoding = encode(args[0], self.tokenizer)
        labels = kwargs.get("labels")
        if labels is not None and self._decodes:
            kwargs = {**kwargs, "labels": decoder_labels(labels, self.tokenizer)}
        elif labels is not None:
            kwargs = {**kwargs, "labels": pad_labels(labels, encoding["input_ids"], self.tokenizer)}
        more = dict(zip(self._takes()[1:], args[1:], strict=False)) if len(args) > 1 else {}
        return {**encoding, **more, **kwargs}

    def _takes(self) -> list[str]:
        """The names of what the model's own call takes."""
        return list(inspect.signature(self._module.forward).parameters)

    # -- generation ---------------------------------------------------------------------------------------

    def __interlace_generate__(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' own `generate`; in a trace its tokens pass the generator's sites."""
        module: Any = self._module
        if carried() is None:
            return module.generate(*args, **kwargs)
        generator: Any = self._tree.extras["generator"]
        if self._generation("num_beams", kwargs) in (None, 1):
            finished = self._finished(kwargs)
            kwargs["streamer"] = _Streamer(generator.streamer, kwargs.get("streamer"), finished)
        if not self._generation("disable_compile", kwargs):
            self._uncompiled(kwargs)
        if fakes.active():
            kwargs["eos_token_id"] = None  # nobody knows whether a token without a value ends the text
        return generator(module.generate(*args, **kwargs))

    def _finished(self, kwargs: Mapping[str, Any]) -> Finished | None:
        """Where the end of each row is noted, when several prompts are generated together."""
        run = carried()
        if not isinstance(run, Served) or fakes.active():
            return None
        given = (
            kwargs["eos_token_id"] if "eos_token_id" in kwargs else self._generation("eos_token_id", kwargs)
        )
        ends = given.tolist() if isinstance(given, torch.Tensor) else given
        run.finished = Finished(set(ends) if isinstance(ends, list) else {ends})
        return run.finished

    def _generation(self, name: str, kwargs: Mapping[str, Any]) -> Any:
        """A setting of a generation, from where transformers takes it."""
        places = (kwargs.get("generation_config"), getattr(self._module, "generation_config", None))
        found = (kwargs.get(name), *(getattr(place, name, None) for place in places))
        return next((value for value in found if value is not None), None)

    def _uncompiled(self, kwargs: dict[str, Any]) -> None:
        """Switch compilation off for this call, and say so once if it might have been on."""
        cache, kind = kwargs.get("past_key_values"), self._generation("cache_implementation", kwargs)
        compiled = kind in COMPILED or getattr(cache, "is_compileable", False)
        if compiled and "_told_uncompiled" not in self.__dict__:
            self.__dict__["_told_uncompiled"] = True
            message = "A traced generation runs uncompiled: nothing can be read inside a compiled model."
            warnings.warn(message, InterlaceWarning, stacklevel=2)
        if kwargs.get("generation_config") is None:
            kwargs["disable_compile"] = True
        else:
            kwargs["generation_config"] = copy.copy(kwargs["generation_config"])
            kwargs["generation_config"].disable_compile = True

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._module.config


def _hides(mask: Any) -> bool:
    """Whether an attention mask of the shape `batch pos` hides anything."""
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return False
    return fakes.has_no_values(mask) or not bool(mask.all())
