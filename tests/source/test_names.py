"""Names of operations (S-59) and how they print (S-61, S-62)."""

from collections.abc import Callable
from typing import Any

from interlace.source.callables import innermost
from interlace.source.listing import table, window
from interlace.source.rewrite import rewrite


def names(function: Callable[..., Any]) -> list[str]:
    return [operation.name for operation in rewrite(innermost(function)).operations]


def attention(self: Any, x: Any, scale: Any, f: Any, q: Any) -> Any:
    k = self.c_attn(x)
    scores = q(k) @ k.transpose(0, 1).contiguous() / scale
    q = -scores[:, 0]
    k = self.heads[0](q)
    if k is not None and not k < 3 < 4:
        k += 1
    (a, b), *c = f(x)(x)
    return self.c_proj(k, dim=-1), [a.b for d in c], (lambda y: y + 1)(b)


def test_names() -> None:
    """S-59: callees joined by `_`, counted in the order of evaluation, inner calls first; `q_var_0`."""
    assert names(attention) == [
        *("self_c_attn_0", "k_0"),
        *("q_0", "k_transpose_0", "contiguous_0", "matmul_0", "truediv_0", "scores_0"),
        *("getitem_0", "neg_0", "q_var_0"),
        *("getitem_1", "self_heads_0", "k_1"),
        *("lt_0", "iadd_0", "k_2"),
        *("f_0", "call_0", "a_0", "b_0", "c_0"),
        *("self_c_proj_0", "lambda_0"),
    ]


def test_a_variable_gives_way_to_every_call_and_operator_of_its_name() -> None:
    def function(add: Any, x: Any) -> Any:
        add = x + 1
        x_var = x(2)
        x = 3
        return add, x_var, x

    assert names(function) == ["add_0", "add_var_0", "x_0", "x_var_0", "x_var_var_0"]


def test_text_of_operations() -> None:
    operations = {one.name: one for one in rewrite(innermost(attention)).operations}
    assert operations["contiguous_0"].source_code == "k.transpose(0, 1).contiguous()"
    assert operations["matmul_0"].source_code == "q(k) @ k.transpose(0, 1).contiguous()"
    assert operations["iadd_0"].source_code == "k += 1"
    assert operations["c_0"].source_code == "c"
    first = attention.__code__.co_firstlineno
    assert (operations["k_0"].line_number, operations["lambda_0"].line_number) == (first + 1, first + 8)
    assert [one.position for one in operations.values()] == list(range(len(operations)))


def test_listing() -> None:
    """S-61: numbered lines; the gutter names what each starts with `->`, the rest of a line follow as `+`."""

    def f(x: Any) -> Any:
        y = x.sum(0)
        return y  # noqa: RET504

    done = rewrite(innermost(f))
    line = f.__code__.co_firstlineno
    assert table(done.text.lines, done.text.line, done.operations) == "\n".join(
        [
            f"           {line}     def f(x: Any) -> Any:",
            f"x_sum_0 -> {line + 1}         y = x.sum(0)",
            "    y_0  +",
            f"           {line + 2}         return y  # noqa: RET504",
        ]
    )


def test_window() -> None:
    """S-62: the lines around one operation, its own marked."""
    done = rewrite(innermost(attention))
    operation = next(one for one in done.operations if one.name == "self_heads_0")
    shown = window(done.text.lines, done.text.line, operation).splitlines()
    assert [row for row in shown if row.startswith("->")] == [
        f"-> {operation.line_number}     k = self.heads[0](q)"
    ]
    assert len(shown) == 9
