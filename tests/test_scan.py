"""Scans: what they say is what a real run gives, and nothing is left behind. (S-37, S-38, S-88)"""

import copy
import functools
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import interlace as il
from interlace import scan
from interlace.errors import OutsideTraceError, ScanError, WriteError
from interlace.fakes import Fakes, active, has_no_values
from interlace.run import Run
from interlace.site import Visit
from interlace.tap import Taps
from interlace.trees import children, tensors
from tests import models
from tests.source.architectures import OTHER, TEXT, build, inputs

ROWS = torch.arange(6.0).reshape(2, 3)
TINY: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "sequential": (models.sequential, (ROWS,)),
    "transformer": (models.Transformer, (models.ids(),)),
    "looped": (models.Looped, (ROWS,)),
    "encoder-decoder": (models.EncoderDecoder, (ROWS,)),
    "bert": (models.Bert, (ROWS,)),
    "tied": (models.Tied, (ROWS,)),
    "odd": (models.Odd, (ROWS,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()),
        (torch.ones(2, 3, 8, 8),),
    ),
    "recurrent": (lambda: nn.LSTM(3, 4, batch_first=True), (torch.ones(2, 5, 3),)),
    "half": (lambda: models.sequential().to(torch.bfloat16), (ROWS.bfloat16(),)),
    "float64 on the way": (lambda: nn.Sequential(nn.Linear(3, 2), Doubled()), (ROWS,)),
}


EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss")
"""Architectures whose experts transformers 4 loops over by what the router says."""


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def shape_of(value: Any) -> Any:
    """A value with each tensor as its shape, dtype, strides and device; a cache by what it holds."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, str(value.device), value.stride()
    parts = children(value)
    if parts is not None:
        return type(value).__name__, [(name, shape_of(part)) for name, part in parts]
    if "Cache" in type(value).__name__:
        layers = getattr(value, "layers", ())
        return [shape_of((getattr(layer, "keys", None), getattr(layer, "values", None))) for layer in layers]
    return value if isinstance(value, (int, float, str, type(None))) else type(value).__name__


def really(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Visit | None]:
    """The first visit of every module of a copy, in a real run."""
    model = copy.deepcopy(model)
    seen: dict[int, Visit] = {}
    run, taps = Run(lambda: model(*args, **kwargs)), Taps(list(model.modules()))

    def record(visit: Visit) -> None:
        seen.setdefault(visit.key, visit)

    for module in model.modules():
        run.watch(id(module), "input", record)
        run.watch(id(module), "output", record)
    taps.install(model)
    try:
        run.finish()
    finally:
        taps.remove(model)
    paths = model.named_modules(remove_duplicate=False)
    return {f"model.{name}".removesuffix("."): seen.get(id(module)) for name, module in paths}


def compare(model: il.Envoy, real: dict[str, Visit | None]) -> None:
    """What a scan has told is what the real run gave, for every module."""
    for path, visit in real.items():
        told = model._tree.shapes.get(path)
        assert (told is None) == (visit is None), path
        if visit is not None and told is not None:
            for port in ("args", "kwargs", "result"):
                assert shape_of(getattr(told, port)) == shape_of(getattr(visit, port)), (path, port)
            assert all(map(has_no_values, tensors((told.args, told.kwargs, told.result)))), path


def meta(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("meta")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("place", [lambda net: net, meta], ids=["real", "meta"])
def test_a_scan_says_what_a_real_run_gives(name: str, place: Callable[[nn.Module], nn.Module]) -> None:
    """S-38, S-88: shape, dtype, strides, device, and structure, of every input and output, on both devices."""
    make, given = TINY[name]
    net = make()
    model = il.Model(place(net))
    with model.scan(*given):
        pass
    compare(model, really(net, *given))


@pytest.mark.slow
@pytest.mark.language
@pytest.mark.parametrize("kind", [*TEXT, *OTHER])
def test_architectures(kind: str) -> None:
    """S-37: seventy architectures on the meta device, their masks, caches and positions included."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some script what they import, some say that they lack fast kernels
        net = build(kind)
        given: dict[str, Any] = dict(inputs(net))
        if "input_ids" in given and kind not in ("rwkv", "fnet"):
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        model = il.Model(meta(net))
        if kind in EXPERTS and transformers.__version__.startswith("4."):
            with pytest.raises(ScanError, match=r"expert_mask|expert_size"):
                model.scan(**given)
            return
        model.scan(**given)
        compare(model, really(net, **given))


