"""RSD with stochastic beams: sequences drawn without replacement, level by level."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.stream import Draft
from multispec.structures.dynamic import require_sizes
from multispec.structures.growing import Ground, Growth


@dataclass(frozen=True)
class RsdStochastic:
    """Keep at each of ``depth`` levels the ``width`` sequences with the largest perturbed log q.

    RSD-S of Jeon et al. (2024), "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling
    Without Replacement", section 3.2, by the stochastic beam search of Kool et al. (2019), algorithm 1. The
    largest G of a node's children is that of the node itself, and of what is left of them, with log-mass phi,
    the next one below G is

        G' = phi - log(exp(phi - G) - log u)

    Symbols are drawn one after the other in the order of G, so that those behind one node are drawn without
    replacement from q, whatever the G are: how many there are is decided before each is drawn, which keeps
    recursive rejection exact. u is one of ``levels`` evenly spaced numbers. Under ``coupled`` the beams are
    those of log q + G with the target's own noise.

    Raises:
        UsageError: a size below 1.

    >>> RsdStochastic(width=4, depth=3).levels
    1024
    """

    name: ClassVar[str] = "rsd_s"
    paper: ClassVar[str] = "Jeon et al. 2024, arXiv 2402.14160; Kool et al. 2019, arXiv 1903.06059"
    width: int = 6
    depth: int = 5
    levels: int = 1024

    def __post_init__(self) -> None:
        require_sizes(width=self.width, depth=self.depth, levels=self.levels)

    def grow(self, ground: Ground) -> Draft:
        """One level after the other."""
        growth = Growth()
        beams = [_Beam(-1, 0.0, 0.0)]
        for depth in range(self.depth):
            room = min(self.width, ground.nodes - len(growth))
            if not beams or room < 1:
                break
            laws = ground.expand(growth.paths([beam.node for beam in beams]))
            parents = [_Parent(beam, q) for beam, q in zip(beams, laws, strict=True)]
            beams = self._level(ground, growth, parents, depth, room)
        return growth.draft(ground, "without_replacement")

    def _level(
        self, ground: Ground, growth: Growth, parents: list[_Parent], depth: int, room: int
    ) -> list[_Beam]:
        heap = [(-parent.next, n) for n, parent in enumerate(parents) if parent.alive(ground)]
        heapq.heapify(heap)
        beams: list[_Beam] = []
        while heap and len(beams) < room:
            value, n = heapq.heappop(heap)
            parent, order = parents[n], len(growth)
            x = parent.take(ground, depth, order)
            node = growth.add(parent.beam.node, x, parent.q)
            beams.append(_Beam(node, parent.beam.phi + math.log(float(parent.q[x])), -value))
            if parent.alive(ground):
                parent.follow(ground, depth, order, -value, self.levels)
                heapq.heappush(heap, (-parent.next, n))
        return beams


@dataclass(frozen=True)
class _Beam:
    node: int
    phi: float
    value: float


class _Parent:
    """A beam whose children are drawn one after the other; ``next`` is the G of the next one."""

    def __init__(self, beam: _Beam, q: Float[Tensor, " V"]) -> None:
        self.beam, self.q, self.rest = beam, q, q.clone()
        self.next = beam.value

    def alive(self, ground: Ground) -> bool:
        if ground.noise is None and float(self.rest.max()) > 0:
            self.next = self.beam.phi + math.log(float(self.rest.max()))
        return float(self.rest.sum()) > 0

    def take(self, ground: Ground, depth: int, order: int) -> int:
        x = int(self.rest.argmax()) if ground.noise is None else ground.draw(self.rest, depth, order)
        self.rest = torch.where(torch.arange(len(self.rest), device=self.rest.device) == x, 0.0, self.rest)
        return x

    def follow(self, ground: Ground, depth: int, order: int, value: float, levels: int) -> None:
        if ground.noise is None:
            return
        phi = self.beam.phi + math.log(float(self.rest.sum()))
        u = ground.uniform(depth, order, levels)
        # Far above phi there is no room left between G and what comes below it.
        gap = math.exp(min(phi - value, 700.0))
        self.next = min(phi - math.log(gap - math.log(u)), value)
