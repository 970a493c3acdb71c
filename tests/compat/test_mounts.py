"""What the import puts on objects that are not ours, and what it leaves alone.

pytest takes an asserted `x.save()` apart into two statements: it is saved first here, and asserted then.
"""

import argparse
import copy
import dataclasses
import enum
import importlib.metadata
import inspect
import pickle
import subprocess
import sys
import types
from typing import Any, NamedTuple

import pytest
import torch

import interlace.compat.nnsight as nnsight
from interlace.compat.nnsight import mounts


class Missing:
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Given:
    def __getattr__(self, name: str) -> Any:
        return lambda: f"given {name}"


class Own:
    def save(self, path: str = "here") -> str:
        return path


class Calls:
    def save(self) -> Any:
        return super().save()  # type: ignore[misc]


@pytest.mark.parametrize(
    "value",
    [3, "text", None, [1], {"a": 1}, torch.ones(2), torch.Size([1]), torch.nn.Linear(1, 1), Missing(), len],
    ids=lambda value: type(value).__name__,
)
def test_any_object_can_be_saved(value: Any) -> None:
    saved = value.save()
    assert saved is value
    assert nnsight.save(value) is value
    found = [value.save() for _ in range(3)]
    assert all(one is value for one in found)


def test_a_class_of_its_own_comes_first() -> None:
    found = [Own().save(), Own().save("there"), Given().save(), types.SimpleNamespace(save=lambda: 4).save()]
    assert found == ["here", "there", "given save", 4]
    with pytest.raises(AttributeError, match="'Calls' object has no attribute 'save'"):
        Calls().save()


def test_to_everybody_else_it_is_not_there() -> None:
    value = [1]
    assert not hasattr(value, "save")
    assert getattr(value, "save", None) is None
    assert "save" not in dir(value)
    assert "save" not in dir(list)
    assert "save" not in object.__dir__(value)
    assert "__len__" in dir(value)
    assert "__bool__" in dir(None)
    assert "mro" in dir(type)
    assert "save" not in {name for name, _ in inspect.getmembers(value)}
    assert "save" in dir(Own)
    assert "save" in dir(Own())
    assert "save" in dir(types.SimpleNamespace(save=1))
    for use in (lambda: value.save, lambda: value.save("file"), lambda: list.save()):
        with pytest.raises(AttributeError, match="no attribute 'save'"):
            use()


def test_names_of_classes_are_as_before() -> None:
    @dataclasses.dataclass
    class Row:
        save: int

    class Kind(enum.Enum):
        save = 1
        other = 2

    class Pair(NamedTuple):
        save: int

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'save'"):
        Row()  # type: ignore[call-arg]
    assert Row(3).save == copy.deepcopy(Row(3)).save == 3
    assert Kind.save.value == 1
    assert Pair(3).save == 3
    assert argparse.Namespace(save=True).save
    assert pickle.loads(pickle.dumps([1])) == [1]


def test_it_goes_away() -> None:
    mounts.unmount()
    with pytest.raises(AttributeError, match="'list' object has no attribute 'save'"):
        [1].save()
    assert "save" not in object.__dict__
    assert torch.Tensor.backward is mounts.TORCH_BACKWARD
    mounts.mount()
    mounts.mount()
    saved = [1].save()
    assert saved == [1]


def test_what_another_tool_put_there_comes_back() -> None:
    mounts.unmount()
    names = mounts._names_of(object)
    names["save"] = other = property(lambda value: lambda: "other")
    try:
        mounts.mount()
        ours = [1].save()
        mounts.unmount()
        assert names["save"] is other
    finally:
        names.pop("save", None)
        mounts.mount()
    assert ours == [1]


def test_the_setting_takes_it_away() -> None:
    assert nnsight.CONFIG.APP.PYMOUNT
    nnsight.CONFIG.APP.PYMOUNT = False
    assert "save" not in object.__dict__
    tensor = torch.ones(1).save()  # the library's own
    nnsight.CONFIG.APP.PYMOUNT = True
    number = (3).save()
    assert (tensor, number) == (1, 3)


def test_a_plain_backward_is_torchs() -> None:
    x = torch.ones(2, requires_grad=True)
    loss = (x * 3).sum()
    loss.backward(retain_graph=True)
    loss.backward(torch.tensor(2.0))
    assert x.grad is not None
    assert x.grad.tolist() == [9, 9]
    assert inspect.signature(torch.Tensor.backward) == inspect.signature(mounts.TORCH_BACKWARD)


def test_what_is_installed_is_found_under_it() -> None:
    """Python 3.12 to 3.14 look up every name of `object.__dict__` on the class of what they find."""
    assert importlib.metadata.version("torch").startswith(torch.__version__.partition("+")[0])


@pytest.mark.slow
@pytest.mark.language
def test_libraries_are_imported_under_it() -> None:
    """Some, such as anyio, act on every name that `dir` tells of a class."""
    code = """
import importlib.util
import interlace.compat.nnsight as nnsight
import torch, asyncio, unittest.mock, email, http.client, xml.etree, sqlite3, decimal, typing, numpy, transformers
if importlib.util.find_spec("anyio"):
    import anyio.streams.tls
from transformers import GPT2LMHeadModel, LlamaForCausalLM, T5ForConditionalGeneration, BertModel, Trainer
import matplotlib.figure
assert [1].save() == [1] and None.save() is None
assert unittest.mock.Mock().save() is not None
assert unittest.mock.Mock(spec=[]) is not None
assert nnsight.LanguageModel
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_only_this_import_mounts() -> None:
    """Law 7: the library by itself leaves `object` and `Tensor.backward` alone; this import brings no transformers."""
    code = """
import sys, torch
before = torch.Tensor.backward
import interlace as il
il.Model(torch.nn.Linear(1, 1)).trace
assert "save" not in object.__dict__ and torch.Tensor.backward is before
import interlace.compat.nnsight as nnsight
from interlace.compat.nnsight.intervention.envoy import Envoy
assert "save" in object.__dict__ and torch.Tensor.backward is not before
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
