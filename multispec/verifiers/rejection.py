"""Speculative sampling: accept with min(1, p / q), else draw from what the draft left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Speculative sampling: the target's law, by the token ratio test over chains and trees.

    Chains: Leviathan et al. (2023), algorithm 1; Chen et al. (2023), algorithm 2. Siblings:
    recursive rejection, without replacement as in Jeon et al. (2024, RSD) and Chen et al. (2024,
    Sequoia), algorithm 2; with independent siblings as in Miao et al. (2024, SpecInfer), algorithm
    2. Point masses have q = 1: accept x with p(x), else remove it from p.
    """

    name: ClassVar[str] = "rejection"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        probs, below, tokens = p.probs, children(draft.parents), draft.ids
        path: list[int] = []
        start = standing.start
        node, position = -1, start
        while True:
            siblings = below.get(node, ())
            accepted, left = self._among(draft, tokens, siblings, probs[node + 1], noise, position, start)
            if accepted is None:
                emitted = noise.choose(left[None], [position], Purpose.RESIDUAL, start)
                return Verdict(path=tuple(path), tokens=(*(tokens[n] for n in path), int(emitted)))
            path.append(accepted)
            node, position = accepted, position + 1

    def _among(
        self,
        draft: Draft,
        tokens: list[int],
        siblings: tuple[int, ...],
        p: Tensor,
        noise: Noise,
        position: int,
        start: int,
    ) -> tuple[int | None, Tensor]:
        """The child that is accepted, if any, and the law p' that is left when none is."""
        q = law_of(draft, siblings, p)
        for order, child in enumerate(siblings):
            x = tokens[child]
            # A test of its own per sibling: the key tells them apart at one position.
            key = start * 4096 + order
            if bool(noise.accepts(p[x : x + 1], q[x : x + 1], [position], key)):
                return child, p
            p = residual(p, point_mass(q, x) if draft.kind == "point" else q)
            if draft.kind == "without_replacement":
                q = without(q, x)
        return None, p


def law_of(draft: Draft, siblings: tuple[int, ...], p: Tensor) -> Tensor:
    if draft.q is None or not siblings:
        return torch.ones_like(p)
    return draft.q[siblings[0]].to(p)


def point_mass(q: Tensor, x: int) -> Tensor:
    return torch.zeros_like(q).index_fill_(0, torch.tensor([x], device=q.device), 1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm((p - q)+); p itself where rounding leaves nothing (p = q, and a test failed by a last bit)."""
    rest = (p - q).clamp_(min=0)
    total = rest.sum()
    return rest / total if float(total) > 0 else p


def without(q: Tensor, x: int) -> Tensor:
    rest = q.clone()
    rest[x] = 0
    total = rest.sum()
    return rest / total if float(total) > 0 else q
