"""Pictures to test with: small random ones for exact laws, a smooth one for counting passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multispec.drafters.jacobi import _BEYOND
from multispec.protocols import Budget, Past
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Allowed, Forced, Slot, StreamSpec
from multispec.testing import EnumeratedNoise, FakeModel

Corner = tuple[float, float, float]


@dataclass(frozen=True)
class RowEnds:
    """Rows of ``width`` symbols below ``codes``, each closed by ``codes``; ``header`` of them come first."""

    codes: int
    width: int
    header: int = 0

    def __call__(self, generated: Sequence[int]) -> Forced | Allowed:
        place = len(generated) - self.header
        ends = place < 0 or place % (self.width + 1) == self.width
        return Forced(self.codes) if ends else Allowed(range(self.codes))


def raster(codes: int = 3, width: int = 2, *, ends: bool = False, length: int | None = None) -> StreamSpec:
    """A picture of so many codes, with row-end symbols or without."""
    return StreamSpec(
        slots=(Slot(size=codes + ends),),
        order="raster",
        row_length=width + ends,
        grammar=RowEnds(codes, width) if ends else None,
        fixed_length=length,
    )


def random_picture(
    spec: StreamSpec, *, seed: int = 3, support: int | None = None, **abilities: Any
) -> FakeModel:
    """Random laws that depend on the symbol to the left, the one above and the first of the prompt."""
    size, up = spec.vocab_size, spec.row_length or 2
    drawn = torch.randn(
        size, size, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    if support is not None:
        drawn = drawn.masked_fill(drawn < drawn.topk(support).values[..., -1:], -torch.inf)

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        above = prefix[-up] if len(prefix) - prompt_length >= up else 0
        return drawn[prefix[0] % size, prefix[-1], above]

    return FakeModel(after, spec, **abilities)


def smooth_picture(codes: int = 256, width: int = 16, height: int = 16, spread: float = 0.1) -> FakeModel:
    """A Markov field in two dimensions: near the mean of its neighbours in a plane of random codes."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.rand(codes, 2, generator=generator, dtype=torch.float64)
    bias = torch.randn(codes, generator=generator, dtype=torch.float64)

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        place = len(prefix) - prompt_length
        near = [*([prefix[-1]] if place % width else []), *([prefix[-width]] if place >= width else [])]
        if not near:
            return bias
        return bias - (plane - plane[near].mean(0)).square().sum(-1) / (2 * spread**2)

    return FakeModel(after, raster(codes, width, length=width * height))


@dataclass(frozen=True)
class Uneven:
    """Budgets that differ from round to round, some of them 0."""

    name = "uneven"
    nodes: tuple[int, ...] = (4, 2, 0, 3, 1)

    def budget(self, past: Past, default_nodes: int) -> Budget:
        return Budget(nodes=self.nodes[past.rounds % len(self.nodes)])


class RaceNoise:
    """Enumerates the Gumbel noise of one position under several laws, for three symbols, exactly.

    argmax(log p + G) is argmin(E / p) with independent exponential E, and E / sum(E) is uniform on the
    triangle. Each law cuts the triangle into the three regions in which one symbol wins, so what is known
    of a position's noise is a polygon, and the chance of each symbol its share of the polygon's area.
    """

    def __init__(self, inner: Noise) -> None:
        assert isinstance(inner, EnumeratedNoise)
        self._inner = inner
        self._cells: dict[int, list[Corner]] = {}

    def symbols(self, law: Law, positions: Sequence[int]) -> Tensor:
        pairs = zip(law.probs.tolist(), positions, strict=True)
        return torch.tensor([self._symbol(p, position) for p, position in pairs])

    def _symbol(self, p: Sequence[float], position: int) -> int:
        cell = self._cells.get(position, [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
        parts = [cell] * 3
        for a in range(3):
            for i in {0, 1, 2} - {a}:
                parts[a] = _clipped(parts[a], p[a], p[i], a, i)
        symbol = self._inner._branch([_area(part) for part in parts], position % _BEYOND)
        self._cells[position] = parts[symbol]
        return symbol

    def perturbed(self, law: Law, positions: Sequence[int]) -> Tensor:
        return self._inner.perturbed(law, positions)

    def choose(self, probs: Tensor, positions: Sequence[int], purpose: Purpose, key: int = 0) -> Tensor:
        return self._inner.choose(probs, positions, purpose, key)

    def accepts(self, p: Tensor, q: Tensor, positions: Sequence[int], key: int = 0) -> Tensor:
        return self._inner.accepts(p, q, positions, key)


def _clipped(polygon: list[Corner], p_a: float, p_i: float, a: int, i: int) -> list[Corner]:
    """The part where E_a / p_a <= E_i / p_i."""
    found: list[Corner] = []
    for u, v in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        at_u, at_v = p_a * u[i] - p_i * u[a], p_a * v[i] - p_i * v[a]
        if at_u >= 0:
            found.append(u)
        if at_u * at_v < 0:
            t = at_u / (at_u - at_v)
            x, y, z = (one + t * (other - one) for one, other in zip(u, v, strict=True))
            found.append((x, y, z))
    return found


def _area(polygon: list[Corner]) -> float:
    twice = abs(
        sum(u[0] * v[1] - u[1] * v[0] for u, v in zip(polygon, polygon[1:] + polygon[:1], strict=True))
    )
    return twice if twice > 1e-14 else 0.0
