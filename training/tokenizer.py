"""Makes the demo model's tokenizer: a token for each word of the corpus, bytes for everything else.

It is the byte-level BPE of GPT-2 without merges: `ignore_merges` takes a word that is in the vocabulary
whole, and any other text falls apart into bytes. So `" Mary"` is one token, and no token is a fragment
of words.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

__all__ = ["make_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"


def make_tokenizer(texts: Iterable[str], context_length: int) -> PreTrainedTokenizerFast:
    """Make a vocabulary of two special tokens, the 256 bytes, and the words of `texts`."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)} - set(alphabet)
    vocabulary = {
        token: index for index, token in enumerate([END_OF_TEXT, PADDING, *alphabet, *sorted(words)])
    }
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        padding_side="left",
        model_max_length=context_length,
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would add token types to its input
        clean_up_tokenization_spaces=False,
    )
