"""Likelihoods against values that are known otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from multispec.errors import PromptError
from multispec.guidance import Guidance
from multispec.measures import token_nll
from multispec.modalities.layout import Raster
from multispec.modalities.speech.layouts import Delayed
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.testing import SlotTableModel, TableModel, play, row


def test_the_likelihood_is_that_of_the_table() -> None:
    model = TableModel(vocab_size=5, seed=3)
    tokens = [2, 0, 4, 4]
    table = model.table.log_softmax(-1)
    expected = [-float(table[a, b]) for a, b in zip([1, *tokens], tokens, strict=False)]
    prompt = Prompt(ids=torch.tensor([1]))
    assert token_nll(model, prompt, tokens).tolist() == pytest.approx(expected)
    cold = token_nll(model, prompt, tokens, sampling=Sampling(temperature=0.5))
    assert float(cold[0]) == pytest.approx(-float((2 * model.table[1]).log_softmax(-1)[2]))


def test_the_likelihood_of_all_streams_sums_to_one() -> None:
    """Guided, and with a grammar: forced symbols are free."""
    layout = Raster(height=2, width=1, codes=3, vocab_size=5, row_end=4, header=(3,))
    model = TableModel(vocab_size=5, seed=4)
    prompt = Prompt(
        ids=torch.tensor([1]),
        spec=layout.spec,
        guidance=Guidance(scale=2.0),
        unconditional=Prompt(ids=torch.tensor([0])),
    )
    total = 0.0
    for codes in product(range(3), repeat=2):
        tokens = layout.tokens(torch.tensor(codes)[:, None])
        nll = token_nll(model, prompt, tokens.tolist())
        assert [float(nll[n]) for n in (0, 2, 4)] == [0.0, 0.0, 0.0]
        total += math.exp(-float(nll.sum()))
    assert total == pytest.approx(1)


def test_a_long_stream_takes_several_passes() -> None:
    """More symbols than a pass may hold: the same numbers."""
    model = TableModel(vocab_size=5, seed=5)
    tokens = torch.randint(5, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    table = model.table.log_softmax(-1)
    expected = [-float(table[a, b]) for a, b in zip([1, *tokens], tokens, strict=False)]
    found = token_nll(model, Prompt(ids=torch.tensor([1])), tokens)
    assert torch.allclose(found, torch.tensor(expected).double())
    assert len(model.sessions[-1].calls) == 3
    assert len(token_nll(model, Prompt(ids=torch.tensor([1])), tokens[:1])) == 1


def test_the_likelihood_of_nothing_is_refused() -> None:
    with pytest.raises(PromptError, match="got none"):
        token_nll(TableModel(), Prompt(ids=torch.tensor([1])), [])


# ---- parallel slots: each given the steps before ----

STEPS = Delayed(delays=(0, 1), codes_per_book=3, start=3, frames=2)


def by_hand(model: SlotTableModel, tokens: list[int], start: int) -> list[float]:
    """Codes alone, each slot by the row of the step before."""
    found, last = list[float](), [start, start]
    for place in range(0, len(tokens), 2):
        rows = model.table[last[0] * 5 + last[1], :, :3].log_softmax(-1)
        last = tokens[place : place + 2]
        found += [0.0 if code > 2 else -float(rows[slot, code]) for slot, code in enumerate(last)]
    return found


def test_the_likelihood_of_parallel_slots() -> None:
    """That of every stream, by the table; the triangles are free, and all of it sums to one."""
    model, prompt = SlotTableModel(2, 4, seed=3, spec=STEPS.spec), Prompt(ids=torch.tensor([3, 3]))
    total = 0.0
    for codes in product(range(3), repeat=4):
        tokens = STEPS.tokens(torch.tensor(codes).view(2, 2)).tolist()
        nll = token_nll(model, prompt, tokens)
        assert nll.tolist() == pytest.approx(by_hand(model, tokens, 3))
        total += math.exp(-float(nll.sum()))
    assert total == pytest.approx(1)


def test_a_result_has_the_likelihood_that_it_was_drawn_with() -> None:
    """Settings that look back, per slot, on more steps than a pass may hold."""
    spec = replace(STEPS, frames=150).spec
    model, prompt = SlotTableModel(2, 4, seed=3, spec=spec), Prompt(ids=torch.tensor([3, 3]))
    sampling = Sampling(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.01, seed=4)
    asked = replace(row((3, 3)), sampling=sampling, max_new_tokens=302, keep_scores=True)
    found = play(model, asked)[0]
    assert found.log_probs is not None and found.tokens.shape == (151, 2)
    nll = token_nll(model, prompt, found.tokens.flatten().tolist(), sampling=sampling)
    assert torch.allclose(nll, -found.log_probs.double())
    assert len(model.sessions[-1].calls) == 2
    assert float(nll.mean()) > 0.1


def test_part_of_a_step_has_no_likelihood() -> None:
    with pytest.raises(PromptError, match="2 parallel slots has a likelihood step by step: got 3"):
        token_nll(SlotTableModel(2, 4, spec=STEPS.spec), Prompt(ids=torch.tensor([3, 3])), [0, 3, 1])
