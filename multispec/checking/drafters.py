"""Drafters that are always right, sometimes and never: what a check drafts with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.checking.prompts import encodes, model_of
from multispec.drafters import DraftModel, EachRow
from multispec.errors import UsageError
from multispec.generator import Generator
from multispec.methods import catalog
from multispec.protocols import (
    Context,
    Drafter,
    DraftSession,
    Request,
    Scores,
    Target,
    TargetSession,
    walk,
)
from multispec.stream import Draft, Observation, Prompt
from multispec.testing import FakeModel, TreeDrafter


def default_drafters(generator: Generator) -> dict[str, Drafter]:
    """A good, a worse and a hopeless drafter, beside those of the catalog that need no training.

    Without a draft model the model drafts for itself, which has every draft accepted.
    """
    target = generator.target
    found = _own_draft(generator)
    found["draft_model (made worse)"] = DraftModel(Tilted(target))
    untrained = (entry for entry in catalog() if entry.kind == "drafter" and not entry.trained)
    found |= {entry.name: _made(entry.method) for entry in untrained}
    found["random ids"] = RandomIds()
    if target.capabilities.supports_tree and not encodes(model_of(target)):
        found["trees"] = _trees(target)
    return found


def _own_draft(generator: Generator) -> dict[str, Drafter]:
    try:
        own = generator.methods.drafter("draft_model")
    except UsageError:
        own = None
    if own is None:
        return {"draft_model (itself)": DraftModel(generator.target)}
    return {"draft_model": own}


def _made(method: Any) -> Any:
    return method()


def _trees(target: Target) -> TreeDrafter:
    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        return fresh_logits(target, prefix, Prompt(ids=torch.tensor(prefix))).cpu()

    return TreeDrafter(worse(FakeModel(after, target.spec)))


@torch.inference_mode()
def fresh_logits(target: Target, prefix: Sequence[int], like: Prompt) -> Tensor:
    """The logits ``[V]`` after a prefix, run from its beginning; ``like`` holds the conditioning."""
    row = Prompt(ids=torch.tensor(list(prefix)), conditioning=like.conditioning)
    session = target.begin([row], [len(prefix) + 1], 1)
    return session.prefill().logits[0][-1].clone()


def tilt(logits: Tensor) -> Tensor:
    """The same logits, wrong by about half their own spread, in a fixed pattern."""
    wave = torch.arange(logits.shape[-1], device=logits.device).mul(2.4).cos()
    return logits + (0.5 * logits.float().std(-1, keepdim=True) * wave).to(logits.dtype)


def worse(model: FakeModel) -> FakeModel:
    """What a weaker draft model looks like."""

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        return tilt(model.after(prefix, prompt_length))

    return FakeModel(after, model.spec, strict=False)


class Tilted:
    """A target whose logits are wrong: what a weaker draft model looks like."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.spec = target.spec
        self.capabilities = target.capabilities
        self.device = target.device
        self.context_length = target.context_length

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """The target's own session, tilted."""
        return _TiltedSession(self._target.begin(prompts, capacity, nodes))


class _TiltedSession:
    """Tilts what has logits and hands the rest on."""

    def __init__(self, session: TargetSession) -> None:
        self._session = session
        self.commit = session.commit
        self.checkpoint = session.checkpoint
        self.rewind = session.rewind
        self.length = session.length
        self.drop = session.drop

    def prefill(self) -> Scores:
        """The prompts."""
        return _tilted(self._session.prefill())

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Roots and drafts."""
        return _tilted(self._session.score(rows, roots, drafts))

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """One symbol per row."""
        return [tilt(logits) for logits in self._session.extend(rows, tokens)]

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Symbol after symbol."""
        return walk(self, row, tokens, choose)


def _tilted(scores: Scores) -> Scores:
    return Scores(logits=[tilt(logits) for logits in scores.logits], calls=scores.calls)


@dataclass(frozen=True)
class RandomIds:
    """Drafts ids drawn by chance: hardly ever accepted, so that every round rolls back."""

    name: ClassVar[str] = "random_ids"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep."""
        return EachRow(context, lambda _: _Guess(context.vocab_size))


@dataclass(frozen=True)
class _Guess:
    vocab_size: int

    def propose(self, request: Request) -> Draft:
        """As many as may be drafted."""
        rng = random.Random(len(request.history))
        return Draft.chain([rng.randrange(self.vocab_size) for _ in range(request.budget.nodes)])

    def observe(self, observation: Observation) -> None:
        """It learns nothing."""
