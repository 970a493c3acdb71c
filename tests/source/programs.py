"""Functions that are hard to copy faithfully. Each is called by the law tests, original and rewritten."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

Log = list[object]


def arithmetic(x: Any, y: Any) -> Any:
    z = -x + y * 2 - x @ y.T // 3 % 5
    w = (z < y) & (z >= x) | ~(z == y)
    return z, w, x[0], x[..., None], x[:1, -1:], x[[0, 1]], (x**2)[x > 0]


def short_circuit(log: Log) -> Any:
    def seen(value: Any) -> Any:
        log.append(value)
        return value

    first = seen(0) and seen(1)
    second = seen(2) or seen(3)
    third = seen(4) if seen(0) else seen(5)
    return first, second, third, not seen(6), 1 < seen(2) < seen(1) < seen(9), seen(1) in [seen(1), 2]


def order(log: Log) -> Any:
    def seen(value: Any) -> Any:
        log.append(value)
        return value

    def f(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    table = {seen("k0"): seen("v0"), seen("k1"): seen("v1"), **seen({"k2": 0})}
    box: list[Any] = [0, 0, 0]
    box[seen(1)] = seen(5)
    box[seen(2)] += seen(7)
    (box[seen(0)], rest) = seen((3, 4))
    made = [seen(i) + j for i in seen([1, 2]) for j in seen([i]) if seen(j)]
    named = {seen(k): seen(v) for k, v in [(1, 2)]}
    return f(seen(1), *seen([2, 3]), seen(4), a=seen(5), **seen({"b": 6})), table, box, rest, made, named


def in_place(x: Any) -> Any:
    alias = x
    x += 1
    x[0] *= 3
    x[:, 1:] -= 2

    class Box:
        value = x

    box = Box()
    box.value @= torch.eye(2)
    names = [1]
    other = names
    names += [2]
    return alias, x, box.value, other is names


def unpacking(x: Any) -> Any:
    a, (b, *c), *d = [x, (1, 2, 3), 4, 5]
    e = f = [a]
    for i, (g, h) in enumerate([(1, 2), (3, 4)]):
        e.append((i, g, h))
    else:
        i = -1
    [j, k] = (b, c)
    return a, b, c, d, e is f, i, j, k


def walrus(x: Any) -> Any:
    if (n := x.sum()) > -1e9:
        seen = [last := v for v in range(3)]
        return n, seen, last, any((hit := v) == 1 for v in range(3)), hit
    return None


def cleanup(log: Log) -> Any:
    @contextlib.contextmanager
    def scope(name: str) -> Iterator[str]:
        log.append(name)
        try:
            yield name.upper()
        finally:
            log.append(-1)

    with scope("a") as a, scope("b"):
        try:
            raise ValueError(a)
        except ValueError as error:
            log.append(str(error))
        else:
            log.append("never")
        finally:
            log.append("finally")
    for _ in range(3):
        try:
            continue
        finally:
            log.append("loop")
    return a


def matched(x: Any) -> Any:
    match x:
        case {"a": int(v)} if v > 1:
            return v
        case [first, *rest]:
            return first, rest
        case _:
            return -1


def texts(x: Any) -> Any:
    return f"{x.shape[0]:>{2 + 1}} {x.sum().item()!r}" + "%d" % 3  # noqa: UP031


def deleting(x: Any) -> Any:
    y = [x, x + 1]
    del y[len(y) - 1]
    z = y
    del y
    return z


def own_locals(x: Any) -> Any:
    x += 1
    y = x * 2
    return sorted(locals()), sorted(vars())


def later(x: Any) -> Any:
    g = (v * 2 for v in [x, x + 1])
    return sum(g), (lambda v: v + x)(3), sorted([3, 1], key=lambda v: -v)


TOTAL = 0


def globals_and_cells() -> Any:
    global TOTAL
    TOTAL = 0
    TOTAL += 5
    held = 1

    def bump() -> int:
        nonlocal held
        held += TOTAL
        return held

    bump()
    held += 1
    return bump(), held, TOTAL


def defaults(a: Any, b: Any = 2, /, c: Any = 3, *args: Any, d: Any = 4, **kwargs: Any) -> Any:
    return a + b + c + d + sum(args) + sum(kwargs.values())


def counting(n: int) -> Generator[Any, Any, None]:
    got = 0
    while got < n:
        got += 1
        sent = yield got * 2
        if sent:
            got += sent
    return


def generates() -> Any:
    return list(counting(4))


def closing(x: Any) -> Callable[[Any], Any]:
    scale = x.sum()

    def inner(y: Any) -> Any:
        return y * scale + x

    return inner


def annotated(x: Any) -> Any:
    y: torch.Tensor = x + 1
    z: torch.Tensor
    z = y * 2
    return z


class Base:
    __hidden = 2

    def forward(self, x: Any, *, scale: Any = 3) -> Any:
        return x * scale + self.__hidden

    @property
    def four(self) -> int:
        return 4

    @staticmethod
    def doubled(x: Any) -> Any:
        return x + x

    @classmethod
    def kind(cls, x: Any) -> Any:
        return cls.__name__, x * 2


class Derived(Base):
    __hidden = 5

    def forward(self, x: Any, *, scale: Any = 1) -> Any:
        first = super().forward(x, scale=scale)
        return first + super().forward(x) * self.__hidden + self.four

    def __call__(self, x: Any) -> Any:
        return self.forward(x) - sum(super(__class__, self).forward(x) for _ in "")  # type: ignore[name-defined]


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return "wrapped", function(*args, **kwargs)

    return wrapper


@decorated
@torch.no_grad()
@decorated
def thrice(x: Any, y: Any = 4) -> Any:
    return x * y, torch.is_grad_enabled()


class Called:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: Any) -> Any:
        return x * self.by


half = lambda x, y=2: x / y  # noqa: E731
PAIR = (lambda x: x + 1, lambda x: x + 2)


# fmt: off
def long_chain(x: Any) -> Any:
    return (
        x.sum()
        .view(1)
        .missing(
            3,
        )
    )


def long_operator(x: Any) -> Any:
    return (
        x
        + torch.ones(
            7, 7)
    )


def deep_error(x: Any) -> Any:
    y = x
    for _ in [1]:
        y = [long_operator(v)
             for v in [y]]
    return y


def bad_augmented(x: Any) -> Any:
    x[
        0
    ] += "text"
# fmt: on
