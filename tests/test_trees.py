"""Nested values: every container that travels between modules is visited, rebuilt and compared."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from interlace.trees import children, describe, leaves, map_leaves, map_tensors, mismatch, tensors


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclass
class Plain:
    hidden: Any
    note: str = "kept"


@dataclass(frozen=True)
class Frozen:
    hidden: Any


@dataclass
class Computed:
    hidden: Any
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.hidden)


@cache
def model_output() -> Any:
    """A class, made here so that only the test that needs transformers imports it."""
    from transformers.utils import ModelOutput

    @dataclass
    class Output(ModelOutput):  # type: ignore[misc]
        logits: Any = None
        cache: Any = None

    return Output


def one() -> Tensor:
    return torch.ones(2, 3)


CONTAINERS: dict[str, Any] = {
    "tensor": lambda t: t,
    "tuple": lambda t: (t, 1),
    "list": lambda t: [t, None],
    "nested": lambda t: ({"a": [t]}, (t, (t,))),
    "named tuple": lambda t: Pair(t),
    "dict": lambda t: {"a": t, 3: "b"},
    "ordered dict": lambda t: OrderedDict(a=t),
    "dict with other keys": lambda t: OrderedDict([(1, t)]),
    "dataclass": lambda t: Plain(t),
    "frozen dataclass": lambda t: Frozen(t),
    "computed dataclass": lambda t: Computed(t),
    "empty": lambda t: (t, (), [], {}),
}
containers = pytest.mark.parametrize("name", CONTAINERS)


@containers
def test_a_map_keeps_the_container(name: str) -> None:
    """S-48, S-72: type and other leaves stay, the original is untouched."""
    value = CONTAINERS[name](one())
    mapped = map_tensors(lambda t: t * 2, value)
    assert type(mapped) is type(value)
    assert [t.sum() for t in tensors(mapped)] == [12.0] * len(list(tensors(value)))
    assert [t.sum() for t in tensors(value)] == [6.0] * len(list(tensors(value)))
    assert [leaf for leaf in leaves(mapped) if not isinstance(leaf, Tensor)] == [
        leaf for leaf in leaves(value) if not isinstance(leaf, Tensor)
    ]


@containers
def test_a_map_that_changes_nothing_is_the_same_object(name: str) -> None:
    value = CONTAINERS[name](one())
    assert map_leaves(lambda leaf: leaf, value) is value


@containers
def test_a_value_fits_itself(name: str) -> None:
    """Law 11: and one of the same make, and one whose numbers differ."""
    make = CONTAINERS[name]
    assert mismatch(make(one()), make(one() * 3)) is None


@containers
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (torch.ones(2, 4), "its shape"),
        (torch.ones(2, 3, dtype=torch.int64), "its dtype"),
        (torch.ones(2, 3, device="meta"), "its device"),
        (None, "it is None"),
    ],
)
def test_a_value_of_another_make_does_not_fit(name: str, other: Any, said: str) -> None:
    """Law 11."""
    if name == "computed dataclass" and other is None:
        return
    why = mismatch(CONTAINERS[name](one()), CONTAINERS[name](other))
    assert why is not None
    assert why.startswith(said)


def test_the_place_of_a_mismatch_is_named() -> None:
    assert (
        mismatch({"a": [one(), one()]}, {"a": [one(), one()[:1]]})
        == "its shape at ['a'][1] is (1, 3), the model has (2, 3) there"
    )
    assert (
        mismatch(Pair(one(), one()), Pair(one(), 1))
        == "it is int at .right, the model has Tensor(2, 3) float32 cpu there"
    )


@pytest.mark.parametrize(
    ("old", "new"), [((1, 2), (1, 2, 3)), ({"a": 1}, {"b": 1}), ((1,), [1]), (Pair(1), (1, None)), (1, (1,))]
)
def test_structures_must_agree(old: Any, new: Any) -> None:
    """Law 11."""
    assert str(mismatch(old, new)).startswith("it is ")


def test_structure_alone_may_be_compared() -> None:
    """S-31: shapes of a scan are those of its input."""
    assert mismatch((one(), 1), (torch.ones(7, dtype=torch.int64), 1), structure=True) is None
    assert mismatch((one(), 1), one(), structure=True) is not None


def test_leaves_that_are_no_tensors_may_change() -> None:
    assert mismatch((one(), "a", None), (one(), 3, object())) is None


def test_unknown_objects_are_leaves() -> None:
    class Cache:
        def __init__(self) -> None:
            self.key = one()

    cache = Cache()
    assert children(cache) is None
    assert map_tensors(lambda t: t * 2, cache) is cache
    assert list(tensors({"cache": cache})) == []


def test_a_mapping_that_is_no_dict() -> None:
    value = UserDict({"a": one()})
    mapped = map_tensors(lambda t: t * 2, value)
    assert type(mapped) is UserDict
    assert mapped["a"].eq(2).all()


def test_a_mapping_with_something_beside_its_items_keeps_it() -> None:
    value: Any = defaultdict(list, {0: one()})
    mapped = map_tensors(lambda t: t * 2, value)
    assert mapped[0].eq(2).all()
    assert mapped["new"] == []
    assert value[0].eq(1).all()


@pytest.mark.language
def test_what_a_tokenizer_returns_stays_that() -> None:
    """S-48: its class does not take its items by name."""
    from transformers import BatchEncoding

    value = BatchEncoding({"input_ids": one(), "text": "kept"})
    mapped = map_tensors(lambda t: t * 2, value)
    assert type(mapped) is BatchEncoding
    assert mapped.input_ids.eq(2).all()
    assert mapped["text"] == "kept"
    assert value.input_ids.eq(1).all()


@pytest.mark.language
def test_a_model_output_stays_one() -> None:
    """S-48: with its attributes, its keys and its order."""
    value = model_output()(logits=one(), cache=(one(), one()))
    mapped = map_tensors(lambda t: t * 2, value)
    assert type(mapped) is type(value)
    assert mapped.logits.eq(2).all()
    assert mapped["logits"] is mapped.logits
    assert mapped.to_tuple()[0] is mapped.logits
    assert list(mapped) == ["logits", "cache"]
    assert value.logits.eq(1).all()
    assert mismatch(value, mapped) is None
    assert mismatch(value, model_output()(logits=one())) is not None
    assert (
        mismatch(value, model_output()(logits=one()[:1], cache=(one(), one())))
        == "its shape at ['logits'] is (1, 3), the model has (2, 3) there"
    )


def test_descriptions_are_short() -> None:
    assert describe(one()) == "Tensor(2, 3) float32 cpu"
    assert describe((one(), None)) == "(Tensor(2, 3) float32 cpu, None)"
    assert describe([1] * 9) == "[int, int, int, int, ...]"
    assert describe(Pair(1, 2)) == "Pair(left, right)"
    assert describe(Plain(1)) == "Plain(hidden, note)"
    assert describe(3.0) == "float"
