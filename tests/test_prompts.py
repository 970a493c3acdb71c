"""What a prompt may be (S-95)."""

from typing import Any

import numpy as np
import pytest
import torch

from interlace.errors import InputError
from interlace.prompts import encode, pad_labels, position_ids
from tests.tiny import tokenizer

pytestmark = pytest.mark.language


@pytest.fixture
def words() -> Any:
    made = tokenizer()
    made.pad_token = made.eos_token
    return made


IDS = [2, 3, 4]


@pytest.mark.parametrize(
    "prompt",
    [
        "a b c",
        ["a b c"],
        IDS,
        [IDS],
        (2, 3, 4),
        torch.tensor(IDS),
        torch.tensor([IDS]),
        [torch.tensor(IDS)],
        [torch.tensor(2), torch.tensor(3), torch.tensor(4)],
        np.array(IDS),
        [np.int64(2), np.int64(3), np.int64(4)],
        {"input_ids": IDS, "attention_mask": [1, 1, 1]},
        {"input_ids": [IDS]},
        {"input_ids": torch.tensor(IDS), "attention_mask": torch.ones(3, dtype=torch.long)},
    ],
    ids=str,
)
def test_one_prompt_in_every_form(prompt: Any, words: Any) -> None:
    """S-95: text, lists, ids, tensors and mappings mean the same."""
    found = encode(prompt, words)
    assert found["input_ids"].tolist() == [IDS]
    assert found["attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    "prompt",
    [
        ["a", "a b c"],
        [[2], [2, 3, 4]],
        [torch.tensor([2]), torch.tensor([2, 3, 4])],
        {"input_ids": [[2], [2, 3, 4]], "attention_mask": [[1], [1, 1, 1]]},
        {"input_ids": [[2], [2, 3, 4]]},
    ],
    ids=str,
)
def test_ragged_prompts_are_padded_on_the_left(prompt: Any, words: Any) -> None:
    """S-95"""
    found = encode(prompt, words)
    assert found["input_ids"].tolist() == [[0, 0, 2], [2, 3, 4]]
    assert found["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert position_ids(found["attention_mask"]).tolist() == [[0, 0, 0], [0, 1, 2]]


def test_encodings_of_the_tokenizer(words: Any) -> None:
    """S-95: a BatchEncoding, with lists or with tensors, padded by the user or not."""
    assert encode(words("a b"), words)["input_ids"].tolist() == [[2, 3]]
    assert encode(words(["a b", "c"]), words)["input_ids"].tolist() == [[2, 3], [0, 4]]
    right = words(["a b", "c"], return_tensors="pt", padding=True)
    found = encode(right, words)
    assert torch.equal(found["input_ids"], right["input_ids"])
    assert position_ids(found["attention_mask"]).tolist()[0] == [0, 1]


def test_chat_messages(words: Any) -> None:
    """S-95: one conversation, several, and one whose answer has begun."""
    one = [{"role": "user", "content": "a b"}]
    begun = [*one, {"role": "assistant", "content": "c"}]
    text = words.apply_chat_template(one, tokenize=False, add_generation_prompt=True)
    assert words.decode(encode(one, words)["input_ids"][0]) == text
    assert text.endswith("assistant :")
    assert encode([one, one], words)["input_ids"].shape[0] == 2
    assert words.decode(encode(begun, words)["input_ids"][0]).endswith("assistant : c")


def test_labels_follow_the_padding(words: Any) -> None:
    """S-95: labels as text or ids; padding, and what would be predicted from it, does not count."""
    ids = encode(["a", "a b c"], words)["input_ids"]
    assert pad_labels(["a", "a b c"], ids, words).tolist() == [[-100, -100, -100], [2, 3, 4]]
    given = torch.tensor([[1]])
    assert pad_labels(given, ids, words) is given
    with pytest.raises(InputError, match="labels have the shape"):
        pad_labels("a", ids, words)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "has no tokens.*bos_token"),
        (["a", ""], "has no tokens"),
        ([], "empty list"),
        ([[]], "no token ids"),
        ([[2], []], "no token ids"),
        ({}, "needs `input_ids`; it has nothing"),
        ({"role": "user", "content": "a"}, "Chat messages come in a list"),
        (["a", 1], "texts only, or token ids only"),
        ([1, "a"], "whole numbers, not 'a'"),
        ([[1], "a"], "texts only, or token ids only"),
        ([1.5, 2.0], "whole numbers, not 1.5.*inputs_embeds"),
        ([[1.5]], "whole numbers"),
        (torch.tensor([1.0]), "whole numbers, not torch.float32"),
        (torch.tensor(3), "shape"),
        (torch.zeros(1, 0, dtype=torch.long), "shape"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
    ids=str,
)
def test_what_is_no_prompt(prompt: Any, message: str, words: Any) -> None:
    """S-95: one error each, which says what to give instead."""
    with pytest.raises(InputError, match=f"(?s){message}"):
        encode(prompt, words)


def test_text_without_a_tokenizer() -> None:
    """S-95"""
    with pytest.raises(InputError, match=r"(?s)no tokenizer.*tokenizer=tokenizer"):
        encode("a", None)
    assert encode([[2], [2, 3]], None)["input_ids"].tolist() == [[0, 2], [2, 3]]


def test_chat_without_a_template(words: Any) -> None:
    """S-95"""
    words.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        encode([{"role": "user", "content": "a"}], words)
