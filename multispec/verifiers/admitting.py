"""Rules that keep a symbol wherever the target would let it pass, whatever the drafter thinks of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multispec.errors import UsageError
from multispec.protocols import Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.narrow import narrowed
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover

Soft = Float[Tensor, "n V"]


@dataclass(frozen=True, eq=False)
class Places:
    """The target's law at ``n`` places, its scores as probabilities also where it is greedy.

    Column v is the symbol ``first + v``; ``depth`` counts the drafted symbols before the first place.
    """

    p: Soft
    first: int
    depth: int


@dataclass(frozen=True, kw_only=True)
class Admitting:
    """Keep x when it lies in A, the set that ``admit`` names at each place; never where its p is 0.

    A refused symbol is replaced from p, or from norm((p - q 1_A)+) if the residual is "sound". With
    ``soft``, A is made from the scores also at temperature 0, where p itself is one-hot.
    """

    admit: Callable[[Places], Bool[Tensor, "n V"]]
    residual: str
    soft: bool = False

    def walk(self, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Verdict:
        """Down the tree, to the first sibling that is admitted at each node."""
        narrow = narrowed(draft, law)
        p = narrow.probs
        if self.soft and law.greedy:
            columns = slice(narrow.first, narrow.first + p.shape[-1])
            p = law.scores[:, columns].to(torch.float64).softmax(-1)

        def rule(at: Candidates) -> Trials:
            here = p[at.place : at.place + len(at.p)]
            A = self.admit(Places(here, at.first, at.depth)) & (here > 0)
            g = at.q * A
            return Trials.of(at.q, g, leftover(at.p, g) if self.residual == "sound" else at.p)

        return Relaxed(rule=rule).walk(draft, law, noise, standing)


def best(p: Soft, k: int) -> Bool[Tensor, "n V"]:
    """The k most probable symbols of each row, and those that equal the last of them."""
    return p >= p.topk(min(k, p.shape[-1]), dim=-1).values[:, -1:]


def check(name: str, holds: bool, rule: str, got: object, residual: str = "published") -> None:
    """Hold the settings of a rule to their ranges.

    Raises:
        UsageError: they are outside.
    """
    if not holds:
        raise UsageError(f"{name} needs {rule}: got {got}.")
    if residual not in ("published", "sound"):
        raise UsageError(f"The residual of {name} is 'published' or 'sound': got {residual!r}.")


def finite(*values: float) -> bool:
    """True when all are numbers and none is infinite."""
    return all(map(math.isfinite, values))
