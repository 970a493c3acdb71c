"""The tree of envoys mirrors the tree of modules: navigation, names, calls of methods, moving, printing."""

# ruff: noqa: B018, SIM117

import copy
import gc
import pickle
import re
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import (
    InputError,
    InterlaceWarning,
    NameMissError,
    OutsideTraceError,
)
from interlace.site import Visit
from tests.models import Bert, Experts, Looped, Odd, Tied, Transformer, ids, sequential


@pytest.fixture
def net() -> Transformer:
    return Transformer()


@pytest.fixture
def model(net: Transformer) -> il.Model:
    return il.Model(net)


# -- the mirror -----------------------------------------------------------------------------------------------------


def test_every_module_has_one_envoy_under_its_path(net: Transformer, model: il.Model) -> None:
    """S-01, S-02."""
    found = {path: envoy._module for path, envoy in model.named_modules()}
    told = {f"model.{name}" if name else "model": module for name, module in net.named_modules()}
    assert found == told
    assert all(envoy.path == path for path, envoy in model.named_modules())
    assert model.h[1].mlp is model.h[1].mlp


def test_wrapping_leaves_nothing_on_the_modules(net: Transformer) -> None:
    """S-01."""
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    model = il.Model(net)
    assert len(model.modules()) == len(before)
    with model.trace(ids()):
        model.h[0].output
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before


def test_envoys_are_made_when_first_asked_for() -> None:
    """S-01: the cost of wrapping does not depend on the size of the model."""
    model = il.Model(nn.Sequential(*[nn.Sequential(nn.Linear(1, 1)) for _ in range(1000)]))
    assert len(model._tree.envoys) == 1
    model[500]
    assert len(model._tree.envoys) == 2


