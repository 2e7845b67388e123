"""SJD-PAC: a small tree where the last draft was rejected, then a chain that is kept by coupling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from multispec.drafters.scd_mc import coupled
from multispec.drafters.starts import Start, Tail, own_key
from multispec.drafters.window import (
    Front,
    Known,
    check_window,
    coming,
    each_stream,
    guesses,
    renewed,
)
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, Observation

# Keys of draws and of sibling tests hold this many siblings apart.
_WIDEST = 256


@dataclass(frozen=True)
class SjdPac:
    """Draft ``width`` symbols for each of the next ``depth`` positions, as a tree, and one for those behind.

    "SJD-PAC: Accelerating Speculative Jacobi Decoding via Proactive Drafting and Adaptive Continuation"
    (2026). Adaptive continuation: the first symbol of every position is kept from pass to pass by the
    maximal coupling (``scd_mc``). Proactive drafting: behind a rejection p is uncertain, so a tree of
    siblings is offered there, drawn without replacement from p itself, that is the i-th from p without
    the first i - 1: the law that recursive rejection takes them to have. All nodes of a depth have the
    same children, of which one set lies on the path. ``num_draft_tokens`` counts the nodes of the tree
    (width + width^2 + ...; levels that do not fit are left out) and of the chain behind its first leaf.

    Under a ``coupled`` verifier the siblings are the best of log p + G, which is the same draw without
    replacement from the shared noise; the window is that of ``jacobi``. A model that scores chains only
    needs ``width=1``. As published are width 4, depth 3 and a window of 64: ``num_draft_tokens=145``.

    Raises:
        UsageError: nothing to draft, or a tree without width or depth.
        UnknownNameError: no such start.

    >>> SjdPac(width=3).num_draft_tokens
    64
    """

    name: ClassVar[str] = "sjd_pac"
    paper: ClassVar[str] = "SJD-PAC 2026, arXiv 2603.18599"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 64
    width: int = 4
    depth: int = 2
    start: Start = "copy_above"

    def __post_init__(self) -> None:
        check_window(self.name, self.num_draft_tokens, self.start)
        if not 1 <= self.width <= _WIDEST or self.depth < 1:
            raise UsageError(
                f"A tree needs 1 <= width <= {_WIDEST} and depth >= 1: got {self}. width=1 is scd_mc."
            )

    def begin(self, context: Context) -> DraftSession:
        """A window per row."""
        size, device = context.vocab_size, context.device
        return each_stream(
            context, lambda spec: _Proactive(self.width, self.depth, Tail(self.start, spec, size, device))
        )


@dataclass
class _Proactive:
    width: int
    depth: int
    tail: Tail
    seen: Observation | None = None

    def propose(self, request: Request) -> Draft:
        """A tree where a law is known, and the rest of the window as a chain."""
        nodes = self.tail.room(request)
        if not nodes:
            return Draft.empty()
        known = coming(self.seen, request, nodes)
        widths = [] if known is None else self._widths(request, known, nodes)
        count = len(widths) + nodes - sum(prod(widths[: d + 1]) for d in range(len(widths)))
        if known is not None and len(known) > count:
            known = coming(self.seen, request, count)
        front = renewed(request, known, count, coupled, self.tail)
        if known is None or max(widths, default=1) == 1:
            return Draft.chain(front.tokens, front.q)
        return _tree(front, self._levels(request, known, front, widths))

    def observe(self, observation: Observation) -> None:
        """Keep the laws of this pass, and what they were computed on."""
        self.seen = observation

    def _widths(self, request: Request, known: Known, nodes: int) -> list[int]:
        """Siblings at each depth: no more than have mass, and no level that does not fit."""
        top = slice(0, self.depth)
        mass = known.law.scores[top] > -torch.inf if guesses(request) else known.p[top] > 0
        widths: list[int] = []
        size = 0
        for support in mass.sum(-1).tolist():
            widths.append(min(self.width, support))
            size += prod(widths)
            if size > nodes:
                return widths[:-1]
        return widths

    def _levels(self, request: Request, known: Known, front: Front, widths: Sequence[int]) -> list[list[int]]:
        if guesses(request):
            return _best(request, known, widths)
        return _without_replacement(request, known, front, widths)


def _best(request: Request, known: Known, widths: Sequence[int]) -> list[list[int]]:
    """The best of log p + G at each depth; of the scores alone in greedy decoding."""
    count = len(widths)
    law = Law(known.law.scores[:count], greedy=known.law.greedy)
    scores = law.scores if law.greedy else request.noise.perturbed(law, known.positions[:count])
    best: list[list[int]] = scores.topk(max(widths)).indices.tolist()
    return [found[:width] for found, width in zip(best, widths, strict=True)]


def _without_replacement(
    request: Request, known: Known, front: Front, widths: Sequence[int]
) -> list[list[int]]:
    """Behind the first symbol of each depth, draws from p without those before."""
    levels = [[token] for token in front.tokens[: len(widths)]]
    p = known.p[: len(widths)].clone()
    for order in range(1, max(widths)):
        depths = [d for d, width in enumerate(widths) if width > order]
        for d in depths:
            p[d, levels[d][-1]] = 0
        positions = [known.positions[d] for d in depths]
        x = request.noise.choose(p[depths], positions, Purpose.DRAFT, own_key(request, order))
        for d, symbol in zip(depths, x.tolist(), strict=True):
            levels[d].append(symbol)
    return levels


def _tree(front: Front, levels: Sequence[Sequence[int]]) -> Draft:
    """All paths through ``levels``, and the rest of the window below the first of them."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    level = [-1]
    rest = [[token] for token in front.tokens[len(levels) :]]
    for depth, siblings in enumerate([*levels, *rest]):
        above = level if depth < len(levels) else level[:1]
        level = list(range(len(tokens), len(tokens) + len(above) * len(siblings)))
        tokens += [symbol for _ in above for symbol in siblings]
        parents += [parent for parent in above for _ in siblings]
        depths += [depth] * len(level)
    ids, drawn = torch.tensor(tokens), front.q
    if drawn is None:
        return Draft(tokens=ids, parents=tuple(parents))
    q = drawn[torch.tensor(depths, device=drawn.device)]
    return Draft(tokens=ids, parents=tuple(parents), q=q, kind="without_replacement")