@pytest.mark.language
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("hidden", [0, 2])
def test_the_path_of_the_mask_is_the_real_one(attention: str, hidden: int) -> None:
    """S-88: a mask that hides nothing is dropped, one that hides something goes to every layer, as in a real run."""
    net = build("llama", attention)
    given: dict[str, Any] = dict(inputs(net))
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    given["attention_mask"][:, :hidden] = 0
    model = il.Model(meta(net))
    model.scan(**given)
    compare(model, really(net, **given))


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t.sum().item(),
        lambda t: (t > 0).any() and 1,
        lambda t: t + torch.ones(2),
        lambda t: t.nonzero(),
    ],
)
def test_what_a_scan_gave_has_no_values_afterwards(use: Callable[[Tensor], Any]) -> None:
    """S-38: torch's own words for it would not tell a reader that the tensor is from a scan."""
    model = il.Model(nn.Linear(2, 2))
    with model.scan(torch.ones(2, 2)):
        held = model.output
    for tensor in (held, model.output):
        with pytest.raises(ScanError, match=r"is from a scan.*\nFor values, read it in a trace"):
            use(tensor)
        assert (tensor * 2).shape == (2, 2)


def test_the_block_is_native() -> None:
    """S-37: it reads, edits, makes tensors and calls modules, all without values."""
    model = il.Model(models.Transformer())
    with model.scan(models.ids()) as tracer:
        hidden = model.h[0].output[0]
        made = torch.zeros(8), torch.arange(3), torch.tensor([1, 2])
        model.h[0].mlp  # noqa: B018
        model.h[1].mlp.output += made[0] + hidden
        logits = model.lm_head(hidden)
        weight = model.lm_head.weight @ hidden[0, 0]
        ended = tracer.result.logits
    assert all(has_no_values(tensor) for tensor in (hidden, *made, logits, weight, ended))
    assert (logits.shape, weight.shape, ended.shape) == ((2, 5, 11), (11,), (2, 5, 11))
    assert not active()
    assert not has_no_values(torch.zeros(1))


def test_values_of_real_tensors_are_at_hand_in_the_block() -> None:
    """What the block has from outside keeps its values: it may say which layer to ask for."""
    model = il.Model(models.Transformer())
    layers, scale = torch.tensor([0, 1]), torch.ones(8)
    with model.scan(models.ids()):
        for layer in layers.tolist():
            model.h[layer].output[0].mul_(scale)
        total = (layers + 1).sum().item()
        scale.mul_(model.ln_f.output[0, 0])
        with pytest.raises(ScanError):
            scale.sum().item()
    assert total == 3
    assert scale.eq(1).all()  # and nothing of it is written to


def test_without_a_with_the_model_is_scanned_at_once() -> None:
    """S-37: the result is at hand; what it returns can still be entered."""
    model = il.Model(models.sequential())
    scan = model.scan(ROWS)
    assert model[0].output.shape == (2, 4)
    assert scan.result.shape == (2, 2)
    with scan:
        again = model[1].output
    assert again.shape == (2, 4)


def test_values_after_a_scan() -> None:
    """S-03, S-23, S-38: before it an error, after it what was seen; None is not the same as never seen."""
    model = il.Model(models.Odd())
    with pytest.raises(OutsideTraceError, match="exists only inside a trace, or after a scan"):
        model.inner.output  # noqa: B018
    with model.scan(ROWS):
        pass
    assert model.silent.output is None
    assert model.inner.input.shape == (2, 3)
    assert [tensor.shape for tensor in model.inner.inputs[0]] == [(2, 3)]
    with pytest.raises(ValueError, match=r"`model\.dead\.output` was not reached by the last scan"):
        model.dead.output  # noqa: B018
    with pytest.raises(IndexError):
        model.constant.input  # noqa: B018