def test_only_modules_are_wrapped() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, not for function"):
        il.Model(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not for Model. It is wrapped already"):
        il.Model(il.Model(nn.ReLU()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'not for str. A name goes to `il.LanguageModel\("..."\)`'):
        il.Model("gpt2")  # type: ignore[arg-type]


def test_several_trees_of_one_model_are_independent(net: Transformer) -> None:
    """S-04, S-99, law 9."""
    one, two = il.Model(net), il.Model(net, rename={"h": "layers"})
    assert one.h is not two.h
    with pytest.raises(AttributeError):
        one.layers
    with one.trace(ids()):
        first = one.h[0].output[0]
        with two.trace(ids()):
            two.h[0].output[0][:] = 0
            zeroed = two.layers[0].output[0]
        logits = one.output.logits
    assert torch.equal(logits, net(ids()).logits)
    assert not zeroed.any()
    assert first.any()


def test_parent_and_root(net: Transformer) -> None:
    """S-96: the wrapper need not be kept."""
    model = il.Model(net)
    assert model.parent is None
    assert model.root is model
    assert model.h[0].parent is model.h
    assert model.h[0].mlp.root is model
    inner = il.Model(net).h[0]
    assert inner.parent is not None
    assert inner.parent.path == "model.h"
    assert inner.root.path == "model"
    assert type(inner.root) is il.Model


def test_an_envoy_keeps_no_cycle() -> None:
    """S-96, law 10: reference counting alone frees the model."""
    gc.disable()
    try:
        net = Transformer()
        model = il.Model(net)
        model.h[0].mlp.parent.parent.root
        repr(model)
        dead = weakref.ref(net), weakref.ref(model)
        del net, model
        assert [ref() for ref in dead] == [None, None]
    finally:
        gc.enable()


# -- attributes -----------------------------------------------------------------------------------------------------


def test_assigning_a_module_registers_it(net: Transformer, model: il.Model) -> None:
    """S-06."""
    adapter = nn.Linear(8, 8)
    model.h[0].adapter = adapter
    assert net.h[0].adapter is adapter
    assert isinstance(model.h[0].adapter, il.Envoy)
    assert model.h[0].adapter.path == "model.h.0.adapter"
    with model.trace(ids()):
        hidden = model.h[0].output[0]
        by_hand = model.h[0].adapter(hidden, hook=True)
        seen = model.h[0].adapter.output
    assert by_hand is seen


def test_an_assigned_module_replaces_the_child(net: Transformer, model: il.Model) -> None:
    """S-06."""
    old = model.ln_f
    model.ln_f = nn.Identity()
    assert isinstance(net.ln_f, nn.Identity)
    assert model.ln_f._module is net.ln_f
    with model.trace(ids()):
        same = model.ln_f.output is model.ln_f.input
    assert same
    assert old.path == "model.ln_f"


def test_a_child_that_torch_replaced_is_followed(net: Transformer, model: il.Model) -> None:
    """S-20."""
    kept = model.ln_f
    net.ln_f = nn.Identity()  # type: ignore[assignment]
    with model.trace(ids()):
        same = kept.output is kept.input
    assert same


def test_other_values_are_plain_attributes(net: Transformer, model: il.Model) -> None:
    """S-06."""
    model.note = "mine"
    model.h[0].output_scale = 3.0
    assert model.note == "mine"
    assert model.h[0].output_scale == 3.0
    assert not hasattr(net, "note")


@pytest.mark.parametrize("name", ["outputs", "ouput", "Output", "outptu", "imput", "inputss"])
def test_assigning_to_a_misspelt_feature_is_refused(model: il.Model, name: str) -> None:
    """S-12, bad input: it would change nothing."""
    with pytest.raises(
        NameMissError, match=rf"`model\.h\[0\]\.{name}` is nothing .* Did you mean `(out|in)put"
    ):
        setattr(model.h[0], name, torch.zeros(1))
    assert name not in vars(model.h[0])


def test_a_child_cannot_be_assigned_a_value(model: il.Model) -> None:
    """S-12."""
    with pytest.raises(NameMissError, match=r"`model\.ln_f` cannot be assigned; assign to its `\.output`"):
        model.ln_f = torch.zeros(1)


@pytest.mark.parametrize(
    ("name", "near"), [("ln_g", "ln_f"), ("outptu", "output"), ("embedd", "embed"), ("tracee", "trace")]
)
def test_a_misspelt_name_names_the_nearest(model: il.Model, name: str, near: str) -> None:
    """S-12, bad input."""
    with pytest.raises(
        AttributeError, match=rf"`model` \(Transformer\) has no `{name}`\. Did you mean .*`{near}`"
    ) as caught:
        getattr(model, name)
    assert isinstance(caught.value, NameMissError)
    assert len(str(caught.value).splitlines()) <= 5
    assert not hasattr(model, name)


def test_a_misspelt_name_in_a_trace_leaves_the_model_usable(net: Transformer, model: il.Model) -> None:
    """S-12, bad input."""
    with pytest.raises(NameMissError, match="has no `atn`"), model.trace(ids()):
        model.h[0].atn.output
    with model.trace(ids()):
        logits = model.output.logits
    assert torch.equal(logits, net(ids()).logits)


def test_any_other_value_of_the_module_is_returned(net: Transformer, model: il.Model) -> None:
    """S-12."""
    assert model.lm_head.weight is net.lm_head.weight
    assert model.training is True
    assert model.h[0].attn.n_head == 2


def test_a_module_reached_through_a_property_is_its_envoy(model: il.Model) -> None:
    """S-11."""
    assert model.first is model.h[0]


def test_a_property_that_leads_upward_gives_the_envoy_that_is_there() -> None:
    """S-11: the envoy that already mirrors it, wherever in the tree."""

    class Inner(nn.Module):
        def __init__(self, above: nn.Module) -> None:
            super().__init__()
            self._above = [above]

        @property
        def above(self) -> nn.Module:
            return self._above[0]

    net = nn.Sequential(nn.Linear(2, 2))
    net.append(Inner(net[0]))
    model = il.Model(net)
    assert model[1].above is model[0]


def test_a_module_that_is_no_child_is_wrapped_and_seen() -> None:
    """S-11: one that torch does not know as a child is a site like any other."""

    class Remapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._hidden = [nn.Linear(2, 2)]

        @property
        def secret(self) -> nn.Module:
            return self._hidden[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.secret(x)  # type: ignore[no-any-return]

    net = Remapped()
    model = il.Model(net)
    x = torch.ones(1, 2)
    with model.trace(x):
        inner = model.secret.output
        out = model.output
    assert model.secret.path == "model.secret"
    assert inner is out
    assert torch.equal(out, net(x))
    assert "_compiled_call_impl" not in vars(net.secret)
    with model.trace(x):
        model.secret.output[:] = 1
        ones = model.output
    assert torch.equal(ones, torch.ones(1, 2))
    for where in ("in the invoke", "above it"):
        for twin in (model, il.Model(net)):
            with twin.trace() as tracer:
                if where == "above it":
                    twin.secret
                with tracer.invoke(x):
                    inner = twin.secret.output
            assert torch.equal(inner, net(x))
            assert all("_compiled_call_impl" not in vars(module) for module in (net, net.secret))


# -- a submodule with the name of a feature -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::interlace.errors.InterlaceWarning")
def test_a_submodule_named_output_keeps_its_name() -> None:
    """S-07: the bare name is the submodule, `nns_output` the value, for reading and writing."""
    net, x = Bert(), torch.ones(2, 3)
    model = il.Model(net)
    with model.trace(x):
        inner = model.output.output
        whole = model.nns_output
    assert model.output.path == "model.output"
    assert model.E_output is model.output
    assert inner is whole
    with model.trace(x):
        model.nns_output = torch.zeros(2, 3)
        after = model.nns_output
    with model.trace(x):
        model.output.output = torch.ones(2, 3)
        through = model.nns_output
    assert not after.any()
    assert through.eq(1).all()


def test_a_submodule_named_output_warns_once() -> None:
    """S-07: at the first access of either; `E_output` does not."""
    model = il.Model(Bert())
    model.E_output
    with pytest.warns(
        InterlaceWarning, match=r"`model\.output` is a submodule.*`\.nns_output`.*`\.E_output`"
    ):
        model.output
    model.output
    again = il.Model(Bert())
    with (
        pytest.warns(InterlaceWarning, match=r"`model\.output` is a submodule"),
        again.trace(torch.ones(1, 3)),
    ):
        again.nns_output


def test_a_submodule_named_output_warns_only_where_its_name_is_written() -> None:
    """S-07: not where an alias, a predicate, a pickle or a repr leads to it."""
    net, x = nn.Sequential(Bert()), torch.ones(1, 3)
    model = il.Model(net, rename={"output": "last", "0.output": "deep"})
    assert model[0].last is model.deep is model[0].E_output
    assert "deep/0.output" in repr(model)
    with model.trace(x) as tracer:
        cache = tracer.cache(lambda envoy: envoy.path == "model.0.output")
    assert list(cache) == ["model.0.output"]
    assert pickle.loads(pickle.dumps(model[0].E_output)).path == "model.0.output"


@pytest.mark.filterwarnings("ignore::interlace.errors.InterlaceWarning")
def test_assigning_to_a_submodule_named_output_says_where_the_value_is() -> None:
    """S-07."""
    model = il.Model(Bert())
    with pytest.raises(NameMissError, match=r"`model\.output` is a submodule\. Assign to `\.nns_output`"):
        model.output = torch.zeros(1)


@pytest.mark.filterwarnings("ignore::interlace.errors.InterlaceWarning")
def test_a_submodule_named_output_is_documented_and_pickles() -> None:
    """S-07."""
    model = il.Model(nn.Sequential(Bert()))
    assert "nns_output" in repr(model)
    twin = pickle.loads(pickle.dumps(model))
    for part in (twin[0], copy.copy(model[0]), copy.copy(il.Model(Bert()))):
        assert part.output.path == f"{part.path}.output"
        assert isinstance(part, il.Envoy)


@pytest.mark.filterwarnings("ignore::interlace.errors.InterlaceWarning")
@pytest.mark.parametrize("name", ["input", "source", "skip", "trace", "path", "modules", "to"])
def test_a_submodule_may_have_the_name_of_any_feature(name: str) -> None:
    """S-07."""
    net = nn.Sequential()
    net.add_module("0", nn.Linear(2, 2))
    net._modules[name] = nn.ReLU()
    model = il.Model(net)
    assert getattr(model, name).path == f"model.{name}"
    assert getattr(model, f"E_{name}") is getattr(model, name)
    feature = model.nns_trace if name == "trace" else model.trace
    with feature(torch.ones(1, 2)):
        hidden = getattr(model, name).output
    assert hidden.shape == (1, 2)


# -- methods --------------------------------------------------------------------------------------------------------


def test_a_method_is_a_trace_context_and_a_plain_call(net: Transformer, model: il.Model) -> None:
    """S-09."""
    plain = model.generate(ids(), steps=2)
    assert torch.equal(plain, net.generate(ids(), steps=2))
    with model.generate(ids(), steps=2) as tracer:
        first = model.output.logits
    assert torch.equal(tracer.result, plain)
    assert torch.equal(first, net(ids()).logits)
    with model.trace(ids(), fn="generate", steps=2) as tracer:
        pass
    assert torch.equal(tracer.result, plain)


def test_a_method_is_copied(model: il.Model) -> None:
    assert copy.copy(model.generate).__name__ == "generate"


def test_a_method_that_returns_its_module_returns_the_envoy(model: il.Model) -> None:
    """S-09."""
    assert model.itself() is model
    assert model.eval() is model
    assert not model.training


def test_a_method_is_told_from_a_trace_without_source(model: il.Model) -> None:
    """S-09: from the calling instruction, in code that has no source."""
    space: dict[str, Any] = {"model": model, "x": ids()}
    exec(
        "with model.generate(x, steps=1) as t: a = model.output.logits\nb = model.generate(x, steps=1)", space
    )
    assert torch.equal(space["t"].result, space["b"])


def test_an_override_of_a_method_runs_in_its_place(net: Transformer) -> None:
    """S-10: both spellings."""

    class Own(il.Model):
        def __nnsight_generate__(self, given: torch.Tensor) -> torch.Tensor:
            return self._module(given).logits + 1  # type: ignore[no-any-return]

        def __interlace_encode__(self, given: torch.Tensor) -> torch.Tensor:
            return self._module(given).logits + 2  # type: ignore[no-any-return]

    model = Own(net)
    expected = net(ids()).logits
    assert torch.equal(model.generate(ids()), expected + 1)
    with model.generate(ids()) as tracer:
        seen = model.lm_head.output
    assert torch.equal(tracer.result, seen + 1)
    with model.trace(ids(), fn="encode") as tracer:
        pass
    assert torch.equal(tracer.result, expected + 2)


def test_an_unknown_method_is_refused(model: il.Model) -> None:
    """S-36."""
    with pytest.raises(NameMissError, match=r"has no `generat`\. Did you mean `generate`"):
        with model.trace(ids(), fn="generat"):
            pass


# -- lists ----------------------------------------------------------------------------------------------------------


def test_items_of_lists(model: il.Model) -> None:
    """S-13."""
    assert model.h[-1] is model.h[1]
    assert model.h[:] == [model.h[0], model.h[1]]
    assert model.h[::-1] == [model.h[1], model.h[0]]
    assert model.h[-1].path == "model.h.1"
    with pytest.raises(IndexError):
        model.h[2]


def test_items_of_dicts() -> None:
    """S-13."""
    model = il.Model(nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.ReLU()}))
    assert model["a"].path == "model.a"
    assert model["a"] is model.a
    with pytest.raises(KeyError):
        model["c"]


def test_length(model: il.Model) -> None:
    """S-14."""
    assert len(model.h) == 2
    with pytest.raises(TypeError):
        len(model)
    assert bool(il.Model(nn.ModuleList()))


def test_iteration_gives_direct_children(model: il.Model) -> None:
    """S-15."""
    assert [child.path for child in model] == ["model.embed", "model.h", "model.ln_f", "model.lm_head"]
    assert list(model.h) == [model.h[0], model.h[1]]


def test_modules_come_children_first_and_filtered(model: il.Model) -> None:
    """S-16, S-17: the predicate does not prune descent."""
    paths = [envoy.path for envoy in model.h[0].mlp.modules()]
    assert paths == [f"model.h.0.mlp.{name}" for name in ("up", "act", "down")] + ["model.h.0.mlp"]
    linear = model.modules(lambda envoy: isinstance(envoy._module, nn.Linear), names=True)
    assert [path for path, _ in linear if path.endswith("mlp.up")] == ["model.h.0.mlp.up", "model.h.1.mlp.up"]
    assert model.named_modules() == model.modules(names=True)
    assert model.modules()[-1] is model


def test_get_walks_a_path(model: il.Model) -> None:
    """S-18."""
    assert model.get("h.0.mlp") is model.h[0].mlp
    assert model.get(".h..1.") is model.h[1]
    assert model.get("") is model
    with pytest.raises(AttributeError, match="has no `mlq`"):
        model.get("h.0.mlq")
    with pytest.raises(AttributeError, match="has no `7`"):
        model.get("h.7")
    with model.trace(ids()):
        asked = model.get("h.0.mlp.input")
        got = model.get("h.0.mlp.output")
        same = got is model.h[0].mlp.output
        further = model.get("h.0.mlp.output.shape")
    assert same
    assert further == got.shape
    assert asked.shape == got.shape


def test_a_shallow_copy_has_the_same_modules(net: Transformer, model: il.Model) -> None:
    """S-19."""
    twin = copy.copy(model)
    assert type(twin) is type(model)
    assert twin._module is net
    assert twin is not model
    assert twin.h[0]._module is net.h[0]
    with twin.trace(ids()):
        logits = twin.output.logits
    assert torch.equal(logits, net(ids()).logits)
    inner = copy.copy(model.h[0])
    assert inner._module is net.h[0]
    assert inner.mlp is model.h[0].mlp


def test_repointing_keeps_the_envoys(net: Transformer) -> None:
    """S-20: matched by name; vanished children dropped, gained ones mirrored; aliases survive."""
    model = il.Model(net, rename={"h": "layers"})
    held, gone = model.h[0].mlp, model.h[1]
    real = Transformer(layers=1)
    real.extra = nn.Identity()
    model._tree.repoint(real)
    assert model.h[0].mlp is held
    assert held._module is real.h[0].mlp
    assert model.layers is model.h
    assert model.extra.path == "model.extra"
    assert len(model.h) == 1
    with pytest.raises(IndexError):
        model.h[1]
    assert gone.path == "model.h.1"
    with model.trace(ids()):
        logits = model.output.logits
    assert torch.equal(logits, real(ids()).logits)


# -- torch ----------------------------------------------------------------------------------------------------------


def test_moving_returns_the_envoy(net: Transformer, model: il.Model) -> None:
    """S-34."""
    assert model.to(torch.float64) is model
    assert net.lm_head.weight.dtype == torch.float64
    assert model.h[0].cpu() is model.h[0]
    with pytest.raises(RuntimeError):
        model.to("nowhere")


def test_devices() -> None:
    """S-35."""
    net = sequential()
    model = il.Model(net)
    assert model.device == torch.device("cpu")
    assert model[1].device is None
    assert model[1].devices == set()
    net[2].to("meta")
    assert model.devices == {torch.device("cpu"), torch.device("meta")}
    assert model[2].device == torch.device("meta")


# -- printing -------------------------------------------------------------------------------------------------------


def test_repr_is_like_torch(net: Transformer) -> None:
    """S-49: without aliases or scan the text is that of torch, which folds repeats in the same way."""
    assert repr(il.Model(net)) == repr(net)
    assert repr(il.Model(sequential())) == repr(sequential())
    assert repr(il.Model(Looped())) == repr(Looped())
    assert repr(il.Model(Experts())) == repr(Experts())


def test_repr_folds_repeats() -> None:
    """S-50."""
    blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)])
    text = repr(il.Model(blocks))
    assert "(0-1): 2 x Linear(in_features=2" in text
    assert "(2): ReLU()" in text
    assert "(3): Linear" in text
    assert repr(il.Model(nn.ModuleList())) == "ModuleList()"
    assert repr(il.Model(nn.Sequential())) == "Sequential()"


