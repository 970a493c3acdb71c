"""The model whose edits travel."""

from __future__ import annotations

import pytest
from torch import nn

import interlace as il
from tests.models import chain


@pytest.fixture
def net() -> nn.Sequential:
    return chain()


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)
