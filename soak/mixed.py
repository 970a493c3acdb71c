"""Traces of every kind, mixed at random: each checks the values that it sees against a run without a trace.

A kind is a function of a `Bench`; it raises where a value is wrong. What it leaves behind is measured from
outside.
"""

import asyncio
import contextlib
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

import interlace as il
from interlace.errors import InterlaceError, InterlaceWarning, OrderError, WriteError
from soak import rows
from soak.programs import Subject, agree, program, same
from tests.models import EncoderDecoder, Looped, Odd, Tied, Transformer, ids, sequential


class Bench:
    """The models that the traces run on, and what they give untouched."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.chance = random.Random(seed)
        self.x = torch.randn(2, 3)
        self.net: Any = sequential()
        self.model = il.Model(self.net)
        self.parts = [self.net[0](self.x)]
        for layer in (1, 2):
            self.parts.append(self.net[layer](self.parts[-1]))
        self.parts = [part.detach() for part in self.parts]
        self.looped = il.Model(Looped(times=3))
        self.decoder = il.Model(Transformer())
        self.tokens = ids()
        net: Any = self.decoder._module
        self.written: Tensor = net.generate(self.tokens)
        self.odd = il.Model(Odd())
        nets: list[tuple[str, nn.Module, Tensor]] = [
            ("sequential", sequential(), torch.randn(2, 3)),
            ("transformer", Transformer(), ids()),
            ("encoder-decoder", EncoderDecoder(), torch.randn(2, 3)),
            ("looped", Looped(), torch.randn(2, 3)),
            ("odd", Odd(), torch.randn(2, 3)),
            ("tied", Tied(), torch.randn(2, 3)),
        ]
        self.subjects = [Subject.of(*one) for one in nets]
        self.models = [il.Model(subject.net) for subject in self.subjects]
        # The encoder mixes the rows of its batch, so what one prompt writes is another's too.
        self.by_rows = [n for n, subject in enumerate(self.subjects) if subject.name != "encoder-decoder"]
        self.traces = 0
        self._lock = threading.Lock()

    def trace(self, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A trace, counted; of the sequential net unless another is named."""
        with self._lock:
            self.traces += 1
        return model.trace(*args, **kwargs) if model is not None else self.model.trace(self.x)

    def expect(self, seen: Any, wanted: Tensor) -> None:
        """Compare bit for bit."""
        if not same(seen.detach(), wanted):
            raise AssertionError(f"a wrong value: {float((seen - wanted).abs().max())} apart")


def good(bench: Bench) -> None:
    """Reads two places in order."""
    first, last = sorted(bench.chance.sample(range(3), 2))
    with bench.trace():
        seen = bench.model[first].output
        bench.expect(seen, bench.parts[first])
        bench.expect(bench.model[last].output, bench.parts[last])


def nothing(bench: Bench) -> None:
    """Asks for nothing."""
    with bench.trace() as tracer:
        pass
    bench.expect(tracer.result, bench.parts[2])


def fuzzed(bench: Bench) -> None:
    """A random program, against the same in hooks."""
    at = bench.chance.randrange(len(bench.subjects))
    actions = program(bench.subjects[at], bench.chance.randrange, 1 + bench.chance.randrange(8))
    bench.traces += 1
    with torch.set_grad_enabled(bench.chance.random() < 0.5):
        differ = agree(bench.subjects[at], bench.models[at], actions)
    assert not differ, f"{bench.subjects[at].name}: {differ} in {actions}"


def fuzzed_prompts(bench: Bench) -> None:
    """Random programs of two prompts in one forward, against hooks on the rows of each."""
    at = bench.chance.choice(bench.by_rows)
    bench.traces += 1
    differ = rows.agree(bench.subjects[at], bench.models[at], bench.chance.randrange)
    assert not differ, f"{bench.subjects[at].name}: {differ}"


def failing_block(bench: Bench) -> None:
    """The block raises."""
    with contextlib.suppress(KeyError), bench.trace():
        bench.expect(bench.model[1].output, bench.parts[1])
        raise KeyError


