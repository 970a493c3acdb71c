"""What a prompt may be, and the token ids that it becomes.

Text, lists of text, token ids (ragged too), tensors, encodings of a tokenizer, and chat messages. Batches are padded on
the left, so that the last position of every row is the last token of its prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from interlace.errors import InputError


def encode(prompt: Any, tokenizer: Any) -> dict[str, Any]:
    """The arguments that a prompt becomes: `input_ids` and `attention_mask`, each `batch pos`.

    Raises:
        InputError: The prompt is empty, cannot be read, or needs a tokenizer that is not there.
    """
    if isinstance(prompt, Mapping):
        if not any(name in prompt for name in ("input_ids", "inputs_embeds")):
            raise InputError(f"A mapping as prompt needs `input_ids`; it has {', '.join(map(str, prompt)) or 'nothing'}.")
        return {name: torch.as_tensor(v) if isinstance(v, list) else v for name, v in prompt.items()}
    if isinstance(prompt, torch.Tensor):
        return _tensor(prompt)
    if isinstance(prompt, str):
        return _text([prompt], tokenizer)
    if isinstance(prompt, Sequence) and len(prompt):
        return _sequence(prompt, tokenizer)
    if isinstance(prompt, Sequence):
        raise InputError("The prompt is an empty list; give at least one text or one token id.")
    raise InputError(
        f"A prompt is text, a list of texts, token ids, a tensor, an encoding or chat messages, not {type(prompt).__name__}."
    )


def _sequence(prompt: Sequence[Any], tokenizer: Any) -> dict[str, Any]:
    first = prompt[0]
    if isinstance(first, str):
        return _text(list(prompt), tokenizer)
    if isinstance(first, Mapping):
        return _chat(prompt, tokenizer)
    if isinstance(first, int):
        return _rows([list(prompt)], tokenizer)
    if isinstance(first, torch.Tensor):
        return _rows([row.tolist() for row in prompt], tokenizer)
    if isinstance(first, Sequence) and len(first) and isinstance(first[0], Mapping):
        return _chat(prompt, tokenizer)
    if isinstance(first, Sequence):
        return _rows([list(row) for row in prompt], tokenizer)
    raise InputError(f"A list of {type(first).__name__} is no prompt; give texts, token ids or chat messages.")


def _tensor(ids: torch.Tensor) -> dict[str, Any]:
    if ids.ndim == 0 or ids.numel() == 0:
        raise InputError(f"A tensor of token ids has the shape (pos) or (batch, pos), not {tuple(ids.shape)}.")
    if ids.is_floating_point():
        raise InputError(f"Token ids are whole numbers, not {ids.dtype}. For embeddings give `inputs_embeds=`.")
    ids = ids if ids.ndim > 1 else ids[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


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


def _chat(messages: Sequence[Any], tokenizer: Any) -> dict[str, Any]:
    if getattr(_needed(tokenizer), "chat_template", None) is None:
        raise InputError("This tokenizer has no chat template. Set `tokenizer.chat_template`, or pass plain text.")
    several = list(messages) if not isinstance(messages[0], Mapping) else [messages]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in several]
    return _rows(tokenizer(texts, add_special_tokens=False)["input_ids"], tokenizer)


def _rows(rows: list[list[int]], tokenizer: Any) -> dict[str, Any]:
    """Pad on the left."""
    if any(not row for row in rows):
        raise InputError("A prompt has no token ids.")
    longest = max(map(len, rows))
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = 0 if pad is None else pad
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """The position of each token in its own prompt, whatever its padding: `batch pos`."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def pad_labels(labels: Any, ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Labels as a tensor like the ids; where a row is padded they are -100, which the loss ignores."""
    if isinstance(labels, torch.Tensor):
        return labels
    rows = encode(labels, tokenizer)
    found = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    if found.shape != ids.shape:
        raise InputError(f"The labels have the shape {tuple(found.shape)}, the token ids {tuple(ids.shape)}.")
    return found
