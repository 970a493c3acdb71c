"""nnsight's names are mounted while a test of this folder runs, and no longer: other tests are about torch's own."""

from collections.abc import Iterator
from typing import Any

import pytest

from interlace.compat.nnsight import NNsight, mounts
from tests.models import Transformer, sequential

mounts.unmount()


@pytest.fixture(autouse=True)
def _mounted() -> Iterator[None]:
    mounts.mount()
    yield
    mounts.unmount()


@pytest.fixture
def net() -> Transformer:
    return Transformer()


@pytest.fixture
def model(net: Transformer) -> Any:
    return NNsight(net)


@pytest.fixture
def plain() -> Any:
    return NNsight(sequential())


@pytest.fixture(scope="session")
def lm() -> Any:
    """A tiny GPT-2 of transformers, with a tokenizer of one-letter words."""
    from interlace.compat.nnsight import LanguageModel
    from tests.tiny import ready, tokenizer

    return LanguageModel(ready("gpt2"), tokenizer=tokenizer())
