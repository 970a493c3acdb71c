"""What a prompt may be, and the token ids that it becomes.

Text, lists of text, token ids (ragged too), tensors, encodings of a tokenizer, and chat messages. Batches are
padded on the left, so that the last position of every row is the last token of its prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from interlace.errors import InputError


def encode(prompt: Any, tokenizer: Any) -> dict[str, Any]:
    """The arguments that a prompt becomes: `input_ids` and `attention_mask`, each `batch pos`.

    Raises:
        InputError: The prompt is empty, cannot be read, or needs a tokenizer that is not there.
    """
    if isinstance(prompt, Mapping):
        return _mapping(prompt, tokenizer)
    if isinstance(prompt, str):
        return _text([prompt], tokenizer)
    if isinstance(prompt, Sequence):
        return _sequence(prompt, tokenizer)
    if hasattr(prompt, "__array__"):
        return _tensor(torch.as_tensor(prompt))
    raise InputError(
        "A prompt is text, a list of texts, token ids, a tensor, an encoding or chat messages, "
        f"not {type(prompt).__name__}."
    )


def _sequence(prompt: Sequence[Any], tokenizer: Any) -> dict[str, Any]:
    if not prompt:
        raise InputError("The prompt is an empty list; give at least one text or one token id.")
    first = prompt[0]
    if isinstance(first, str):
        return _text(list(prompt), tokenizer)
    if isinstance(first, Mapping):
        return _chat([prompt], tokenizer)
    if isinstance(first, Sequence) and first and isinstance(first[0], Mapping):
        return _chat(prompt, tokenizer)
    if isinstance(first, Sequence) or getattr(first, "ndim", 0) > 0:
        return _rows([_listed(row) for row in prompt], tokenizer)
    return _rows([_listed(prompt)], tokenizer)


def _listed(row: Any) -> list[int]:
    """One prompt's token ids."""
    ids = row.tolist() if hasattr(row, "tolist") else row
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise InputError(f"A list of prompts holds texts only, or token ids only; {row!r} stands in it.")
    found = [token.item() if hasattr(token, "item") else token for token in ids]
    for token in found:
        if not isinstance(token, int):
            raise InputError(
                f"Token ids are whole numbers, not {token!r}; for embeddings give `inputs_embeds=`."
            )
    return found