def failing_model(bench: Bench) -> None:
    """The model raises, at a request or at the end; what was read stays."""
    seen = None
    with contextlib.suppress(ArithmeticError), bench.trace(bench.odd, bench.x, fail=True):
        seen = bench.odd.inner.output
        if bench.chance.random() < 0.5:
            bench.odd.output  # noqa: B018
    bench.expect(seen, bench.odd.inner(bench.x).detach())


def failing_torch(bench: Bench) -> None:
    """torch raises inside the model: it walks the native stack as it does."""
    try:
        with bench.trace():
            bench.model[0].output = il.insist(torch.ones(7, 7))
            bench.model[2].output  # noqa: B018
    except RuntimeError as error:
        assert not isinstance(error, InterlaceError)  # noqa: PT017
    else:
        raise AssertionError("no error of torch")


def refused(bench: Bench) -> None:
    """A write that does not fit, and a request that comes too late; the run goes on."""
    with bench.trace():
        with contextlib.suppress(WriteError):
            bench.model[0].output = torch.ones(7)
        bench.expect(bench.model[1].output, bench.parts[1])
        with contextlib.suppress(OrderError):
            bench.model[0].output  # noqa: B018
        bench.expect(bench.model[2].output, bench.parts[2])


def stopped(bench: Bench) -> None:
    """The block stops the run."""
    with bench.trace() as tracer:
        bench.expect(bench.model[0].output, bench.parts[0])
        tracer.stop()


def abandoned(bench: Bench) -> None:
    """Entered and never left."""
    tracer = bench.trace()
    tracer.__enter__()
    bench.expect(bench.model[0].output, bench.parts[0])


def _parked(bench: Bench) -> Iterator[Tensor]:
    with bench.trace():
        yield bench.model[0].output
        yield bench.model[1].output
        yield bench.model[2].output


def generators(bench: Bench) -> None:
    """Several parked at once, advanced in any order; some dropped half-way."""
    running = {n: _parked(bench) for n in range(3)}
    at = dict.fromkeys(running, 0)
    for _ in range(7):
        n = bench.chance.choice(list(running))
        if at[n] < 3:
            bench.expect(next(running[n]), bench.parts[at[n]])
            at[n] += 1
    del running[bench.chance.randrange(3)]
    for rest in running.values():
        for _ in rest:
            pass


def nested(bench: Bench) -> None:
    """A trace of the same model, and a plain call of it, inside a trace."""
    with bench.trace():
        bench.expect(bench.model[0].output, bench.parts[0])
        with torch.no_grad(), bench.trace():
            bench.model[0].output = bench.parts[0] * 0
            assert not torch.is_grad_enabled()
        bench.expect(bench.model(bench.x), bench.parts[2])
        assert torch.is_grad_enabled()
        bench.expect(bench.model[2].output, bench.parts[2])


def prompts(bench: Bench) -> None:
    """Two prompts in one forward; the one that edits does not reach the other."""
    with bench.trace(bench.model) as tracer:
        with tracer.invoke(bench.x):
            bench.model[0].output[:] = 0
            first = bench.model[1].output
        with tracer.invoke(bench.x):
            second = bench.model[1].output
    assert not first.any()
    assert torch.allclose(second, bench.parts[1])


def functions(bench: Bench) -> None:
    """Prompts as functions, of which one may fail."""
    fails = bench.chance.random() < 0.3
    second = None
    with contextlib.suppress(KeyError), bench.trace(bench.model) as tracer:

        @tracer.invoke(bench.x)  # type: ignore[untyped-decorator]
        def first() -> Any:
            if fails:
                raise KeyError
            return bench.model[0].output

        @tracer.invoke(bench.x)  # type: ignore[untyped-decorator]
        def second() -> Any:
            return bench.model[2].output

    assert fails or torch.allclose(second, bench.parts[2])  # type: ignore[arg-type]


def edited(bench: Bench) -> None:
    """A stored edit, in a plain call and in a trace; the model itself stays as it was."""

    def silence(model: Any) -> None:
        model[1].output[:] = 0

    copy = bench.model.edit(silence)
    wanted = bench.net[2](torch.zeros(2, 4)).detach()
    bench.expect(copy(bench.x), wanted)
    with bench.trace(copy, bench.x):
        bench.expect(copy[2].output, wanted)
    bench.traces += 1
    bench.expect(bench.model(bench.x), bench.parts[2])


