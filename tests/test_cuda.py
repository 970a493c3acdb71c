"""What only a GPU can show. Everything here is skipped, with its reason, where torch finds none."""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import interlace as il
from interlace.errors import WriteError
from tests import tiny
from tests.models import Transformer, ids

pytestmark = [
    pytest.mark.language,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def big(dtype: torch.dtype = torch.float32) -> Transformer:
    """Large enough that kernels run after the call that started them has returned."""
    return Transformer(layers=3, d_model=256, n_head=4, d_vocab=11).to("cuda", dtype).eval()


def tokens() -> Tensor:
    return ids(4, 64).cuda()


@contextlib.contextmanager
def hooked(*pairs: tuple[Any, Callable[..., Any]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_and_writes_equal_those_of_hooks(dtype: torch.dtype) -> None:
    net, x, kept = big(dtype), tokens(), {}
    model = il.Model(net)
    with torch.no_grad():
        bare = net(x).logits
        with model.trace(x):
            read = [block.output[0] for block in model.h]
            logits = model.output.logits
        assert torch.equal(logits, bare)

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            kept[module] = out[0]

        def write(module: nn.Module, args: Any, out: Any) -> Any:
            return (out[0] * 2,)

        def zero(module: nn.Module, args: Any, out: Any) -> None:
            out[:, 0] = 0

        with hooked(*[(block, keep) for block in net.h]):
            net(x)
        assert all(torch.equal(a, b) for a, b in zip(read, kept.values(), strict=True))
        with hooked((net.h[0].mlp, zero), (net.h[1], write)):
            expected = net(x).logits
        with model.trace(x):
            model.h[0].mlp.output[:, 0] = 0
            model.h[1].output = (model.h[1].output[0] * 2,)
            edited = model.output.logits
    assert torch.equal(edited, expected)


def test_gradients_equal_those_of_torch() -> None:
    """Also through a checkpointed region, whose forward is run again on the caller's thread."""
    net, x = big(), tokens()
    model = il.Model(net)

    def loss() -> Tensor:
        hidden = net.embed(x)
        mask = torch.full((64, 64), float("-inf"), device="cuda").triu(1)
        for block in net.h:
            hidden = block(hidden, mask=mask)[0] * 2
        return net.lm_head(net.ln_f(hidden)).square().mean()  # type: ignore[no-any-return]

    loss().backward()  # type: ignore[no-untyped-call]
    expected = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    for again in (False, True):
        if again:
            for block in net.h:
                block.forward = Checkpointed(block.forward)
        with model.trace(x):
            hidden = []
            for block in model.h:
                hidden.append(block.output[0])
                block.output = (block.output[0] * 2,)
            logits = model.output.logits
        with il.backward(logits.square().mean()):
            grads = [one.grad for one in reversed(hidden)]
        assert all(grad.is_cuda and grad.abs().sum() > 0 for grad in grads)
        found = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        torch.testing.assert_close(found, expected)
        net.zero_grad()


class Checkpointed:
    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


class Dropped(nn.Module):
    """A checkpointed region that draws random numbers of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64)

    def region(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.first(x)).relu())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.region, x, use_reentrant=False)  # type: ignore[no-any-return]


def test_a_region_that_is_run_again_draws_the_same_numbers() -> None:
    """Those of the model, and those that the block has drawn in it."""
    net, x = Dropped().cuda(), torch.randn(16, 64, device="cuda")
    model, grads = il.Model(net), []
    for again in (True, False):
        torch.manual_seed(3)
        net.zero_grad()
        if not again:
            net.forward = net.region  # type: ignore[method-assign]
        with model.trace(x):
            model.first.output = model.first.output + torch.randn(16, 64, device="cuda")
            loss = model.output.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        grads.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(*grads)


class Streams(nn.Module):
    """Notes the stream that its parts run on; the one in the middle has a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Identity(), nn.Identity(), nn.Identity()
        self.own = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.seen.append(torch.cuda.current_stream())
        with torch.cuda.stream(self.own):
            x = self.b(x)
            self.seen.append(torch.cuda.current_stream())
        self.seen.append(torch.cuda.current_stream())
        return self.c(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cast", [True, False])
def test_a_stream_of_one_side_is_not_the_others(grad: bool, cast: bool) -> None:
    net = Streams()
    model, mine, rest = il.Model(net), torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    with (
        torch.set_grad_enabled(grad),
        torch.autocast("cuda", enabled=cast),
        model.trace(torch.ones(3, device="cuda")),
    ):
        model.a.output  # noqa: B018
        with torch.cuda.stream(mine):
            model.b.output  # noqa: B018
            assert torch.cuda.current_stream() == mine
            model.c.output  # noqa: B018
            assert torch.cuda.current_stream() == mine
        assert torch.cuda.current_stream() == rest
    assert torch.cuda.current_stream() == rest
    assert net.seen == [rest, net.own, rest]


def test_autocast_of_one_side_is_not_the_others() -> None:
    net, x = big(), tokens()
    model = il.Model(net)
    with torch.no_grad(), model.trace(x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            first = model.h[0].mlp.output
            mine = first @ first.transpose(-1, -2)
        out = model.h[1].mlp.output
    assert (first.dtype, mine.dtype, out.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16), model.trace(x):
        out = model.h[1].mlp.output
        with torch.autocast("cuda", enabled=False):
            mine = out.float() @ out.float().transpose(-1, -2)
            after = model.h[2].mlp.output
    assert (out.dtype, mine.dtype, after.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_a_tensor_of_another_device_is_refused() -> None:
    net, x = big(), tokens()
    model = il.Model(net)
    with model.trace(x):
        with pytest.raises(WriteError, match="cuda"):
            model.h[0].mlp.output = torch.zeros(4, 64, 256)
        kept = model.h[1].mlp.output
    assert kept.is_cuda


def test_prompts_that_lie_on_several_devices_go_where_the_model_is() -> None:
    net, x = big(), tokens()
    model = il.Model(net)
    with torch.no_grad():
        with model.trace() as tracer:
            with tracer.invoke(x[:1]):
                first = model.output.logits
            with tracer.invoke(x[1:].cpu()):
                second = model.output.logits
        torch.testing.assert_close(torch.cat([first, second]), net(x).logits)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_memory_that_runs_out_is_an_error_of_the_model(part: str) -> None:
    """The error is raised in C++, below a stack of our own, with a native backtrace; a model goes on after it."""

    class Huge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            if part == "forward":
                torch.empty(1 << 50, device="cuda")
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            torch.empty(1 << 50, device="cuda")
            return grad

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Huge.apply(self.first(x)))  # type: ignore[no-any-return, no-untyped-call]

    model, x = il.Model(Net().cuda()), torch.ones(2, 4, device="cuda")
    for _ in range(50):
        with pytest.raises(torch.OutOfMemoryError), model.trace(x):  # noqa: PT012
            first = model.first.output
            out = model.last.output
            with il.backward(out.sum()):
                first.grad  # noqa: B018
        assert first.is_cuda


def test_traces_leave_no_memory_behind() -> None:
    net, x = big(), tokens()
    model = il.Model(net)

    def traces(count: int) -> int:
        for n in range(count):
            with contextlib.suppress(ZeroDivisionError), model.trace(x):
                hidden = model.h[1].output[0]
                model.h[1].output = (hidden + 1,)
                if n % 3 == 0:
                    1 / 0  # noqa: B018
                with il.backward(model.output.logits.sum()):
                    hidden.grad  # noqa: B018
            del hidden
        net.zero_grad()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    gc.collect()
    gc.disable()
    try:
        before = traces(5)
        assert traces(50) == before
    finally:
        gc.enable()


def test_batches_of_a_recording_shrink_when_the_device_is_full(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 8)).cuda()
    x = torch.randn(256, 64, 1024)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (200 << 20)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        acts = il.Model(net).record(x, "2", tmp_path, batch_size=256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    with torch.no_grad():
        expected = torch.cat([net(part.cuda()).cpu() for part in torch.split(x, 16)])
    torch.testing.assert_close(acts["2"][:], expected)
    size = json.loads((tmp_path / "index.json").read_text())["progress"]["batch_size"]
    assert size < 256


def test_a_scan_makes_no_activation_on_the_device() -> None:
    """Only what the model counts out from its integers, here the mask of 64 by 64."""
    net, x = big(), tokens()
    model = il.Model(net)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with model.scan(x):
        model.h[0].output = (model.h[0].output[0] * 2,)
        logits = model.output.logits
    assert logits.device.type == "cuda"
    one_activation = 4 * 64 * 256 * 4
    assert torch.cuda.max_memory_allocated() - before < one_activation


SPREAD: dict[str, dict[str, Any]] = {
    "gpt2": {
        **dict.fromkeys(
            ("transformer.wte", "transformer.wpe", "transformer.drop", "transformer.ln_f", "lm_head"), 0
        ),
        "transformer.h.0": 0,
        "transformer.h.1": "cpu",
    },
    "llama": {
        **dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), 0),
        "model.layers.0": 0,
        "model.layers.1": "cpu",
    },
}


class TestLanguageModel:
    @pytest.fixture(params=list(tiny.SIZES))
    def saved(self, request: Any, tmp_path: Path) -> str:
        return tiny.save(request.param, tmp_path)

    def test_loaded_on_the_device_it_traces_and_generates(self, saved: str) -> None:
        model = il.LanguageModel(saved, device_map="cuda")
        with model.trace("a b c"):
            logits = model.output.logits
        assert logits.is_cuda
        with model.generate("a b c", max_new_tokens=5, do_sample=False) as tracer:
            steps = [tiny.head(model).output[:, -1].argmax(-1).item() for _ in tracer.iter[:]]
            out = tracer.result
        assert out[0, -5:].tolist() == steps
        assert model.generate("a b c", max_new_tokens=5, do_sample=False).tolist() == out.tolist()

    def test_several_prompts_get_what_each_gets_alone(self, saved: str) -> None:
        model = il.LanguageModel(saved, device_map="cuda", dtype=torch.float32)
        alone = []
        for prompt in ("a b c", "d"):
            with model.trace(prompt):
                tiny.head(model).output[:, -1, 3] += 100
                alone.append(model.output.logits[:, -1])
        with model.trace() as tracer:
            with tracer.invoke("a b c"):
                tiny.head(model).output[:, -1, 3] += 100
                one = model.output.logits[:, -1]
            with tracer.invoke("d"):
                tiny.head(model).output[:, -1, 3] += 100
                two = model.output.logits[:, -1]
        torch.testing.assert_close([one, two], alone, atol=1e-4, rtol=1e-4)

    def test_a_static_cache_is_not_compiled_in_a_trace(self, saved: str) -> None:
        model = il.LanguageModel(saved, device_map="cuda")
        asked = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
        plain = il.LanguageModel(saved, device_map="cuda").generate(
            "a b c", max_new_tokens=4, do_sample=False
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.warns(il.errors.InterlaceWarning, match="compile"))
            with model.generate("a b c", **asked) as tracer:
                hidden = [tiny.head(model).output for _ in tracer.iter[:]]
                out = tracer.result
        assert len(hidden) == 4
        assert out.tolist() == plain.tolist()

    @pytest.mark.parametrize("name", SPREAD)
    def test_spread_over_a_gpu_and_the_cpu(self, name: str, tmp_path: Path) -> None:
        """accelerate's hooks move values and weights; a block sees what its module computes with."""
        path = tiny.save(name, tmp_path)
        whole, model = il.LanguageModel(path), il.LanguageModel(path, device_map=SPREAD[name])
        blocks = tiny.BLOCKS[name]
        hidden, logits = [], []
        for one in (whole, model):
            with one.trace("a b c"):
                for layer in (0, 1):
                    out = one.get(f"{blocks}.{layer}").output
                    hidden.append((out[0] if isinstance(out, tuple) else out).clone())
                    out[0][:, -1] += 1
                logits.append(one.output.logits.cpu())
        assert hidden[2].is_cuda
        for here, there in ((hidden[0], hidden[2]), (hidden[1], hidden[3]), logits):
            torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_that_inductor_compiled_is_traced_at_its_rim() -> None:
    net, x = big(), tokens()
    model = il.Model(net)
    with torch.no_grad():
        expected = net(x).logits
        net.h[1].get_submodule("mlp").compile()
        net(x)
        with model.trace(x):
            out = model.h[1].mlp.output
            model.h[1].mlp.output = out * 1
            logits = model.output.logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(net(x).logits, expected, atol=1e-3, rtol=1e-3)