def test_repr_shows_aliases_and_mounts(net: Transformer) -> None:
    """S-49, S-53."""
    text = repr(il.Model(net, rename={"h": "layers", "attn": ["attention", "mixer"], ".h.0": ".first_block"}))
    assert "(layers/h): ModuleList(" in text
    assert "(attention/mixer/attn): Attention(" in text
    assert "(first_block/h.0): Block(" in text


def test_repr_shows_shapes_after_a_scan(net: Transformer, model: il.Model) -> None:
    """S-49, S-03: as a scan leaves them."""
    seen = Visit(id(net.lm_head), 0, (), {})
    seen.result = torch.zeros(2, 5, 11)
    model._tree.shapes["model.lm_head"] = seen
    assert "Tensor(2, 5, 11) float32 cpu" in repr(model)
    assert model.lm_head.output.shape == (2, 5, 11)
    silent = Visit(id(net.ln_f), 0, (), {})
    model._tree.shapes["model.ln_f"] = silent
    assert model.ln_f.output is None
    with pytest.raises(OutsideTraceError, match=r"`model\.embed\.output`"):
        model.embed.output


def test_dir_lists_children_features_and_aliases(net: Transformer) -> None:
    """S-12."""
    listed = dir(il.Model(net, rename={"h": "layers"}))
    assert {"h", "layers", "output", "trace", "generate", "lm_head"} <= set(listed)