def steps(bench: Bench) -> None:
    """A block called several times, and a generation, step by step."""
    with bench.trace(bench.looped, bench.x) as tracer:
        seen = [bench.looped.block.output for _ in tracer.iter[:]]
    hidden = bench.x
    for one in seen:
        bench.expect(one, bench.looped.block(hidden).detach())
        hidden = torch.tanh(one)
    assert len(seen) == 3
    with bench.trace(bench.decoder, bench.tokens, fn="generate") as tracer:
        tokens = [bench.decoder.output.logits[:, -1].argmax(-1) for _ in tracer.iter[:]]
        result = tracer.result
    bench.expect(result, bench.written)
    bench.expect(torch.stack(tokens, 1), bench.written[:, -3:])


def operations(bench: Bench) -> None:
    """An operation inside of a forward."""
    with bench.trace(bench.decoder, bench.tokens):
        act = bench.decoder.h[0].mlp.source.self_act_0.output
        bench.expect(bench.decoder.h[0].mlp.down.input, act.detach())


def threads(bench: Bench) -> None:
    """Several threads on one model at once, some of which leave a trace open."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(4):
                with bench.trace():
                    bench.expect(bench.model[1].output, bench.parts[1])
                    if chance.random() < 0.5:
                        bench.expect(bench.model[2].output, bench.parts[2])
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=work, args=(bench.chance.randrange(99),)) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def left_elsewhere(bench: Bench) -> None:
    """Entered here and collected on another thread: it ends at this thread's next trace."""
    tracer = bench.trace()
    tracer.__enter__()
    bench.expect(bench.model[0].output, bench.parts[0])
    box = [tracer]
    del tracer
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    good(bench)


def tasks(bench: Bench) -> None:
    """Tasks of asyncio that wait in the middle of their traces; one is cancelled there."""

    async def one(n: int) -> None:
        with bench.trace():
            for at in range(3):
                bench.expect(bench.model[at].output, bench.parts[at])
                await asyncio.sleep(0 if n else 10)

    async def all_of_them() -> None:
        first = asyncio.ensure_future(one(0))
        await asyncio.gather(*(one(n) for n in range(1, 4)))
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first

    loop = bench.__dict__.setdefault("loop", None) or asyncio.new_event_loop()
    bench.__dict__["loop"] = loop
    loop.run_until_complete(all_of_them())


def greenlets(bench: Bench) -> None:
    """Greenlets of somebody else, each with a trace, switched between at random; one is killed in its block."""
    main = getcurrent()

    def work() -> None:
        with bench.trace():
            for at in range(3):
                bench.expect(bench.model[at].output, bench.parts[at])
                main.switch()

    others = [greenlet(work) for _ in range(3)]
    for _ in range(bench.chance.randrange(1, 12)):
        other = bench.chance.choice(others)
        if not other.dead:
            other.switch()
    bench.chance.choice(others).throw()
    for other in others:
        while not other.dead:
            other.switch()


def nan(bench: Bench) -> None:
    """A search for a nan that is not there."""
    bench.traces += 1
    assert il.find_nonfinite(bench.decoder, bench.tokens) is None


Kind = Callable[[Bench], None]

KINDS: dict[Kind, int] = {
    good: 30, nothing: 5, fuzzed: 10, fuzzed_prompts: 5, failing_block: 8, failing_model: 8, failing_torch: 4,
    refused: 6, stopped: 6, abandoned: 4, generators: 4, nested: 6, prompts: 4, functions: 4, edited: 4, steps: 3,
    operations: 2, threads: 1, left_elsewhere: 1, tasks: 2, greenlets: 3, nan: 1,
}  # fmt: skip
"""What is mixed, and how often."""


def run(bench: Bench, traces: int, each: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Run kinds at random until so many traces were opened; how often each was run."""
    counts = {kind.__name__: 0 for kind in KINDS}
    kinds, weights = list(KINDS), list(KINDS.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", InterlaceWarning)
        while bench.traces < traces:
            for kind in bench.chance.choices(kinds, weights, k=20):
                kind(bench)
                counts[kind.__name__] += 1
            each()
    loop = bench.__dict__.pop("loop", None)
    if loop is not None:
        loop.close()
    return counts