def test_a_scan_of_a_part_leaves_the_rest() -> None:
    """S-38: each module has its last scan."""
    model = il.Model(models.Transformer())
    model.scan(models.ids())
    model.h[0].scan(torch.ones(1, 3, 8))
    assert model.h[0].mlp.output.shape == (1, 3, 8)
    assert model.h[1].mlp.output.shape == (2, 5, 8)


def test_repr_shows_shapes() -> None:
    """S-49: beside each module, with neighbors that are the same still folded."""
    model = il.Model(models.Transformer())
    model.scan(models.ids())
    text = repr(model)
    assert "(embed): Embedding(11, 8)  # -> Tensor(2, 5, 8) float32 cpu" in text
    assert "(0-1): 2 x Block(" in text


def test_what_is_kept_cannot_be_mixed_up() -> None:
    """S-38: a real tensor added to one is torch's error, and no mode outlives the scan."""
    model = il.Model(models.sequential())
    model.scan(ROWS)
    kept = model[0].output
    assert (kept.shape, kept.dtype, kept.device, kept.requires_grad) == (
        (2, 4), torch.float32, torch.device("cpu"), False,
    )  # fmt: skip
    assert "FakeTensor" in repr(kept)
    with pytest.raises(ScanError, match="is from a scan"):
        kept + torch.zeros(4)


def test_prompts_edits_and_steps() -> None:
    """S-37: invokes get their rows, stored edits are replayed, loops turn, operations are named."""
    model = il.Model(models.Transformer())
    with model.scan() as tracer:
        with tracer.invoke(models.ids(1)):
            one = model.h[0].output[0]
            model.h[0].output[0][:] = 0
        with tracer.invoke(models.ids(2)):
            two = model.h[1].output[0]
    assert (one.shape, two.shape) == ((1, 5, 8), (2, 5, 8))
    seen = []
    edited = model.edit(lambda model: seen.append(model.h[0].mlp.output.mul_(torch.ones(8)).shape))
    edited.scan(models.ids())
    assert seen == [(2, 5, 8)]
    with model.scan(models.ids(), fn="generate") as tracer:
        steps = [model.lm_head.output.shape for _ in tracer.iter[:]]
    assert steps == [(2, 5, 11), (2, 6, 11), (2, 7, 11)]
    with model.scan(models.ids()):
        mixed = model.h[0].source.self_attn_0.output[0]
    assert mixed.shape == (2, 5, 8)


def test_two_scans_mix_and_nest() -> None:
    """S-37, law 9: values of one scan can be used in another, and a trace in a scan is a scan."""
    model = il.Model(models.Transformer())
    with model.scan(models.ids()):
        first = model.h[0].mlp.output
        with model.scan(models.ids(1)):
            inner = model.h[0].mlp.output
        with model.trace(models.ids()):
            traced = model.h[0].mlp.output
        after = model.h[1].mlp.output
    assert (first.shape, inner.shape, after.shape) == ((2, 5, 8), (1, 5, 8), (2, 5, 8))
    assert has_no_values(traced)
    with model.scan(models.ids()):
        model.h[1].mlp.output = first
        logits = model.output.logits
    assert logits.shape == (2, 5, 11)


def test_generators_leave_in_any_order() -> None:
    """Law 9: each takes its own mode with it."""
    model = il.Model(models.sequential())

    def layers() -> Generator[torch.Size, None, None]:
        with model.scan(ROWS):
            yield model[0].output.shape
            yield model[1].output.shape

    first, second = layers(), layers()
    assert next(first) == next(second) == (2, 4)
    first.close()
    assert next(second) == (2, 4)
    second.close()
    assert not active()
    assert not has_no_values(torch.zeros(1))


def test_threads_do_not_see_it() -> None:
    """Law 9: a real run in another thread, while a scan is open."""
    net = models.sequential()
    model = il.Model(net)
    found: list[Tensor] = []
    with model.scan(ROWS):
        model[0].output  # noqa: B018
        thread = threading.Thread(target=lambda: found.append(net(ROWS)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], net(ROWS))