# -- shared modules -------------------------------------------------------------------------------------------------


def test_tied_modules_are_one_site() -> None:
    """S-99, S-01: visits are counted once, whichever name is used."""
    net, x = Tied(), torch.ones(1, 3)
    model = il.Model(net)
    with model.trace(x) as tracer:
        first = model.a.output
        tracer.next()
        second = model.b.output
    assert torch.equal(first, net.a(x))
    assert torch.equal(second, net.b(net.a(x).relu()))
    with model.trace(x):
        by_other_name = model.b.output
    assert torch.equal(by_other_name, first)


def test_two_wrappers_of_one_module_are_independent() -> None:
    """S-99."""
    net = sequential()
    shared = il.Model(net[0])
    model = il.Model(net)
    x = torch.ones(1, 3)
    with model.trace(x):
        outer = model[0].output
        with shared.trace(2 * x):
            inner = shared.output
        out = model.output
    assert torch.equal(outer, net[0](x))
    assert torch.equal(inner, net[0](2 * x))
    assert torch.equal(out, net(x))


# -- copying and pickling -------------------------------------------------------------------------------------------


def test_envoys_pickle_and_copy(net: Transformer) -> None:
    """Law 7."""
    model = il.Model(net, rename={"h": "layers"})
    model.note = [1]
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.layers[0].path == "model.h.0"
        assert twin.note == [1]
        assert torch.equal(twin(ids()).logits, net(ids()).logits)
    inner = pickle.loads(pickle.dumps(model.layers[1]))
    assert inner.path == "model.h.1"


