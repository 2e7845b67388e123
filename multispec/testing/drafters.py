"""Drafters of every kind: given drafts, random trees, trees sampled with and without replacement."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from multispec.drafters.rowwise import EachRow
from multispec.processing import Places
from multispec.protocols import Context, DraftSession, Request
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, DraftKind, Observation
from multispec.testing.models import FakeModel
from multispec.tree import path_to


@dataclass
class _Proposer:
    propose: Callable[[Request], Draft]
    seen: list[Observation] = field(default_factory=list)

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation)


@dataclass(frozen=True, eq=False)
class ScriptedDrafter:
    """Drafts ``script[position:]``, or what a function of the request returns, unchecked."""

    name: ClassVar[str] = "scripted"
    script: Sequence[int] | Callable[[Request], Draft]
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        """One proposer for all rows."""
        return EachRow(context, lambda _: _Proposer(self._propose))

    def _propose(self, request: Request) -> Draft:
        if callable(self.script):
            return self.script(request)
        start = request.round_start
        return Draft.chain(list(self.script[start : start + request.budget.nodes]))


@dataclass(frozen=True, eq=False)
class TreeDrafter:
    """Trees of ``branching[d]`` siblings per node at depth d, by a model's law q.

    ``point`` drafts the most probable symbols, ``sampled`` independent siblings, ``without_replacement``
    siblings drawn one after the other. Under a coupled verifier the siblings are the best of ``log q + G``
    with the target's own noise. Without a model: random trees of random symbols.
    """

    name: ClassVar[str] = "tree"
    model: FakeModel | None = None
    branching: tuple[int, ...] = (2, 2)
    kind: DraftKind = "point"
    num_draft_tokens: int = 6

    def begin(self, context: Context) -> DraftSession:
        """One proposer for all rows."""
        return EachRow(context, lambda _: _Proposer(self._propose))

    def _propose(self, request: Request) -> Draft:
        if self.model is None:
            return _random_tree(request)
        tree = _Growing(self.model, request, self.kind)
        frontier = [-1]
        for siblings in self.branching:
            frontier = [child for parent in frontier for child in tree.grow(parent, siblings)]
        return tree.draft()


def _random_tree(request: Request) -> Draft:
    rng = random.Random(repr(request.history.ids))
    size = request.budget.nodes
    vocab = max(request.history.ids) + 1
    parents = tuple(rng.randrange(-1, node) for node in range(size))
    return Draft(tokens=torch.tensor([rng.randrange(vocab) for _ in parents]), parents=parents)


class _Growing:
    """A tree while it grows from the root outwards."""

    def __init__(self, model: FakeModel, request: Request, kind: DraftKind) -> None:
        self._model, self._request = model, request
        self._kind: DraftKind = kind
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.q: list[Tensor] = []

    def grow(self, parent: int, siblings: int) -> list[int]:
        """Children of ``parent``, as far as the budget and the law reach."""
        drafted = tuple(self.tokens[node] for node in path_to(self.parents, parent))
        history = self._request.history
        logits = self._model.after([*history.ids, *drafted], history.prompt_length)
        law = self._request.pipeline.law(logits[None], Places(history, (drafted,)))
        count = min(siblings, self._request.budget.nodes - len(self.tokens))
        first = len(self.tokens)
        for token in self._siblings(law, len(drafted), count):
            self.tokens.append(token)
            self.parents.append(parent)
            self.q.append(law.probs)
        return list(range(first, len(self.tokens)))

    def _siblings(self, law: Law, depth: int, count: int) -> list[int]:
        position = self._request.round_start + depth
        if self._kind == "point" or self._request.coupled:
            coupled = self._request.coupled and self._kind != "point"
            scores = self._request.noise.perturbed(law, [position]) if coupled else law.probs.log()
            best = scores[0].topk(min(count, int((law.probs > 0).sum())))
            return [int(token) for token in best.indices]
        found: list[int] = []
        probs = law.probs.clone()
        while len(found) < count and float(probs.sum()) > 0:
            # Each node has a key, and so a draw, of its own.
            key = self._request.round_start * 4096 + len(self.tokens) + len(found)
            found.append(int(self._request.noise.choose(probs, [position], Purpose.DRAFT, key)))
            if self._kind == "without_replacement":
                probs[0, found[-1]] = 0
        return found

    def draft(self) -> Draft:
        """The tree with its q, which a coupled verifier has no use for."""
        coupled = self._request.coupled or self._kind == "point"
        kind: DraftKind = self._kind
        if coupled:
            kind = "point"
        q = torch.cat(self.q) if not coupled and self.q else None
        tokens = torch.tensor(self.tokens, dtype=torch.long)
        return Draft(tokens=tokens, parents=tuple(self.parents), q=q, kind=kind)