def test_gradients_belong_to_the_scan() -> None:
    """S-37: a backward pass in the block works, and the model's parameters get no gradient."""
    net = models.Transformer()
    model = il.Model(net)
    with model.scan(models.ids()):
        model.output.logits.sum().backward()
        inside = net.lm_head.weight.grad
    assert inside is not None
    assert inside.shape == (11, 8)
    assert net.lm_head.weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_ambient_modes(mode: Callable[[], Any]) -> None:
    """Law 8."""
    model = il.Model(models.Transformer())
    with mode(), model.scan(models.ids()):
        hidden = model.h[0].output[0]
    assert not hidden.requires_grad
    model.scan(models.ids())
    with torch.autocast("cpu"):
        model.scan(models.ids())
    assert model.h[0].mlp.up.output.dtype == torch.bfloat16


# -- what a scan cannot do -----------------------------------------------------------------------------------


class Branches(nn.Module):
    """Asks for a value in the way that it is told."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x)
        self.ask(hidden)
        return hidden


ASK: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda h: 1 if h.sum() > 0 else 2,
    "item": lambda h: h.sum().item(),
    "tolist": lambda h: h.tolist(),
    "int": lambda h: int(h.sum()),
    "float": lambda h: float(h.sum()),
    "numpy": lambda h: h.detach().numpy(),
    "nonzero": lambda h: h.nonzero(),
    "equal": lambda h: torch.equal(h, h),
    "getitem": lambda h: h[h > 0],
    "unique": lambda h: h.unique(),  # type: ignore[no-untyped-call]  # torch's
}


@pytest.mark.parametrize("what", ASK)
def test_data_dependent_code_is_named(what: str) -> None:
    """S-37: the error names the line of the model, the operation, and what to do."""
    model = il.Model(Branches(ASK[what]))
    with pytest.raises(ScanError) as caught, model.scan(ROWS):
        pass
    message = str(caught.value)
    line = ASK[what].__code__.co_firstlineno
    assert f"{__file__}:{line}, in " in message
    assert f'"{what}": lambda h: ' in message
    assert {"tolist": "item", "numpy": "numpy"}.get(what, what) in message.split("\n")[2]
    assert "model.trace(...)" in message
    assert len(message.split("\n")) <= 5
    assert model.inner.output.shape == (2, 3)  # what came before it is told
    assert not active()


def test_experts_name_their_line() -> None:
    """S-37: a branch on what a router says; skipping the module lets the scan pass."""
    model = il.Model(nn.Sequential(models.Experts(), nn.Linear(3, 2)))
    with pytest.raises(ScanError, match=r"rows = \(chosen == n\)\.nonzero\(\)"), model.scan(ROWS):
        pass
    with model.scan(ROWS):
        model[0].skip(torch.empty(2, 3))
    assert model[1].output.shape == (2, 2)


def test_an_operator_without_a_rule_of_shapes() -> None:
    """S-37: it is named, with what to register."""
    with torch.library._scoped_library("interlace_test", "FRAGMENT") as library:
        library.define("odd(Tensor x) -> Tensor")
        library.impl("odd", lambda x: x + 1, "CPU")
        model = il.Model(Branches(torch.ops.interlace_test.odd))
        with pytest.raises(ScanError, match=r"interlace_test\.odd.*has no rule for what shape"):
            model.scan(ROWS)


def test_a_block_that_asks_for_values() -> None:
    """S-37: the line of the block is named."""
    model = il.Model(models.sequential())
    with pytest.raises(ScanError, match=r"top = model\[0\]\.output\.argmax"), model.scan(ROWS):
        top = model[0].output.argmax().item()  # noqa: F841


def test_errors_leave_nothing() -> None:
    """Law 11: of the user, of the model, of the input."""
    model = il.Model(models.Odd())
    with pytest.raises(KeyError), model.scan(ROWS):
        raise KeyError
    with pytest.raises(ArithmeticError), model.scan(ROWS, fail=True):
        pass
    message = r"`model\.scan\(\)` was opened without an input\.\nWrite `with model\.scan\(x\):`"
    with pytest.raises(il.errors.InputError, match=message), model.scan():
        pass
    with pytest.raises(RuntimeError, match="same reduction dim"), model.scan(torch.ones(2, 4)):
        pass
    assert not active()
    assert not has_no_values(torch.zeros(1))


# -- what a scan leaves behind -------------------------------------------------------------------------------


class Keeps(nn.Module):
    """Keeps what it computes, wherever a model may."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.tensor(0))
        self.table: Tensor | None = None
        self.held: dict[str, Any] = {"list": []}
        self.beside = Beside()

    @functools.lru_cache  # noqa: B019
    def cached(self, width: int) -> Tensor:
        return torch.ones(width) * self.inner.weight[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = self.inner.weight.sum(0)
        self.calls += 1
        self.held["last"] = x
        self.held["list"].append(x)
        self.beside.last = x
        self.inner.bias = nn.Parameter(self.inner.bias * 2)
        out: Tensor = self.norm(self.inner(x)) + self.table + self.cached(3)
        return out


class Beside:
    last: Any = None


def test_the_model_is_untouched() -> None:
    """S-37, law 7: parameters, buffers, attributes, containers, caches: all as they were, and it still pickles."""
    net = Keeps()
    before, held = (
        copy.deepcopy(net.state_dict()),
        {n: id(v) for n, v in net.state_dict(keep_vars=True).items()},
    )
    model = il.Model(net)
    for _ in range(2):
        model.scan(ROWS)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert held == {name: id(value) for name, value in net.state_dict(keep_vars=True).items()}
        assert (net.table, net.held, net.beside.last) == (None, {"list": []}, None)
        assert "_compiled_call_impl" not in vars(net)
    assert not any(map(has_no_values, tensors(net(ROWS))))
    pickle.loads(pickle.dumps(models.sequential()))
    assert pickle.loads(pickle.dumps(model)).inner.path == "model.inner"


def test_the_input_is_untouched() -> None:
    """S-37: tensors are not written to, and an object that the run fills is emptied again."""
    filled = Beside()
    filled.last = torch.ones(1)

    class Fills(nn.Module):
        def forward(self, x: Tensor, cache: Beside) -> Tensor:
            cache.last = x * 2
            return x.mul_(2)

    given = torch.arange(3)
    model = il.Model(Fills())
    model.scan(given, cache=filled)
    assert torch.equal(given, torch.arange(3))
    assert torch.equal(filled.last, torch.ones(1))
    told = model.inputs[1]["cache"]
    assert told is not filled  # which may be large
    assert has_no_values(told.last)


def test_random_numbers_are_not_drawn() -> None:
    """S-37: the next real run draws what it would have drawn."""
    model = il.Model(nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    state = torch.get_rng_state()
    with model.scan(ROWS):
        torch.rand(2), torch.randperm(4), torch.randint(3, (2,))
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_held() -> None:
    """Law 10: reference counting alone frees a scanned model."""

    def scanned() -> "weakref.ref[nn.Module]":
        net = models.Transformer()
        model = il.Model(net)
        model.scan(models.ids())
        with model.scan(models.ids()):
            hidden = model.h[0].output  # noqa: F841
        return weakref.ref(net)

    gc.collect()
    gc.disable()
    try:
        assert scanned()() is None
    finally:
        gc.enable()


def test_compiled_parts_run_as_they_are_written() -> None:
    """S-37: no compiler is asked to trace a scan."""
    net = models.Transformer()
    model = il.Model(net)
    compiled = []

    def backend(graph: Any, example: Any) -> Any:
        compiled.append(graph)
        return graph

    mlp: Any = net.h[0].mlp
    mlp.compile(backend=backend)
    model.scan(models.ids())
    assert model.h[0].mlp.act.output.shape == (2, 5, 16)
    assert compiled == []
    with torch.no_grad():
        net(models.ids())
    assert compiled


def test_skips_are_checked_by_the_scan() -> None:
    """S-31: a replacement of another structure than the scan saw is refused where it is written."""
    model = il.Model(models.Transformer())
    model.scan(models.ids())
    refused = pytest.raises(WriteError, match=r"`model\.h\[0\]\.output` cannot be skipped with this")
    with refused, model.trace(models.ids()):
        model.h[0].skip(torch.zeros(2, 5, 8))
    with model.trace(models.ids()):
        model.h[0].skip((torch.zeros(2, 5, 8),))


def test_writes_are_checked_in_a_scan() -> None:
    """S-24: as in a trace, before anything has run."""
    model = il.Model(models.sequential())
    with (
        pytest.raises(WriteError, match=r"its shape is \(4,\), the model has \(2, 4\) there"),
        model.scan(ROWS),
    ):
        model[0].output = torch.zeros(4)


# -- the mode ------------------------------------------------------------------------------------------------


def test_large_tensors_are_not_computed() -> None:
    """S-88: what is counted out from few integers may be much; then it has no values."""
    with Fakes(torch.device("cpu")) as fakes:
        with fakes.off():
            ids = fakes.known.take(torch.arange(512), torch.device("cpu"))
        few, many = ids + 1, ids[:, None] == ids[None]
    assert not has_no_values(few)
    assert has_no_values(many)
    assert many.shape == (512, 512)


def test_views_are_told_from_copies() -> None:
    """Two tensors without values have different addresses, two views of one the same."""
    with Fakes(torch.device("cpu")):
        one, other = torch.zeros(4), torch.zeros(4)
        assert one.data_ptr() != other.data_ptr()
        assert one[:2].data_ptr() == one.data_ptr()
        assert one[1:].data_ptr() == one.data_ptr() + 4


# -- language models -----------------------------------------------------------------------------------------


@pytest.mark.language
@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_a_language_model_needs_no_weights(kind: str, tmp_path: Path) -> None:
    """S-37, S-95: text, several prompts and a generation, while the weights stay where they are."""
    from tests import tiny

    model = il.LanguageModel(tiny.save(kind, tmp_path))
    load = model._tree.loader
    assert load is not None
    model._tree.loader = functools.partial(_refuse, load)
    layers = tiny.BLOCKS[kind]
    with model.scan("a b c d"):
        hidden = model.get(layers)[1].output
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        logits = tiny.head(model)(hidden)
        where = tiny.head(model).weight.device
    assert (hidden.shape, logits.shape, where.type) == ((1, 4, 8), (1, 4, len(tiny.WORDS)), "cpu")
    with model.scan() as tracer:
        with tracer.invoke("a b c"):
            first = tiny.head(model).output
        with tracer.invoke("a b"):
            second = tiny.head(model).output
    assert first.shape == second.shape == (1, 3, len(tiny.WORDS))
    with model.scan("a b c", fn="generate", max_new_tokens=3) as tracer:
        steps = [tiny.head(model).output.shape[0] for _ in tracer.iter[:]]
        ids = tracer.result
    assert steps == [1, 1, 1]
    assert ids.shape == (1, 6)
    assert model.device == torch.device("meta")
    model._tree.loader = load
    model.scan("a b c d")
    told = model.output
    with model.trace("a b c d") as tracer:
        pass
    assert shape_of(told.logits) == shape_of(tracer.result.logits)


def _refuse(load: Any, *args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a scan has loaded weights")


@pytest.mark.language
def test_a_search_that_depends_on_scores_is_named() -> None:
    """S-37: a beam search cannot be scanned, and the line that needs values is named."""
    from tests import tiny

    model = il.LanguageModel(tiny.ready("gpt2"), tokenizer=tiny.tokenizer())
    with pytest.raises(ScanError, match="_beam_search"):
        model.scan("a b c", fn="generate", max_new_tokens=3, num_beams=2)


@pytest.mark.parametrize(("holder", "name"), [(scan, "_uncompiled"), (Fakes, "__exit__")])
def test_an_interrupt_leaves_no_stand_ins_behind(
    holder: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it falls into entering or into leaving; tensors that are made afterwards have values."""
    model, x = il.Model(models.sequential()), torch.ones(2, 3)
    left, usual = [KeyboardInterrupt], getattr(holder, name)

    def interrupted(*given: Any) -> Any:
        if left:
            raise left.pop()
        return usual(*given)

    monkeypatch.setattr(holder, name, interrupted)
    with pytest.raises(KeyboardInterrupt), model.scan(x):
        model[0].output  # noqa: B018
    assert not active()
    with model.trace(x):
        out = model.output
    assert torch.equal(out, model._module(x))