def test_a_trace_without_input_says_to_give_one(model: il.Model) -> None:
    """S-36, bad input."""
    with pytest.raises(
        InputError, match=r"`model\.trace\(\)` was opened without an input\.\nWrite `with model\.trace\(x\):`"
    ):
        with model.trace():
            pass
    with model.trace(ids()):
        logits = model.output.logits
    assert logits.shape == (2, 5, 11)


def test_any_envoy_of_the_tree_can_be_traced(net: Transformer, model: il.Model) -> None:
    """S-36."""
    hidden = torch.randn(1, 3, 8)
    with model.h[0].trace(hidden) as tracer:
        mlp = model.h[0].mlp.output
    assert torch.equal(tracer.result[0], net.h[0](hidden)[0])
    assert mlp.shape == hidden.shape


def test_fn_may_be_a_callable(net: Transformer, model: il.Model) -> None:
    """S-36."""
    with model.trace(ids(), fn=lambda given: net(given).logits * 2) as tracer:
        logits = model.lm_head.output
    assert torch.equal(tracer.result, logits * 2)


def test_trace_false_runs_once(net: Transformer, model: il.Model) -> None:
    """S-36."""
    assert torch.equal(model.trace(ids(), trace=False).logits, net(ids()).logits)
    with pytest.warns(DeprecationWarning, match="`trace=True` is the default"):
        tracer = model.trace(ids(), trace=True)
    with tracer:
        pass
    assert torch.equal(tracer.result.logits, net(ids()).logits)


