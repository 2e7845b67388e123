"""Long prompts in pieces: the same logits, and masks that take memory in proportion to a piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.errors import UsageError
from multispec.targets import CausalTarget, masks
from multispec.targets.ragged import RaggedSession
from tests.models import zoo

LONG = 100


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompts(*sizes: int) -> list[ms.Prompt]:
    return [
        ms.Prompt(ids=torch.tensor([(7 * k + size) % zoo.VOCABULARY for k in range(size)])) for size in sizes
    ]


def run(target: CausalTarget, asked: list[ms.Prompt]) -> tuple[list[torch.Tensor], Any]:
    session = target.begin(asked, [len(one.ids) + 8 for one in asked], 4)
    logits = list(session.prefill().logits)
    assert [session.length(row) for row in range(len(asked))] == [len(one.ids) for one in asked]
    return logits, session


@pytest.mark.parametrize("chunk", [1, 7, 32, LONG])
@pytest.mark.parametrize(
    ("name", "fused"), [("llama", True), ("gpt2", False), ("gemma2", False), ("mistral", True)]
)
def test_pieces_give_the_same_logits(name: str, fused: bool, chunk: int) -> None:
    """One row and ragged ones, some shorter than a piece; and what follows them."""
    whole = CausalTarget(zoo.shared(name), fused=fused, prefill_chunk=4096)
    pieces = CausalTarget(zoo.shared(name), fused=fused, prefill_chunk=chunk)
    for sizes in ((40,), (40, 3, 33)) if chunk < LONG else ((LONG,),):
        expected, first = run(whole, prompts(*sizes))
        found, second = run(pieces, prompts(*sizes))
        rows = list(range(len(sizes)))
        for _ in range(2):
            for a, b in zip(found, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
            found, expected = list(second.extend(rows, rows)), list(first.extend(rows, rows))


def test_rows_that_join_are_run_in_pieces_too() -> None:
    whole, pieces = (CausalTarget(zoo.shared("llama"), prefill_chunk=chunk) for chunk in (4096, 5))
    (_, first), (_, second) = (run(target, prompts(12)) for target in (whole, pieces))
    expected, found = (one.join([1], prompts(17), [30]) for one in (first, second))
    assert torch.allclose(found.logits[0], expected.logits[0], rtol=1e-4, atol=1e-4)


class Silent:
    """A forward that computes nothing, of a model with these kinds of layers."""

    layers = 1
    like = torch.zeros(1)

    def __init__(self, attention: masks.Attention) -> None:
        self.attention, self.widest, self.most = attention, 0, 0

    def __call__(self, ids: torch.Tensor, step: masks.Pass, cache: Any, keep: Any) -> torch.Tensor:
        """Count what the masks of this pass hold."""
        held = {id(mask): mask.untyped_storage().nbytes() for mask in step.masks.values() if mask is not None}
        self.widest, self.most = max(self.widest, ids.shape[1]), max(self.most, sum(held.values()) // 4)
        return torch.zeros(len(ids), len(keep), 2)


@pytest.mark.parametrize(
    ("attention", "rows"),
    [
        (masks.Attention(("full_attention",)), 1),
        (masks.Attention(("full_attention",)), 2),
        (masks.Attention(("full_attention", "sliding_attention"), window=512), 1),
    ],
)
def test_masks_of_a_long_prompt_grow_with_the_piece(attention: masks.Attention, rows: int) -> None:
    """8192 symbols: the largest masks hold rows x kinds x piece x keys numbers, half a piece half of them."""
    asked = [ms.Prompt(ids=torch.zeros(8192 - row, dtype=torch.long)) for row in range(rows)]
    kinds = len(attention.kinds)
    for chunk in (256, 512, 1024):
        forward = Silent(attention)
        session = RaggedSession(forward, asked, [8200] * rows, 4, chunk=chunk)
        session.prefill()
        assert forward.widest == chunk
        # Up to 256 queries use a band that is kept, of at most twice their number.
        assert forward.most <= rows * kinds * 2 * max(chunk, 256) * (8192 + 512 + 256)
        assert forward.most >= rows * (kinds if attention.window else 1) * chunk * 8192 * 0.9


def test_memory_is_told_for_a_prompt_in_pieces() -> None:
    target = CausalTarget(zoo.shared("llama"), prefill_chunk=8)
    asked = prompts(40)
    session = target.begin(asked, [60], 256)
    session.prefill()
    assert isinstance(session, RaggedSession)
    assert session.cache.allocated == target.cache_bytes(asked[0], 60)


@pytest.mark.parametrize("chunk", [0, -3])
def test_a_piece_holds_a_symbol(chunk: int) -> None:
    with pytest.raises(UsageError, match="prefill_chunk is a number of symbols, 1 or more"):
        CausalTarget(zoo.shared("llama"), prefill_chunk=chunk)


def test_a_sensible_piece_is_the_default() -> None:
    assert CausalTarget(zoo.shared("llama")).prefill_chunk == 1024
