"""Small helpers that the trap tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multispec.history import History
from multispec.processing import Pipeline, Places
from multispec.protocols import Request
from multispec.sampling import Noise, Sampling
from multispec.stream import Draft, Generation
from multispec.testing import FakeModel, TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection

JointLaw = Mapping[tuple[int, ...], float]


def tokens_of(model: FakeModel, **settings: Any) -> list[int]:
    """What one row emits."""
    return generation(model, **settings).tokens.flatten().tolist()


def generation(model: FakeModel, **settings: Any) -> Generation:
    """One row through the real loop."""
    return play(model, row(**settings))[0]


def law(model: FakeModel, length: int = 3, **settings: Any) -> JointLaw:
    """The exact joint law of the first ``length`` symbols under rejection."""

    def run(noise: Noise) -> tuple[int, ...]:
        rule = settings.get("verifier", Rejection())
        changes = {**settings, "verifier": rule, "max_new_tokens": length, "noise": noise}
        return tuple(tokens_of(model, **changes))

    return enumerate_law(run)


def by_hand(model: TableModel, length: int = 3, prompt: int = 1) -> JointLaw:
    """The joint law of an order-1 table at temperature 1, from softmax alone."""
    rows = model.table.softmax(-1)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        found = {
            (*path, symbol): mass * float(rows[path[-1] if path else prompt, symbol])
            for path, mass in found.items()
            for symbol in range(model.table.shape[1])
        }
    return found


def distance(first: JointLaw, second: JointLaw) -> float:
    """Total variation."""
    keys = {*first, *second}
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in keys) / 2


def scores_after(
    sampling: Sampling, ids: Sequence[int], drafted: Sequence[int], logits: torch.Tensor, **more: Any
) -> torch.Tensor:
    """Processed scores ``[V]`` where ``ids[1:]`` were generated and ``drafted`` is on the way."""
    history = History(ids[:1])
    history.extend(ids[1:])
    pipeline = Pipeline(sampling, logits.shape[-1], **more)
    found: torch.Tensor = pipeline.law(logits[None], Places(history, (tuple(drafted),))).scores[0]
    return found


def constant(*tokens: int) -> Any:
    """A script that drafts these symbols in every round."""

    def propose(request: Request) -> Draft:
        return Draft.chain(list(tokens)[: request.budget.nodes])

    return propose
