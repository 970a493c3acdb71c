"""Caches: what many sites gave, recorded as the model goes on, and walked like the model (S-84)."""

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interlace as il
from interlace.errors import (
    CacheMissError,
    InputError,
    InterlaceWarning,
    NameMissError,
    NotReachedError,
    RecordingError,
    TraceError,
)
from interlace.trees import tensors
from tests.models import Bert, EncoderDecoder, Experts, Looped, Odd, Tied, Transformer, ids, sequential

MODELS: list[tuple[str, Callable[[], nn.Module], Callable[[], Tensor]]] = [
    ("sequential", sequential, lambda: torch.randn(2, 3)),
    ("transformer", Transformer, ids),
    ("looped", Looped, lambda: torch.randn(2, 3)),
    ("experts", Experts, lambda: torch.randn(6, 3)),
    ("encoder-decoder", EncoderDecoder, lambda: torch.randn(2, 3)),
    ("tied", Tied, lambda: torch.randn(2, 3)),
]


def hooked(net: nn.Module, x: Tensor) -> dict[str, list[tuple[Any, Any, Any]]]:
    """What hand-written hooks record: by path, `(args, kwargs, output)` of each call."""
    seen: dict[str, list[tuple[Any, Any, Any]]] = {}
    removes = []
    for name, module in net.named_modules():

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            seen.setdefault(name, []).append((args, kwargs, output))

        removes.append(module.register_forward_hook(keep, with_kwargs=True))
    net(x)
    for remove in removes:
        remove.remove()
    return seen


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("name", "make", "x"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_cache_of_every_module_equals_hooks(
    name: str, make: Callable[[], nn.Module], x: Callable[[], Tensor]
) -> None:
    """Law 2, for S-84."""
    net, given = make(), x()
    model = il.Model(net)
    expected = hooked(net, given)
    with model.trace(given) as tracer:
        cache = tracer.cache(include_inputs=True)
    assert set(cache) == {f"model.{path}".rstrip(".") for path in expected}
    for path, calls in expected.items():
        visits = cache[path or "model"].visits
        assert len(visits) == len(calls)
        for visit, (args, kwargs, output) in zip(visits, calls, strict=True):
            assert same(visit.output, output)
            assert same(visit.inputs, (args, kwargs))


@pytest.mark.parametrize(("name", "make", "x"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_cache_changes_nothing(name: str, make: Callable[[], nn.Module], x: Callable[[], Tensor]) -> None:
    """Law 1."""
    net, given = make(), x()
    expected = net(given)
    with il.Model(net).trace(given) as tracer:
        tracer.cache(include_inputs=True)
    assert same(tracer.result, expected)


@pytest.fixture
def model() -> il.Model:
    return il.Model(Transformer(), rename={"h": "layers", ".h.0": ".first_block"})


CHOICES: dict[str, Callable[[Any], Any]] = {
    "envoy": lambda model: model.h[1].mlp,
    "path": lambda model: "h.1.mlp",
    "path with the root": lambda model: "model.h.1.mlp",
    "path as it is typed": lambda model: "h[1].mlp",
    "alias": lambda model: "layers.1.mlp",
    "pattern": lambda model: "h.[1-9].mlp",
    "module": lambda model: model.h[1].mlp._module,
    "predicate": lambda model: lambda envoy: envoy.path == "model.h.1.mlp",
    "list": lambda model: [model.h[1].mlp, "h.1.mlp"],
}


@pytest.mark.parametrize("how", CHOICES)
def test_a_module_is_chosen_in_every_way(model: il.Model, how: str) -> None:
    """S-84: by envoy, path, pattern, class, predicate."""
    with model.trace(ids()) as tracer:
        cache = tracer.cache(CHOICES[how](model))
    assert list(cache) == ["model.h.1.mlp"]


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ("mlp", 2),
        ("h.*.mlp", 2),
        ("layers.*.mlp", 2),
        ("first_block.*", 4),
        ("h.*.*", 8),
        ("**.mlp.*", 6),
        ("h.0.**", 10),
        ("*l?.*", 6),
        (nn.LayerNorm, 5),
        ([nn.LayerNorm, "mlp", "h.0.mlp"], 7),
        (None, 24),
    ],
    ids=str,
)
def test_many_modules_are_chosen_at_once(model: il.Model, choice: Any, count: int) -> None:
    with model.trace(ids()) as tracer:
        cache = tracer.cache(choice)
    assert len(cache) == count


def test_a_list_of_modules_means_its_members(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        whole, last = tracer.cache(model.h), tracer.cache(model.h[1:])
    assert list(whole) == ["model.h.0", "model.h.1"]
    assert list(last) == ["model.h.1"]


def test_a_cache_of_a_submodules_trace_looks_below_it(model: il.Model) -> None:
    with model.h[1].trace(torch.randn(2, 5, 8)) as tracer:
        cache = tracer.cache()
    assert len(cache) == 10
    assert all(path.startswith("model.h.1") for path in cache)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ("h.*.mpl", NameMissError, r"No module of `model` matches 'h\.\*\.mpl'"),
        ("lm_haed", NameMissError, r"Did you mean `lm_head`\?"),
        ("h.0.attn.source.softmx*", NameMissError, "No operation matches"),
        (int, InputError, "is an instance of `int`"),
        (nn.Conv2d, InputError, "is an instance of `Conv2d`"),
        (lambda envoy: False, InputError, "No module below `model` is chosen by `<lambda>`"),
        ([], InputError, "No modules are listed"),
        (7, InputError, "not by int: 7"),
        (nn.Linear(1, 1), InputError, "This Linear is no module of `model`"),
        (il.Model(nn.Linear(1, 1)), InputError, "an envoy of another model"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: il.Model, choice: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message), model.trace(ids()) as tracer:
        tracer.cache(choice)


def test_nothing_to_record_is_refused(model: il.Model) -> None:
    with pytest.raises(InputError, match="Neither outputs nor inputs"), model.trace(ids()) as tracer:
        tracer.cache(include_output=False)


def test_a_cache_is_walked_like_the_model(model: il.Model) -> None:
    """S-84: by path or attribute, alias aware."""
    with model.trace(ids()) as tracer:
        cache = tracer.cache("mlp", include_inputs=True)
    last = cache["model.h.1.mlp"].output
    for found in (cache.h[1].mlp, cache.layers[-1].mlp, cache["h[1].mlp"], cache.model.h[1].mlp):
        assert found.output is not None
        assert found.output.data_ptr() == last.data_ptr()
        assert found.path == "model.h.1.mlp"
    assert cache.first_block.mlp.input.shape == (2, 5, 8)
    assert [block.mlp.path for block in cache.h] == ["model.h.0.mlp", "model.h.1.mlp"]
    assert len(cache.h[:1]) == 1
    assert "h.1.mlp" in cache
    assert "h.1.attn" not in cache
    assert dict(cache.items()).keys() == {"model.h.0.mlp", "model.h.1.mlp"}
    assert "first_block" in dir(cache)
    assert "mlp" in dir(cache.h[0])


def test_both_names_of_a_tied_module_lead_to_it() -> None:
    model = il.Model(Tied())
    with model.trace(torch.randn(2, 3)) as tracer:
        cache = tracer.cache(model.b)
    assert list(cache) == ["model.a"]
    assert len(cache.b.output) == len(cache.a.output) == 2


def test_submodules_keep_names_that_values_have() -> None:
    model = il.Model(Bert())
    with model.trace(torch.ones(1, 3)) as tracer:
        cache = tracer.cache()
        with pytest.warns(InterlaceWarning, match="is a submodule"):
            result = model.nns_output
    assert torch.equal(cache.nns_output, result)
    assert cache.output.path == "model.output"
    assert torch.equal(cache.output.output, cache.E_output.output)


def test_envoys_and_operations_are_names_of_sites() -> None:
    """S-84: what was listed is what finds it; an envoy and an operation know their paths."""
    model = il.Model(Transformer(), rename={"mlp": "ffn"})
    operation = model.h[0].attn.source.self_proj_0
    with model.trace(ids()) as tracer:
        cache = tracer.cache([model.h[0].ffn, operation, "h.1"])
    for listed in (model.h[0].ffn, model.h[1], operation):
        assert cache[listed].path == listed.path
        assert cache[listed].output is cache[listed.path].output
        assert listed in cache
    assert model.ln_f not in cache
    with pytest.raises(CacheMissError, match=r"`model\.ln_f` is not in this cache\.\nIt records"):
        cache[model.ln_f]
    with pytest.raises(CacheMissError, match=r"The model has no `model\.1`, so the cache has none"):
        cache[il.Model(sequential())[1]]


def test_what_is_not_there_says_so(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        cache = tracer.cache("h.*.mlp")
    with pytest.raises(CacheMissError, match=r"`model\.h\[0\]\.attn` is not in this cache.\nIt records 'h"):
        cache.h[0].attn  # noqa: B018
    with pytest.raises(CacheMissError, match=r"`model\.h\.output` is not in this cache"):
        cache.h.output  # noqa: B018
    with pytest.raises(CacheMissError, match="opened with `include_inputs=False`"):
        cache.h[0].mlp.input  # noqa: B018
    with pytest.raises(CacheMissError, match=r"no `h\.0\.mpl`.*Did you mean `h\.0\.mlp`"):
        cache["h.0.mpl"]
    with pytest.raises(NameMissError, match=r"has no `outptu`.*`output`"):
        cache.h[0].mlp.outptu  # noqa: B018
    with pytest.raises(IndexError, match=r"`model\.h` has no \[2\]"):
        cache.h[2]
    with pytest.raises(NameMissError, match="No operation of"):
        cache.h[0].mlp.source  # noqa: B018
    assert cache.get("h.7") is None


def test_modules_that_torch_would_pass_over_are_reached() -> None:
    """Law 2: recording inside a fused layer does what a hook there does."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    expected = hooked(layer, x)
    with il.Model(layer).trace(x) as tracer:
        cache = tracer.cache()
    assert set(cache) == {f"model.{path}".rstrip(".") for path in expected}
    assert all(same(cache[path or "model"].output, calls[0][2]) for path, calls in expected.items())


# -- when, and what ----------------------------------------------------------------------------------------------


def test_values_are_those_that_the_model_went_on_with(model: il.Model) -> None:
    """S-84: after interventions, in place or not, of this block and of edits."""

    def zero(model: Any) -> None:
        model.h[1].mlp.output = torch.zeros(2, 5, 8)

    edited = model.edit(zero)
    with edited.trace(ids()) as tracer:
        cache = tracer.cache("h.*.mlp", include_inputs=True)
        edited.h[0].mlp.input = torch.ones(2, 5, 8)
        edited.h[0].mlp.output[:] = 3
    assert bool((cache.h[0].mlp.input == 1).all())
    assert bool((cache.h[0].mlp.output == 3).all())
    assert bool((cache.h[1].mlp.output == 0).all())


def test_a_replacement_by_skip_is_recorded(model: il.Model) -> None:
    with pytest.warns(InterlaceWarning, match=r"'h\.0\.mlp\.\*' was listed"):  # noqa: SIM117, PT031
        with model.trace(ids()) as tracer:
            inside, cache = tracer.cache("h.0.mlp.*"), tracer.cache("h.0.mlp")
            model.h[0].mlp.skip(torch.zeros(2, 5, 8))
    assert not cache.h[0].mlp.output.any()
    assert len(inside) == 0


def test_a_cache_is_there_while_the_block_runs(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        cache = tracer.cache("mlp")
        with pytest.raises(
            NotReachedError, match=r"`model\.h\[0\]\.mlp\.output` is.*the model has not started"
        ):
            cache.h[0].mlp.output  # noqa: B018
        here = model.h[0].mlp.output
        with pytest.raises(NotReachedError, match="paused there, and it is recorded when the model goes on"):
            cache.h[0].mlp.output  # noqa: B018
        model.h[1].output  # noqa: B018
        assert torch.equal(cache.h[0].mlp.output, here)
        assert "the model is paused at `model.h[1].output`" in repr(cache)
    assert "paused" not in repr(cache)


def test_a_cache_opened_too_late_says_so(model: il.Model) -> None:
    said = r"`model.h\[0\].mlp` was listed in a cache and not reached from then on: the model had started"
    with pytest.warns(InterlaceWarning, match=said), model.trace(ids()) as tracer:  # noqa: PT031
        model.h[1].output  # noqa: B018
        tracer.cache(model.h[0].mlp)


def test_a_cache_opened_on_the_way_has_what_comes_after(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        model.h[0].output  # noqa: B018
        cache = tracer.cache("mlp")
    assert list(cache) == ["model.h.1.mlp"]


def test_repeated_visits_are_a_list() -> None:
    """S-84."""
    model = il.Model(Looped(times=3))
    with model.trace(torch.ones(1, 3)) as tracer:
        cache = tracer.cache(include_inputs=True)
        seen = [model.block.output.clone() for _ in tracer.iter[:]]
    assert [torch.equal(a, b) for a, b in zip(cache.block.output, seen, strict=True)] == [True] * 3
    assert len(cache.block.inputs) == 3
    assert torch.equal(cache.block[1].output, seen[1])
    assert torch.equal(cache.block[-1].output, cache.block.visits[2].output)
    assert isinstance(cache.head.output, Tensor)
    assert "and 2 more visits" in repr(cache)
    assert [visit.number for visit in cache.block[1:]] == [1, 2]
    assert [visit.number for visit in cache.block[::-1]] == [2, 1, 0]
    with pytest.raises(IndexError, match=r"recorded at 3 visits, so there is no \[3\]"):
        cache.block[3]


def test_every_forward_of_a_generation_is_recorded(model: il.Model) -> None:
    with model.trace(ids(), fn="generate") as tracer:
        cache = tracer.cache("h.*")
    assert [out[0].shape[1] for out in cache.h[1].output] == [5, 6, 7]


def test_a_call_on_the_side_that_counts_is_recorded(model: il.Model) -> None:
    """S-32: a call with `hook=True` is seen by caches."""
    with model.trace(ids()) as tracer:
        cache = tracer.cache("ln_f")
        aside = model.ln_f(torch.ones(2, 5, 8), hook=True)
    assert torch.equal(cache.ln_f.output[0], aside)
    assert len(cache.ln_f.output) == 2


def test_operations_are_recorded(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        one = tracer.cache(model.h[0].attn.source.scores_softmax_0)
        many = tracer.cache("h.*.attn.source.*softmax*", include_inputs=True)
        pattern = model.h[0].attn.source.scores_softmax_0.output
    assert torch.equal(one.h[0].attn.source.scores_softmax_0.output, pattern)
    assert list(many) == [f"model.h.{n}.attn.source.scores_softmax_0" for n in (0, 1)]
    assert many["h.1.attn.source.scores_softmax_0"].input == -1


def test_each_invoke_records_its_rows(model: il.Model) -> None:
    """Law 3: what a block's cache has is what it would have alone."""
    with model.trace(ids(1)) as tracer:
        alone = tracer.cache("mlp")
    with model.trace() as tracer:
        whole = tracer.cache("mlp")
        with tracer.invoke(ids(1)):
            first = tracer.cache("mlp")
        with tracer.invoke(ids(2)):
            second = tracer.cache("mlp", clone=True)
            model.h[0].mlp.output[:] = 1
    assert torch.allclose(first.h[1].mlp.output, alone.h[1].mlp.output, atol=1e-6)
    assert second.h[0].mlp.output.shape == (2, 5, 8)
    assert bool((second.h[0].mlp.output == 1).all())
    assert torch.equal(whole.h[0].mlp.output, torch.cat([first.h[0].mlp.output, second.h[0].mlp.output]))


def test_traces_in_traces_record_for_themselves(model: il.Model) -> None:
    with model.trace(ids()) as outer:
        one = outer.cache("mlp")
        model.h[0].mlp.output  # noqa: B018
        with model.trace(ids(1)) as inner:
            two = inner.cache("mlp")
    assert one.h[0].mlp.output.shape[0] == 2
    assert two.h[0].mlp.output.shape[0] == 1


def test_a_trace_that_is_over_opens_no_cache(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        pass
    with pytest.raises(TraceError, match="not open, so there is nothing to record"):
        tracer.cache()


# -- how ---------------------------------------------------------------------------------------------------------


def test_settings_of_what_is_kept() -> None:
    """S-84: device, dtype, detach; clone or view; positions."""
    model = il.Model(Transformer())
    with model.trace(ids()) as tracer:
        graph = tracer.cache("mlp", detach=False)
        plain = tracer.cache("mlp")
        half = tracer.cache("mlp", dtype=torch.float16)
        copy = tracer.cache("mlp", clone=True)
        last = tracer.cache("mlp", positions=-1)
        some = tracer.cache("mlp", positions=[0, 2])
        part = tracer.cache("mlp", positions=slice(1, 3))
        heads = tracer.cache("attn.source.scores_softmax_0", positions=-1, pos_axis=2)
        meta = tracer.cache("mlp", device="meta")
        whole = model.h[0].mlp.output
    assert graph.h[0].mlp.output is whole
    assert not plain.h[0].mlp.output.requires_grad
    assert plain.h[0].mlp.output.data_ptr() == whole.data_ptr()
    assert copy.h[0].mlp.output.data_ptr() != whole.data_ptr()
    assert half.h[0].mlp.output.dtype is torch.float16
    assert torch.equal(last.h[0].mlp.output, whole[:, -1])
    assert torch.equal(some.h[0].mlp.output, whole[:, [0, 2]])
    assert torch.equal(part.h[0].mlp.output, whole[:, 1:3])
    assert heads.h[0].attn.source.scores_softmax_0.output.shape == (2, 2, 5)
    assert meta.h[0].mlp.output.is_meta


def test_a_copy_is_what_the_model_went_on_with_though_it_changes_later() -> None:
    model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)))
    x = torch.randn(8, 2)
    with torch.no_grad(), model.trace(x) as tracer:
        view, copy = tracer.cache("0"), tracer.cache("0", clone=True)
    assert torch.equal(copy[0].output, model[0]._module(x))
    assert torch.equal(view[0].output, copy[0].output.relu())


def test_only_floating_point_changes_its_type() -> None:
    model = il.Model(Transformer())
    with model.trace(ids()) as tracer:
        cache = tracer.cache("embed", dtype=torch.bfloat16, include_inputs=True)
    assert cache.embed.input.dtype is torch.int64
    assert cache.embed.output.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": 9}, r"`positions=9` are not in a Tensor\(2, 5, 8\)"),
        (
            {"positions": -1, "modules": "attn"},
            r"Which axis of a Tensor\(2, 2, 5, 5\).*\nSay it, `pos_axis=2`",
        ),
        ({"dtype": "float16"}, r"`dtype=` is a dtype of torch, such as torch.float16, not 'float16'"),
        ({"dtype": torch.int64}, "`dtype=` is what floating-point values become"),
        ({"pos_axis": 1}, "`pos_axis=` says where `positions=` are; give both"),
        ({"positions": ["a"]}, "an int, a slice or several ints"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    model = il.Model(Transformer())
    settings = {"modules": "mlp", **settings}
    with pytest.raises(InputError, match=message), model.trace(ids()) as tracer:
        tracer.cache(**settings)


# -- what was never reached --------------------------------------------------------------------------------------


def test_a_cache_is_closed_though_what_another_reports_is_an_error() -> None:
    model = il.Model(Odd())
    tracer = model.trace(torch.randn(2, 3))
    tracer.__enter__()
    tracer.cache(model.dead)
    other = tracer.cache(model.inner)
    with pytest.raises(InterlaceWarning, match=r"`model\.dead` was listed"):
        tracer.__exit__(None, None, None)
    assert other._where() == "the model has finished"
    assert pickle.loads(pickle.dumps(other))["inner"].output.shape == other.inner.output.shape


def test_a_listed_module_that_was_never_reached_is_reported() -> None:
    """S-84."""
    model = il.Model(Odd())
    with (
        pytest.warns(
            InterlaceWarning, match="`model.dead` was listed in a cache and never reached"
        ) as warned,
        model.trace(torch.ones(1, 3)) as tracer,
    ):
        cache, _ = tracer.cache([model.dead, "inner"]), tracer.cache([model.dead])
    assert [one.filename for one in warned] == [__file__, __file__]
    with pytest.raises(NotReachedError, match=r"`model\.dead\.output`.*not reached; the model has finished"):
        cache.dead.output  # noqa: B018


def test_what_a_pattern_finds_need_not_all_be_reached() -> None:
    model = il.Model(Experts(experts=8))
    with model.trace(torch.ones(1, 3)) as tracer:
        cache = tracer.cache("experts.*")
    assert len(cache) == 1


def test_a_run_that_was_stopped_or_failed_reports_nothing() -> None:
    model = il.Model(Odd())
    with model.trace(torch.ones(1, 3)) as tracer:
        stopped = tracer.cache("inner")
        tracer.stop()
    with pytest.raises(NotReachedError, match="the run was stopped"):
        stopped.inner.output  # noqa: B018
    with pytest.raises(ArithmeticError), model.trace(torch.ones(1, 3), fail=True) as tracer:
        failed = tracer.cache([model.fails, model.inner])
    assert failed.inner.output.shape == (1, 3)
    with pytest.raises(NotReachedError, match="the run ended with an error"):
        failed.fails.output  # noqa: B018


def test_a_block_that_raises_keeps_what_was_recorded(model: il.Model) -> None:
    def failing() -> None:
        raise KeyError

    with pytest.raises(KeyError), model.trace(ids()) as tracer:  # noqa: PT012
        cache = tracer.cache("mlp")
        model.h[0].output  # noqa: B018
        failing()
    assert list(cache) == ["model.h.0.mlp"]
    with pytest.raises(NotReachedError, match="the run ended with an error"):
        cache.h[1].mlp.output  # noqa: B018


def test_a_cache_can_be_copied_and_pickled(model: il.Model) -> None:
    with model.trace(ids()) as tracer:
        cache = tracer.cache("mlp", clone=True)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(other.layers[1].mlp.output, cache.h[1].mlp.output)


def test_a_warning_that_is_an_error_leaves_nothing_behind() -> None:
    model = il.Model(Odd())
    with pytest.raises(InterlaceWarning), model.trace(torch.ones(1, 3)) as tracer:
        tracer.cache(model.dead)
    assert not model.interleaving
    assert "_compiled_call_impl" not in model._module.__dict__


def test_a_cache_keeps_no_model_alive() -> None:
    """Law 10, by reference counting alone."""
    gc.disable()
    try:
        net = Transformer()
        model = il.Model(net)
        with model.trace(ids()) as tracer:
            cache = tracer.cache([model.h, "attn.source.scores_softmax_0"])
        gone = weakref.ref(net)
        del net, model, tracer
        assert gone() is None
        assert cache.h[0].output[0].shape == (2, 5, 8)
        tensor = weakref.ref(cache.h[0].output[0])
        del cache
        assert tensor() is None
    finally:
        gc.enable()


# -- in a folder -------------------------------------------------------------------------------------------------


def test_a_cache_in_a_folder_equals_one_in_memory(tmp_path: Path) -> None:
    model = il.Model(Transformer(), rename={"h": "layers"})
    with model.trace(ids(), fn="generate") as tracer:
        memory = tracer.cache(include_inputs=True, clone=True)
        disk = tracer.cache(include_inputs=True, to=tmp_path, shard_bytes=4000)
    read = il.Cache.open(tmp_path)
    assert set(read) == set(disk) == set(memory)
    for path in memory:
        for name in ("output", "inputs"):
            for one in (disk, read):
                assert same(getattr(one[path], name), getattr(memory[path], name)), path
    assert read.layers[1].output[0][0].shape == (2, 5, 8)
    assert read.output[0].logits.shape == (2, 5, 11)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3


def test_a_cache_in_a_folder_can_be_copied_and_pickled(tmp_path: Path) -> None:
    model = il.Model(sequential())
    with model.trace(torch.ones(2, 3)) as tracer:
        cache = tracer.cache("0", to=tmp_path)
    value = cache[0].output
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(other[0].output, value)


def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    model = il.Model(Looped(times=50))
    with torch.no_grad(), model.trace(torch.ones(4, 3)) as tracer:
        cache = tracer.cache("block", to=tmp_path, shard_bytes=200)
        most = 0
        for _ in tracer.iter[:]:
            model.block.output  # noqa: B018
            assert cache._spill is not None
            most = max(most, cache._spill._bytes)
    assert most < 200 + 4 * 3 * 4
    assert len(cache.block.output) == 50


def test_a_folder_goes_on_after_the_last_whole_trace(tmp_path: Path) -> None:
    """What a trace left that did not end well is dropped; what others recorded stays."""
    model = il.Model(Odd())
    outs = []
    for fail in (False, True, False):
        try:
            with model.trace(torch.randn(1, 3), fail=fail) as tracer:
                cache = tracer.cache("inner", to=tmp_path)
                out = model.inner.output
        except ArithmeticError:
            assert len(il.Cache.open(tmp_path).inner.visits) == 2  # it can still be looked at
        else:
            outs.append(out.detach())
    assert same(cache.inner.output, outs)
    assert same(il.Cache.open(tmp_path).inner.output, outs)


def test_a_cache_whose_files_are_gone_has_nobody_elses_values(tmp_path: Path) -> None:
    """The next trace takes the place of one that failed, and who still has its cache is told."""
    model = il.Model(sequential())

    failed = []
    for scale in (1, 2):
        with contextlib.suppress(ZeroDivisionError), model.trace(torch.ones(2, 3) * scale) as tracer:
            failed.append(tracer.cache("0", to=tmp_path))
            model.output  # noqa: B018
            raise ZeroDivisionError
    with model.trace(torch.zeros(2, 3)) as tracer:
        tracer.cache("0", to=tmp_path)
        kept = model[0].output
    for cache in failed:
        with pytest.raises(RecordingError, match="is there no more: its trace did not end well"):
            cache[0].output  # noqa: B018
    assert torch.equal(il.Cache.open(tmp_path)[0].output, kept)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    model = il.Model(sequential())
    with model.trace(torch.ones(1, 3)) as tracer:
        tracer.cache("0", to=tmp_path)
    for settings, name in ({"modules": "1"}, "modules"), ({"modules": "0", "dtype": torch.float16}, "dtype"):
        with (
            pytest.raises(RecordingError, match=f"was begun with `{name}`"),
            model.trace(torch.ones(1, 3)) as tracer,
        ):
            tracer.cache(to=tmp_path, **settings)
    with pytest.raises(RecordingError, match="holds a cache, not a recording"):
        il.Recording(tmp_path)
    with pytest.raises(RecordingError, match=r"has no index\.json"):
        il.Cache.open(tmp_path / "other")


def test_the_keys_of_a_dictionary_are_the_same_in_a_folder(tmp_path: Path) -> None:
    class Keyed(nn.Module):
        def forward(self, x: Tensor) -> dict[Any, Tensor]:
            return {0: x, "0": x + 1, ".a": x + 2, None: x + 3, 1.5: x + 4, True: x + 5}

    model = il.Model(Keyed())
    with model.trace(torch.ones(2)) as tracer:
        tracer.cache(to=tmp_path)
        whole = model.output
    found = il.Cache.open(tmp_path).output
    assert {key: value.tolist() for key, value in found.items()} == {
        key: value.tolist() for key, value in whole.items()
    }


def test_what_is_no_tensor_becomes_plain_in_a_folder(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"x": x, "n": 3, "none": None, "object": object(), "list": [x, (x.bool(), "a")]}

    model = il.Model(Mixed())
    with model.trace(torch.ones(2)) as tracer:
        cache = tracer.cache(to=tmp_path)
    read = il.Cache.open(tmp_path).output
    assert (read["n"], read["none"], read["object"], read["list"][1][1]) == (3, None, None, "a")
    assert same(read, cache.output)
