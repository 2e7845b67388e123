"""What a tree grows on: a drafter's laws behind paths, room, and draws where q is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.sampling import Noise, Purpose
from multispec.stream import Draft, DraftKind
from multispec.structures.dynamic import Expand
from multispec.tree import path_to

Siblings = Literal["best", "independent", "without_replacement"]
_KINDS: dict[Siblings, DraftKind] = {
    "best": "point",
    "independent": "sampled",
    "without_replacement": "without_replacement",
}
# Draws of one round at one position are told apart by numbers below this.
_ORDERS = 4096


@dataclass(frozen=True)
class Ground:
    """The laws of a drafter behind paths of drafted symbols, and room for ``nodes``.

    A row of ``expand`` that is zero says that nothing is to follow there. ``noise`` is None where drafts are
    guesses (a coupled verifier, greedy decoding): then the best symbols of the laws stand in for draws.
    ``start`` is the position of the first drafted symbol.
    """

    expand: Expand
    nodes: int
    start: int = 0
    noise: Noise | None = None

    def draw(self, q: Float[Tensor, " V"], depth: int, order: int) -> int:
        """A symbol of (unnormalised) q, the best for guesses; ``order`` below 2048 tells draws apart."""
        if self.noise is None:
            return int(q.argmax())
        position = [self.start + depth]
        return int(self.noise.choose(q[None], position, Purpose.DRAFT, self.start * _ORDERS + order))

    def uniform(self, depth: int, order: int, levels: int) -> float:
        """One of ``levels`` evenly spaced numbers inside (0, 1)."""
        flat = torch.ones(levels, dtype=torch.float64)
        return (self.draw(flat, depth, order + _ORDERS // 2) + 0.5) / levels

    def siblings(
        self, q: Float[Tensor, " V"], depth: int, order: int, count: int, how: Siblings
    ) -> list[int]:
        """``count`` children behind one node, as far as q has mass: the best, or drawn."""
        if self.noise is None or how == "best":
            top = q.topk(min(count, q.shape[-1]))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            return [x for x, p in pairs if p > 0]
        rest, found = q.clone(), list[int]()
        while len(found) < count and float(rest.sum()) > 0:
            found.append(self.draw(rest, depth, order + len(found)))
            if how == "without_replacement":
                rest[found[-1]] = 0
        return found


@runtime_checkable
class Structure(Protocol):
    """A way for a tree to grow: a frozen dataclass with one method."""

    name: ClassVar[str]

    def grow(self, ground: Ground, /) -> Draft:
        """A tree of at most ``ground.nodes`` nodes."""
        ...


@dataclass
class Growth:
    """Nodes, and the law that each was drawn from."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, q: Float[Tensor, " V"]) -> int:
        """A child of ``parent``; its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.q.append(q)
        return len(self.tokens) - 1

    def path(self, node: int) -> tuple[int, ...]:
        """The symbols down to a node."""
        return tuple(self.tokens[n] for n in path_to(self.parents, node))

    def paths(self, nodes: Sequence[int]) -> list[tuple[int, ...]]:
        """The same for several."""
        return [self.path(node) for node in nodes]

    def draft(self, ground: Ground, how: Siblings) -> Draft:
        """As a draft, with q where the nodes were drawn."""
        if not self.tokens:
            return Draft.empty()
        kind: DraftKind = "point" if ground.noise is None else _KINDS[how]
        q = None if kind == "point" else torch.stack(self.q)
        return Draft(tokens=torch.tensor(self.tokens), parents=tuple(self.parents), q=q, kind=kind)
