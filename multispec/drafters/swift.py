"""The layers to leave out are searched for while generating."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch

from multispec.drafters.layer_search import Space, Tried, matchness
from multispec.drafters.self_draft import Itself, SelfDraftSession
from multispec.drafters.skip_layers import SkipLayers, between, check_length, check_share
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.targets.views import Sublayers


@dataclass
class _Memory:
    """The best set that a generation which is over has found."""

    best: Sublayers | None = None


@dataclass(frozen=True)
class Swift:
    """Draft with the target less a share of its layers, and look for a better set of them all along.

    Xia et al. (2024), SWIFT, section 4: before a draft, a set of sublayers to leave out is tried: one pass of
    the lighter target over the last ``window`` symbols, rated by how often it puts first what came
    (matchness). Sets are drawn at random, every ``bayes_interval``-th is proposed by a Gaussian process; the
    best so far drafts. The search ends at a matchness above ``enough``, after ``max_trials``, or after
    ``patience`` trials without a better one. The first and the last layer always stay. With ``whole``
    attention and perceptron of a layer go together. What is found is where the next generation begins
    (``remember``). The paper stops drafting below a confidence of 0.8, at 25 symbols at most: that is
    ``policy=Confidence(0.8, 25)``.

    Sets are chosen from committed symbols alone, each row for itself, so nothing that is emitted under a
    ``seed`` or ``law`` rule is biased.

    Raises:
        UsageError: a setting outside its range.

    >>> Swift(share=0.5).count(layers=8)
    6
    """

    name: ClassVar[str] = "swift"
    paper: ClassVar[str] = "Xia et al. 2024 (SWIFT), arXiv 2410.06916"
    trained: ClassVar[bool] = False
    share: float = 0.45
    num_draft_tokens: int = 5
    window: int = 32
    bayes_interval: int = 25
    max_trials: int = 1000
    patience: int = 300
    enough: float = 0.95
    whole: bool = False
    remember: bool = True
    seed: int = 0
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)
        check_share(self.share)
        if not 1 <= self.window <= 128 or min(self.bayes_interval, self.max_trials, self.patience) < 1:
            raise UsageError(
                "swift needs a window of 1 to 128 symbols, and bayes_interval, max_trials, patience >= 1: "
                f"got {self.window}, {self.bayes_interval}, {self.max_trials}, {self.patience}."
            )

    def count(self, layers: int) -> int:
        """How many parts are left out of a model of so many layers: sublayers, or layers where ``whole``."""
        parts = len(between(layers, self.name)) * (1 if self.whole else 2)
        return max(1, round(self.share * parts))

    def begin(self, context: Context) -> DraftSession:
        """Begin with evenly spread layers, or with the best set of the last generation.

        Raises:
            UnsupportedError: a target whose layers cannot be left out.
        """
        itself = Itself(context, self.name)
        space = Space(between(itself.layers, self.name), self.whole, self.count(itself.layers))
        first = SkipLayers(share=self.share).skipped(itself.layers)
        known = self._memory.best
        if self.remember and known is not None and _fits(known, space):
            first = known
        lighter = lru_cache(maxsize=4)(itself.forward.without)
        if not self.whole:  # a target that cannot do it refuses here
            lighter(Sublayers(attention=frozenset(space.inner[:1])))
            lighter(Sublayers(mlp=frozenset(space.inner[:1])))
        searches = {row: _Search(self, itself, space, first) for row in context.prompts}

        def way(request: Request) -> Sublayers:
            session.searching += searches[request.row].step(request)
            return searches[request.row].best

        def done(row: int) -> None:
            search = searches.pop(row, None)
            if self.remember and search is not None and search.tried.scores:
                self._memory.best = search.best

        session = SelfDraftSession(itself, self.num_draft_tokens, way, lighter, done=done)
        return session


def _fits(skipped: Sublayers, space: Space) -> bool:
    """Whether a set that was found before is one of this space."""
    inside = skipped.attention | skipped.mlp <= frozenset(space.inner)
    return inside and (not space.whole or skipped.attention == skipped.mlp)


class _Search:
    """The search of one row."""

    def __init__(self, asked: Swift, itself: Itself, space: Space, first: Sublayers) -> None:
        self._asked, self._itself, self._space = asked, itself, space
        self._generator = torch.Generator().manual_seed(asked.seed)
        self.best, self.tried = first, Tried()
        self._score, self._trials, self._idle = -1.0, 0, 0

    def step(self, request: Request) -> int:
        """Try one set, where enough symbols are there and none was good enough yet; the passes it took."""
        asked = self._asked
        if request.round_start < asked.window or self._over():
            return 0
        if self._score < 0:
            # What drafts now is rated first, where it is to be beaten.
            self._score = self._rated(request, self.best)
            return 1
        self._trials += 1
        bayes = self.tried.scores and self._trials % asked.bayes_interval == 0
        space, generator = self._space, self._generator
        z = self.tried.proposed(space, generator) if bayes else space.drawn(generator)
        skipped = self._space.sublayers(z)
        score = self._rated(request, skipped)
        self.tried.add(z, score)
        self._idle += 1
        if score > self._score:
            self.best, self._score, self._idle = skipped, score, 0
        return 1

    def _over(self) -> bool:
        asked = self._asked
        return self._score > asked.enough or self._trials >= asked.max_trials or self._idle >= asked.patience

    def _rated(self, request: Request, skipped: Sublayers) -> float:
        lighter = self._itself.forward.without(skipped)
        return matchness(self._itself.session, request.row, request.history.ids, self._asked.window, lighter)