def test_a_subclass_of_the_tracer_takes_its_place(model: il.Model) -> None:
    """S-36."""

    class Own(il.Trace):
        pass

    with model.trace(ids(), tracer_cls=Own) as tracer:
        pass
    assert type(tracer) is Own
    assert tracer.model is model


USED = {
    "all", "barrier", "break_at", "cache", "invoke", "iter", "model", "next", "result", "stop", "unpadded",
}  # fmt: skip


def test_a_tracer_lists_what_a_block_may_use(model: il.Model) -> None:
    """What only the library uses is not completed by an editor."""
    plan = model.explain(lambda model: model.h[0].output, ids())
    with model.trace(ids()) as tracer, model.scan(ids()) as scan:
        listed = [{name for name in dir(one) if name[0] != "_"} for one in (tracer, scan, plan)]
    assert listed[0] == listed[1] == USED
    assert listed[2] - USED == {
        "kept_bytes",
        "order",
        "peak_bytes",
        "problems",
        "requests",
        "returned",
        "works",
    }


def test_a_subclass_of_the_tracer_may_take_any_other_name(model: il.Model) -> None:
    """S-36: the library calls what begins with an underscore, and what a user may call."""

    class Own(il.Trace):
        visit = before = skip = joined = run = model_run = before_going_on = settle = tap = unfuse = None
        owner = thread = "mine"

    seen = []
    for kind in (il.Trace, Own):
        with model.trace(ids(), tracer_cls=kind) as tracer:
            tracer.cache("mlp")
            model.h[0].mlp.input = model.h[0].mlp.input * 0
            model.h[1].attn.source.self_proj_0.output[:] = 1
            model.h[1].mlp.skip(torch.ones(2, 5, 8))
            seen.append(model.output.logits)
    assert torch.equal(*seen)


