"""Layouts: positions and places, the grammar, and there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.errors import UsageError
from multispec.modalities.layout import Layout, Raster
from multispec.stream import Allowed, Forced


@st.composite
def rasters(draw: st.DrawFn) -> dict[str, Any]:
    """Any small layout, as its arguments: with or without headers, row ends and tails."""
    offset, codes = draw(st.integers(0, 9)), draw(st.integers(1, 7))
    special = st.integers(offset + codes, offset + codes + 3)
    return {
        "height": draw(st.integers(1, 5)),
        "width": draw(st.integers(1, 5)),
        "codes": codes,
        "offset": offset,
        "vocab_size": offset + codes + 4,
        "header": tuple(draw(st.lists(special, max_size=3))),
        "row_end": draw(st.none() | special),
        "tail": tuple(draw(st.lists(special, max_size=2))),
    }


def grid_of(layout: Raster, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(layout.codes, (layout.height, layout.width), generator=generator)


@settings(max_examples=60, deadline=None)
@given(asked=rasters(), seed=st.integers(0, 99))
def test_a_grid_survives_the_stream(asked: dict[str, Any], seed: int) -> None:
    layout = Raster(**asked)
    grid = grid_of(layout, seed)
    tokens = layout.tokens(grid)
    assert len(tokens) == layout.length == layout.spec.fixed_length
    assert layout.grid(tokens.tolist()).tolist() == grid.tolist()


@settings(max_examples=60, deadline=None)
@given(asked=rasters(), seed=st.integers(0, 99))
def test_the_grammar_leaves_exactly_the_streams_of_grids(asked: dict[str, Any], seed: int) -> None:
    layout = Raster(**asked)
    tokens = layout.tokens(grid_of(layout, seed)).tolist()
    for position, token in enumerate(tokens):
        left = layout.grammar(tokens[:position])
        if layout.coordinates(position) is None:
            assert left == Forced(token)
        else:
            assert left == Allowed(range(layout.offset, layout.offset + layout.codes))
    assert layout.grammar(tokens) is None


@settings(max_examples=60, deadline=None)
@given(asked=rasters())
def test_every_place_has_one_position(asked: dict[str, Any]) -> None:
    layout = Raster(**asked)
    places = [layout.coordinates(n) for n in range(-2, layout.length + 5)]
    inside = [place for place in places if place is not None]
    assert inside == [(row, column) for row in range(layout.height) for column in range(layout.width)]
    assert all(layout.coordinates(layout.position(*place)) == place for place in inside)


@settings(max_examples=60, deadline=None)
@given(asked=rasters(), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_a_part_of_the_stream_is_a_part_of_the_grid(asked: dict[str, Any], seed: int, share: float) -> None:
    layout = Raster(**asked)
    grid, missing = grid_of(layout, seed), layout.codes - 1
    count = round(share * layout.length)
    found = layout.grid(layout.tokens(grid).tolist()[:count], missing)
    places = {layout.coordinates(n) for n in range(count)}
    for row in range(layout.height):
        for column in range(layout.width):
            expected = int(grid[row, column]) if (row, column) in places else missing
            assert int(found[row, column]) == expected


@settings(max_examples=40, deadline=None)
@given(asked=rasters())
def test_one_row_down_is_one_row_length(asked: dict[str, Any]) -> None:
    layout = Raster(**asked)
    if layout.height > 1:
        assert layout.position(1, 0) - layout.position(0, 0) == layout.spec.row_length == layout.row_length


def test_a_raster_is_a_layout() -> None:
    assert isinstance(Raster(height=1, width=1, codes=1), Layout)


def test_codes_alone_need_no_grammar() -> None:
    """Where every symbol is a code and nothing is forced, there is nothing to check at each step."""
    plain = Raster(height=2, width=2, codes=4)
    assert plain.spec.grammar is None
    assert Raster(height=2, width=2, codes=4, tail=(3,)).spec.grammar is not None
    assert Raster(height=2, width=2, codes=4, vocab_size=5).spec.grammar is not None


def test_symbols_behind_the_picture_do_not_matter() -> None:
    layout = Raster(height=1, width=2, codes=4)
    assert layout.grid([1, 2, 99, 99]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 0}, "at least one row, one column and one code: got 0 x 2 of 4 codes"),
        ({"width": -1}, "got 2 x -1"),
        ({"codes": 0}, "of 0 codes"),
        ({"offset": -1}, "from id -1"),
        ({"offset": 7, "vocab_size": 10}, r"The codes 7 \.\. 10 do not fit into a vocabulary of 10 symbols"),
    ],
)
def test_impossible_layouts_are_refused(wrong: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"height": 2, "width": 2, "codes": 4}
    with pytest.raises(UsageError, match=message):
        Raster(**(asked | wrong))


@pytest.mark.parametrize("token", [9, 14, -1])
def test_a_symbol_that_is_no_code_is_refused(token: int) -> None:
    layout = Raster(height=2, width=2, codes=4, offset=10)
    with pytest.raises(UsageError, match=rf"\[10, 14\): got {token} at row 1, column 0"):
        layout.grid([10, 11, token, 13])
