"""Who sees whom in one pass, against a brute-force count over rows, entries and layer kinds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multispec.targets.masks import Attention, plan
from multispec.tree import depths, path_to

KINDS = ("full_attention", "sliding_attention", "chunked_attention")
LIKE = torch.zeros(1)


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, ...]]]:
    """Committed lengths and the draft of each row: chains, trees, nothing."""
    count = draw(st.integers(1, 4))
    lengths = [draw(st.integers(0, 9)) for _ in range(count)]
    chains = draw(st.booleans())
    trees = []
    for _ in range(count):
        size = draw(st.integers(0, 5))
        lowest = (lambda node: node - 1) if chains else (lambda node: -1)
        trees.append(tuple(draw(st.integers(lowest(node), node - 1)) for node in range(size)))
    return lengths, trees


def position(length: int, tree: tuple[int, ...], entry: int) -> int:
    """Where an entry of a row stands in the text; entry ``length`` is the root."""
    return entry if entry <= length else length + depths(tree)[entry - length - 1]


def sees(length: int, tree: tuple[int, ...], node: int, entry: int, end: int) -> bool:
    """Whether a node (-1: the root) may look at an entry of its row, windows aside."""
    if entry < length:
        return True
    others = {-1, *path_to(tree, node)}
    return entry - length - 1 in others


def within(kind: str, query: int, key: int, attention: Attention) -> bool:
    if kind == "sliding_attention" and attention.window is not None:
        return query - key < attention.window
    if kind == "chunked_attention" and attention.chunk is not None:
        return query // attention.chunk == key // attention.chunk
    return True


def allowed(mask: torch.Tensor | None, row: int, query: int, entry: int, start: int) -> bool:
    """What the mask says; no mask at all is causal."""
    if mask is None:
        return entry <= start + query
    return float(mask[min(row, len(mask) - 1), 0, query, entry]) == 0


@given(passes(), st.integers(1, 6), st.integers(2, 5))
@settings(max_examples=50, deadline=None)
def test_masks_equal_brute_force(
    case: tuple[list[int], list[tuple[int, ...]]], window: int, chunk: int
) -> None:
    """Full, sliding and chunked layers; ragged rows; chains and trees; padding is never looked at."""
    lengths, trees = case
    attention = Attention(KINDS, window, chunk)
    width = 1 + max(map(len, trees))
    step = plan(lengths, trees, width, attention, LIKE)
    positions = step.positions(LIKE.device)
    for row, (length, tree) in enumerate(zip(lengths, trees, strict=True)):
        for node in range(-1, len(tree)):
            query = position(length, tree, length + node + 1)
            assert int(positions[row, node + 1]) == query
            for kind in KINDS:
                for entry in range(max(lengths) + width):
                    visible = sees(length, tree, node, entry, max(lengths) + width)
                    key = position(length, tree, entry) if visible else 0
                    expected = visible and within(kind, query, key, attention)
                    mask = step.masks[kind]
                    assert allowed(mask, row, node + 1, entry, length) == expected


@given(passes())
@settings(max_examples=30, deadline=None)
def test_every_query_sees_something(case: tuple[list[int], list[tuple[int, ...]]]) -> None:
    """Padding too: a softmax over nothing would be NaN."""
    lengths, trees = case
    width = 1 + max(map(len, trees))
    step = plan(lengths, trees, width, Attention(("full_attention",)), LIKE)
    mask = step.masks["full_attention"]
    if mask is not None:
        assert bool((mask == 0).any(-1).all())


def test_a_single_step_needs_no_mask() -> None:
    """One row, one query: everything committed is visible."""
    step = plan([7], [()], 1, Attention(("full_attention",)), LIKE)
    assert step.masks["full_attention"] is None
    assert step.positions(LIKE.device).tolist() == [[7]]


def test_a_window_that_is_not_reached_costs_no_mask() -> None:
    step = plan([3], [()], 1, Attention(("sliding_attention",), window=4), LIKE)
    assert step.masks["sliding_attention"] is None
    late = plan([4], [()], 1, Attention(("sliding_attention",), window=4), LIKE)
    assert late.masks["sliding_attention"] is not None