def test_interleave_runs_without_a_block(net: Transformer, model: il.Model) -> None:
    """S-48: through input preparation, a method by its name as well."""
    assert torch.equal(model.interleave(None, ids()).logits, net(ids()).logits)
    assert torch.equal(model.interleave("generate", ids(), steps=1), net.generate(ids(), steps=1))
    assert model.interleave(lambda x: x["a"][0], {"a": [3]}) == 3


def test_inputs_go_where_the_model_is() -> None:
    """S-48: containers traversed."""
    model = il.Model(sequential().to("meta"))
    assert model.interleave(lambda x: x["a"][0].device, {"a": [torch.ones(1)]}) == torch.device("cpu")
    moved = sequential()
    where: list[torch.device] = []
    given = il.Model(moved).interleave(lambda x, y: (x, y), {"a": [torch.ones(1)]}, torch.zeros(1))
    where += [given[0]["a"][0].device, given[1].device]
    assert where == [torch.device("cpu")] * 2


def test_a_trace_is_opened_once(model: il.Model) -> None:
    tracer = model.trace(ids())
    with tracer:
        pass
    with pytest.raises(il.errors.TraceError, match=r"opened once; call `\.trace\(\.\.\.\)` again"):
        with tracer:
            pass


def test_an_attribute_error_of_the_model_is_its_own(model: il.Model) -> None:
    """Law 11: Python takes an AttributeError from a property for a missing name; the model's must not be."""

    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.nothing  # type: ignore[attr-defined, no-any-return]

    broken = il.Model(nn.Sequential(Broken()))
    with (
        pytest.raises(AttributeError, match="'Tensor' object has no attribute 'nothing'"),
        broken.trace(torch.ones(1)),
    ):
        broken[0].output
    with pytest.raises(AttributeError, match="'nothing'"), broken.trace(torch.ones(1)):
        broken[0].output = torch.ones(1)


def test_messages_are_short() -> None:
    """Errors: at most five lines."""
    model = il.Model(Odd())
    messages = []
    for path in ("dead.output", "fails.output", "inner.nothing"):
        with pytest.raises(il.errors.InterlaceError) as caught, model.trace(torch.ones(1, 3)):
            model.get(path)
        messages.append(str(caught.value))
    assert all(len(message.splitlines()) <= 5 for message in messages)
    assert re.search(r"`model\.dead\.output` was not reached", messages[0])
