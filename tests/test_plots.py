"""A heatmap shows every number that it was given, and is one well-formed SVG element."""

from __future__ import annotations

import re
from math import inf, nan
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.plots import Svg, heatmap

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(picture: str, kind: str) -> list[ElementTree.Element]:
    """The rectangles of one class, the legend's included."""
    return [
        rect for rect in ElementTree.fromstring(picture).iter(f"{SPACE}rect") if rect.get("class") == kind
    ]


def hovers(picture: str) -> list[str]:
    return [title.text or "" for title in ElementTree.fromstring(picture).iter(f"{SPACE}title")]


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-100, 100) | st.just(nan), min_size=width, max_size=width),
            min_size=1,
            max_size=4,
        )
    ),
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="￾￿"), max_size=12
    ),
)
def test_any_numbers_and_labels_make_a_well_formed_picture(numbers: list[list[float]], label: str) -> None:
    rows, columns = [label] * len(numbers), [label] * len(numbers[0])
    picture = heatmap(numbers, rows=rows, columns=columns, legend=label)
    assert len(hovers(picture)) == sum(value == value for line in numbers for value in line)


def test_every_value_shows_under_the_pointer_with_its_labels() -> None:
    picture = heatmap(torch.tensor([[0.125, -2.0]]), rows=["layer 0"], columns=["The", " cat"], legend="x")
    assert hovers(picture) == ["layer 0, The: 0.125", "layer 0, cat: -2.000"]


def test_an_infinity_lies_at_the_end_of_a_scale_that_the_others_make() -> None:
    picture = heatmap([[-inf, -2.0, 1.0, inf]], rows=["r"], columns=list("abcd"), legend="x")
    assert "nan" not in picture
    assert hovers(picture) == ["r, a: -inf", "r, b: -2.000", "r, c: 1.000", "r, d: inf"]
    for kind, cells in (("less", ["1.00", "1.00"]), ("more", ["0.50", "0.50"])):
        assert [rect.get("opacity") for rect in drawn(picture, kind) if rect.get("rx")] == cells


def test_color_is_proportional_to_the_value_and_has_one_hue_per_sign() -> None:
    picture = heatmap([[0.0, 0.5, 1.0, -1.0]], rows=["r"], columns=list("abcd"), legend="x")
    cells = [
        rect.get("opacity") for kind in ("more", "less") for rect in drawn(picture, kind) if rect.get("rx")
    ]
    assert cells == ["0.50", "1.00", "1.00"]


def test_a_value_beyond_the_scale_gets_the_color_of_its_end() -> None:
    picture = heatmap([[5.0]], rows=["r"], columns=["c"], legend="x", low=0, high=2)
    assert [rect.get("opacity") for rect in drawn(picture, "more") if rect.get("rx")] == ["1.00"]
    assert hovers(picture) == ["r, c: 5.000"]


def test_nothing_is_drawn_where_there_is_no_number() -> None:
    assert hovers(heatmap([[nan, 1.0]], rows=["r"], columns=["a", "b"], legend="x")) == ["r, b: 1.000"]


def test_a_long_text_is_cut_in_its_cell_and_whole_under_the_pointer() -> None:
    picture = heatmap([[1.0]], rows=["r"], columns=["c"], legend="x", cells=[[" extraordinary"]])
    assert re.search(r">extr\w*…</text>", picture)
    assert hovers(picture) == ["r, c:  extraordinary 1.000"]


def test_markup_in_a_label_stays_text() -> None:
    picture = heatmap([[1.0]], rows=["<b>"], columns=['"&'], legend="</svg><script>")
    assert "<script" not in picture
    assert hovers(picture) == ['<b>, "&: 1.000']


def test_it_follows_light_and_dark_and_fetches_nothing() -> None:
    picture = heatmap([[1.0]], rows=["r"], columns=["c"], legend="x")
    assert "prefers-color-scheme:dark" in picture
    assert re.findall(r"(?:href|src|url)\W", picture) == []


def test_a_notebook_draws_it() -> None:
    picture = heatmap([[1.0]], rows=["r"], columns=["c"], legend="x")
    assert isinstance(picture, Svg)
    assert picture._repr_html_() == picture


def test_labels_that_do_not_fit_the_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"numbers are 1 x 2 and the labels 1 x 1 .* Give one label to each"):
        heatmap([[1.0, 2.0]], rows=["r"], columns=["c"], legend="x")
    with pytest.raises(ValueError, match=r"`cells` needs 1 x 1 texts"):
        heatmap([[1.0]], rows=["r"], columns=["c"], legend="x", cells=[[]])
