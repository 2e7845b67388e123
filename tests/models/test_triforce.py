"""TriForce: exact in both stages, and the small model saves passes of the middle one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from multispec.drafters import TriForce
from multispec.errors import UnsupportedError, UsageError
from multispec.sampling import Noise
from multispec.stream import Generation
from multispec.testing import TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.models.test_self_speculation import joint, model, plainly, rows, target, tiny


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Sessions run where the loop runs them."""
    with torch.inference_mode():
        yield


@cache
def near(vocab_size: int, noise: float) -> Any:
    """The target's model with other weights."""
    small = copy.deepcopy(model("llama", vocab_size))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in small.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator)
    return small.double() if vocab_size == 3 else small


def triforce(noise: float, selection: str = "retrieval") -> TriForce:
    return TriForce(near(24, noise), selection, budget=44, sinks=2, refresh=5, num_draft_tokens=5)


@cache
def played(noise: float, selection: str) -> list[Generation]:
    return play(target("llama"), *(row(drafter=triforce(noise, selection), **one) for one in rows()))


@pytest.mark.parametrize("selection", ["retrieval", "streaming"])
def test_the_same_symbols(selection: str) -> None:
    """Coupled, ragged rows, greedy and sampled: those of plain decoding."""
    found = played(0.02, selection)
    assert [one.tokens.tolist() for one in found] == plainly("llama")
    assert not any(one.report.drafter_failures for one in found)
    assert sum(one.report.accepted for one in found) > 10


def test_the_small_model_saves_passes_of_the_middle_one() -> None:
    """Fewer passes of both stages together where it is near the target; the drafts are as good."""
    near_one, far = played(0.0, "retrieval"), played(1.0, "retrieval")
    for one, other in zip(near_one, far, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        # What is handed over is the middle stage's own, whoever drafts for it.
        assert one.report.accepted == other.report.accepted
        assert 0 < one.report.draft_calls < other.report.draft_calls


def test_rejection_gives_the_law_of_the_target() -> None:
    """Every draw of both stages explored, through the real loop: the target's joint law to 1e-9."""
    drafter = TriForce(near(3, 0.05), "streaming", budget=2, sinks=1, num_draft_tokens=2, inner_tokens=1)

    def run(noise: Noise) -> tuple[int, ...]:
        asked = row((1, 0, 2), drafter=drafter, verifier=Rejection(), noise=noise, max_new_tokens=2)
        return tuple(play(tiny(), asked)[0].tokens.tolist())

    found = enumerate_law(run, horizon=2)
    assert found.keys() == joint().keys()
    assert max(abs(found[pair] - joint()[pair]) for pair in found) < 1e-9


def test_what_cannot_be_is_refused() -> None:
    """No inner symbols, and a target without a cache that something else can write to."""
    with pytest.raises(UsageError, match="inner_tokens >= 1"):
        TriForce(near(24, 0.0), inner_tokens=0)
    table = TableModel(24)
    with pytest.raises(UnsupportedError, match="triforce drafts in the target's key/value cache"):
        play(table, row(drafter=triforce(0.0)))