def _tensor(ids: torch.Tensor) -> dict[str, Any]:
    if ids.ndim not in (1, 2) or ids.numel() == 0:
        raise InputError(
            f"A tensor of token ids has the shape (pos) or (batch, pos), not {tuple(ids.shape)}."
        )
    if ids.is_floating_point():
        raise InputError(
            f"Token ids are whole numbers, not {ids.dtype}. For embeddings give `inputs_embeds=`."
        )
    ids = ids if ids.ndim > 1 else ids[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _mapping(encoding: Mapping[Any, Any], tokenizer: Any) -> dict[str, Any]:
    """An encoding of a tokenizer; its lists, ragged ones too, become tensors."""
    if not any(name in encoding for name in ("input_ids", "inputs_embeds")):
        raise InputError(
            f"A mapping as prompt needs `input_ids`; it has {', '.join(map(str, encoding)) or 'nothing'}.\n"
            "Chat messages come in a list: `[{'role': 'user', 'content': ...}]`."
        )
    fills = {"input_ids": _pad(tokenizer), "labels": -100}
    found = {
        name: _padded(value, fills.get(name, 0)) if isinstance(value, list) else value
        for name, value in encoding.items()
    }
    ids = encoding.get("input_ids")
    if isinstance(ids, list):
        found = {**_sequence(ids, tokenizer), **{n: v for n, v in found.items() if n != "input_ids"}}
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        if isinstance(found.get(name), torch.Tensor) and found[name].ndim == 1:
            found[name] = found[name][None]
    return found


def _padded(rows: list[Any], fill: int) -> torch.Tensor:
    """A list of numbers, or of such lists, as a tensor that is filled on the left."""
    if not any(isinstance(row, list) for row in rows):
        return torch.as_tensor(rows)
    longest = max(map(len, rows))
    return torch.tensor([[fill] * (longest - len(row)) + row for row in rows])


def _needed(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise InputError(
            "This model has no tokenizer, so it takes no text.\n"
            "Give it one, `il.LanguageModel(model, tokenizer=tokenizer)`, or pass token ids."
        )
    return tokenizer


def _text(texts: list[Any], tokenizer: Any) -> dict[str, Any]:
    if not all(isinstance(text, str) for text in texts):
        raise InputError("A list of prompts holds texts only, or token ids only.")
    encoded = _needed(tokenizer)(texts, add_special_tokens=True)
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        if not ids:
            raise InputError(
                f"The prompt {text!r} has no tokens. To start from nothing, give the model's first token: "
                "`tokenizer.bos_token` or `tokenizer.eos_token`."
            )
    return _rows(encoded["input_ids"], tokenizer)


def _chat(chats: Sequence[Any], tokenizer: Any) -> dict[str, Any]:
    if getattr(_needed(tokenizer), "chat_template", None) is None:
        raise InputError("This tokenizer has no chat template. Set `tokenizer.chat_template`, or pass text.")
    texts = []
    for chat in chats:
        begun = chat[-1].get("role") == "assistant"  # an answer that the model is to continue
        how = {"add_generation_prompt": not begun, "continue_final_message": begun}
        texts.append(tokenizer.apply_chat_template(list(chat), tokenize=False, **how))
    return _rows(tokenizer(texts, add_special_tokens=False)["input_ids"], tokenizer)


def _pad(tokenizer: Any) -> int:
    """The id that fills a row; the mask hides it, so any will do for a model without tokenizer."""
    pad = getattr(tokenizer, "pad_token_id", None)
    return 0 if pad is None else int(pad)


def _rows(rows: list[list[int]], tokenizer: Any) -> dict[str, Any]:
    """Pad on the left."""
    if not all(rows):
        raise InputError("A prompt has no token ids.")
    mask = [[1] * len(row) for row in rows]
    return {"input_ids": _padded(rows, _pad(tokenizer)), "attention_mask": _padded(mask, 0)}


def position_ids(mask: torch.Tensor, first: int = 0) -> torch.Tensor:
    """The position of each token in its own prompt, whatever its padding: `batch pos`, counted from `first`."""
    return torch.clamp(mask.long().cumsum(-1) - 1, min=0) + first


def first_position(module: nn.Module) -> int:
    """What a model counts positions from: RoBERTa and those like it begin after the number of their padding."""
    kind = "create_position_ids_from_inputs_embeds"
    padding: Any = next((part.padding_idx for part in module.modules() if hasattr(type(part), kind)), None)
    return padding + 1 if isinstance(padding, int) else 0


def pad_labels(labels: Any, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Labels as a tensor like the ids; padding, and what would be predicted from it, is -100."""
    if isinstance(labels, torch.Tensor):
        return labels
    rows = encode(labels, tokenizer)
    padding = rows["attention_mask"] == 0
    padding[:, 1:] |= padding[:, :-1].clone()
    found: torch.Tensor = rows["input_ids"].masked_fill(padding, -100)
    if found.shape != ids.shape:
        raise InputError(f"The labels have the shape {tuple(found.shape)}, the token ids {tuple(ids.shape)}.")
    return found


def decoder_labels(labels: Any, tokenizer: Any) -> torch.Tensor:
    """What a decoder is to write, of a length of its own; filled on the right, which no token before it sees."""
    if isinstance(labels, torch.Tensor):
        return labels
    rows = encode(labels, tokenizer)
    written = rows["attention_mask"].bool()
    ids = rows["input_ids"].masked_fill(~written, -100)
    return torch.stack([torch.cat([row[own], row[~own]]) for row, own in zip(ids, written, strict=True)])


_FILL = {"attention_mask": 0, "labels": -100, "token_type_ids": 0, "inputs_embeds": 0, "position_ids": 0}


def pad_together(
    inputs: list[dict[str, Any]], pad: int, positions: Callable[[torch.Tensor], torch.Tensor], decodes: bool
) -> tuple[list[dict[str, Any]], list[int]]:
    """Encodings of several prompts, padded on the left to one length.

    Args:
        inputs: The encodings.
        pad: The token that fills a row.
        positions: Makes position ids from a mask, for prompts without any beside one that has some.
        decodes: Whether the model's labels are what a decoder writes, and not the tokens themselves.

    Returns:
        The encodings, and the length that each had.
    """
    lengths = [_length(given) for given in inputs]
    longest = max(lengths)
    if min(lengths) < longest or any(given.get("attention_mask") is not None for given in inputs):
        inputs = list(map(_masked, inputs))  # or one would see its padding
    if any(given.get("position_ids") is not None for given in inputs):
        inputs = [_placed(given, positions) for given in inputs]
    fills = {**_FILL, "input_ids": pad}
    if decodes:
        del fills["labels"]
    padded = [
        {
            name: _longer(value, longest, fills[name], name == "labels") if name in fills else value
            for name, value in given.items()
            if name != "position_ids" or getattr(value, "ndim", 0) == 2
        }
        for given in inputs
    ]
    return padded, lengths


def _length(given: dict[str, Any]) -> int:
    """How many positions an encoding has."""
    tokens = _tokens(given)
    if tokens is not None:
        return int(tokens.shape[1])
    return max((row.shape[1] for row in given.values() if _is_row(row)), default=0)


def _masked(given: dict[str, Any]) -> dict[str, Any]:
    """The same encoding with an attention mask, if only one of ones."""
    tokens = _tokens(given)
    if given.get("attention_mask") is not None or tokens is None:
        return given
    return {**given, "attention_mask": tokens.new_ones(tokens.shape[:2], dtype=torch.long)}


def _placed(given: dict[str, Any], positions: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """The same encoding with the positions of every row."""
    tokens, own = _tokens(given), given.get("position_ids")
    if tokens is None or getattr(own, "ndim", 2) != 2:
        return given
    if own is None:
        mask = given.get("attention_mask")
        own = positions(tokens.new_ones(tokens.shape[:2], dtype=torch.long) if mask is None else mask)
    return {**given, "position_ids": own[:, -tokens.shape[1] :].expand(tokens.shape[0], -1)}


def _tokens(given: dict[str, Any]) -> Any:
    """The tensor whose first axes are `batch pos`, None where there is none."""
    return next((given[name] for name in ("input_ids", "inputs_embeds") if _is_row(given.get(name))), None)


def _is_row(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1


def _longer(value: Any, length: int, fill: int, predicted: bool) -> Any:
    """A row filled on the left; of what is predicted, the first is too: it would be from the filling."""
    if not _is_row(value) or value.shape[1] == length:
        return value
    before = value.new_full((value.shape[0], length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([before, before[:, :1], value[:, 1:]] if predicted else [before, value], dim=1)
