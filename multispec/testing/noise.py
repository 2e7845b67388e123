"""Noise that explores every draw, so that laws are computed instead of sampled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.sampling import Law, Noise, Purpose
from multispec.testing.models import require

Outcome = TypeVar("Outcome", bound=Hashable)


class EnumeratedNoise:
    """Noise that takes one branch at every draw and knows its probability; see ``enumerate_law``.

    Draws at positions from ``horizon`` on are not explored. What the Gumbel noise of one position does
    under two different laws is not a product of branches, so that is refused, as is a key used twice.
    """

    def __init__(self, horizon: int | None = None) -> None:
        self._horizon = horizon
        self._taken: list[tuple[int, int]] = []  # (branch, branches) at every draw so far
        self._reset()

    def _reset(self) -> None:
        self.weight = 1.0
        self._draws = 0
        self._keys: set[tuple[int, ...]] = set()
        self._symbols: dict[int, tuple[list[float], int]] = {}

    def advance(self) -> bool:
        """Turn to the next branch; False when all were explored."""
        while self._taken and self._taken[-1][0] + 1 == self._taken[-1][1]:
            self._taken.pop()
        if self._taken:
            branch, branches = self._taken.pop()
            self._taken.append((branch + 1, branches))
        self._reset()
        return bool(self._taken)

    def _branch(self, probs: Sequence[float], position: int) -> int:
        total = sum(probs)
        open_ = [symbol for symbol, p in enumerate(probs) if p > 0]
        require(bool(open_), f"nothing can be drawn at position {position}")
        if self._horizon is not None and position >= self._horizon:
            return max(open_, key=probs.__getitem__)
        if len(open_) == 1:
            return open_[0]
        if self._draws == len(self._taken):
            self._taken.append((0, len(open_)))
        symbol = open_[self._taken[self._draws][0]]
        self._draws += 1
        self.weight *= probs[symbol] / total
        return symbol

    def _fresh(self, *key: int) -> None:
        require(key not in self._keys, f"the draw (purpose, key, position) = {key} is used twice")
        self._keys.add(key)

    def symbols(self, law: Law, positions: Sequence[int]) -> Int[Tensor, " n"]:
        """One branch per position, shared by all who ask with the same law.

        Raises:
            UnsupportedError: another law at a position that was drawn from.
        """
        pairs = zip(law.probs.tolist(), positions, strict=True)
        return torch.tensor([self._symbol(probs, position) for probs, position in pairs])

    def _symbol(self, probs: list[float], position: int) -> int:
        if max(probs) == 1:
            return probs.index(1)
        known, symbol = self._symbols.get(position, (probs, -1))
        if known != probs:
            raise UnsupportedError(
                f"Two laws share the noise of position {position}: their joint law cannot be enumerated "
                "branch by branch. Enumerate rejection, plain or greedy decoding; compare seeds for coupled."
            )
        if symbol < 0:
            symbol = self._branch(probs, position)
            self._symbols[position] = (probs, symbol)
        return symbol

    def perturbed(self, law: Law, positions: Sequence[int]) -> Float[Tensor, "n V"]:
        """Not a draw from a finite set.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("Gumbel noise itself cannot be enumerated: compare seeds instead.")

    def choose(
        self, probs: Float[Tensor, "n V"], positions: Sequence[int], purpose: Purpose, key: int = 0
    ) -> Int[Tensor, " n"]:
        """One branch per row of ``probs``."""
        for position in positions:
            self._fresh(purpose, key, position)
        pairs = zip(probs.tolist(), positions, strict=True)
        return torch.tensor([self._branch(law, position) for law, position in pairs])

    def accepts(
        self, p: Float[Tensor, " n"], q: Float[Tensor, " n"], positions: Sequence[int], key: int = 0
    ) -> Bool[Tensor, " n"]:
        """Branches of probability 1 - min(1, p / q) and min(1, p / q)."""
        found = []
        for one_p, one_q, position in zip(p.tolist(), q.tolist(), positions, strict=True):
            self._fresh(Purpose.ACCEPT, key, position)
            chance = min(1.0, one_p / one_q) if one_q > 0 else float(one_p > 0)
            found.append(bool(self._branch([1 - chance, chance], position)))
        return torch.tensor(found)


def enumerate_law(run: Callable[[Noise], Outcome], horizon: int | None = None) -> dict[Outcome, float]:
    """The exact law of what ``run`` returns: it is run once for every sequence of draws.

    ``run`` has to be a function of its noise alone. ``horizon`` is exact for what happens before that
    position where no later draw matters to it.

    >>> from multispec.testing import TableModel, play, row
    >>> model = TableModel(support=2)
    >>> run = lambda noise: tuple(play(model, row(max_new_tokens=2, noise=noise))[0].tokens.tolist())
    >>> law = enumerate_law(run)
    >>> len(law), round(sum(law.values()), 9)
    (4, 1.0)
    """
    law: dict[Outcome, float] = {}
    noise = EnumeratedNoise(horizon)
    going = True
    while going:
        outcome = run(noise)
        law[outcome] = law.get(outcome, 0.0) + noise.weight
        going = noise.advance()
    return law
