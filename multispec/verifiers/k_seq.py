"""K-SEQ: independent siblings are tested one after the other, each against its share of p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.siblings import Choice, Siblings, in_turn, walk


@dataclass(frozen=True, kw_only=True)
class KSeq:
    """The target's law from k independent siblings per node: accept each with min(1, p / (rho q)).

    Sun et al. (2023), SpecTr, K-SEQ. With beta(rho) = sum min(p / rho, q), rho in [1, k] solves
    1 - (1 - beta)^k = rho beta; when all k are refused the symbol is drawn from
    norm(p - min(p / rho, q) (1 - (1 - beta)^k) / beta). A node with one child has rho = 1: ``rejection``.

    Given siblings (point masses) are not k draws from one law: each is accepted with p(x) or taken out of p,
    as by ``rejection``, which no rule exceeds there.

    Raises:
        UnsupportedError: at ``verify``, siblings drawn without replacement.
    """

    name: ClassVar[str] = "k_seq"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Sun et al. 2023, arXiv 2310.15141"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        if draft.kind == "without_replacement" and not draft.is_chain:
            raise UnsupportedError(
                "K-SEQ is made for independent siblings: got siblings drawn without replacement. Use "
                "rejection, traversal or optimal, or a drafter whose siblings are independent."
            )
        return walk(_among, draft, p, noise, standing)


def _among(at: Siblings) -> Choice:
    k = len(at.x)
    if at.kind == "point" or k == 1:
        return in_turn(at)
    rho = share(at.p, at.q, k)
    for order, x in enumerate(at.x):
        if at.passes(order, at.p[0, x], rho * at.q[0, x]):
            return order, at.p
    common = torch.minimum(at.p / rho, at.q)
    beta = float(common.sum())
    if beta <= 0:
        return None, at.p
    rest = (at.p - common * ((1 - (1 - beta) ** k) / beta)).clamp_(min=0)
    return None, rest if float(rest.sum()) > 0 else at.p


def share(p: Float[Tensor, "1 V"], q: Float[Tensor, "1 V"], k: int) -> float:
    """The smallest rho in [1, k] with 1 - (1 - beta)^k <= rho beta, by bisection from above.

    >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]])
    >>> round(share(p, q, 2), 3)
    1.0
    """
    low, high = 1.0, float(k)
    if _exceeds(p, q, k, low) <= 0:
        return low
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _exceeds(p, q, k, middle) > 0 else (low, middle)
    return high


def _exceeds(p: Tensor, q: Tensor, k: int, rho: float) -> float:
    beta = float(torch.minimum(p / rho, q).sum())
    return 1 - (1 - beta) ** k - rho * beta
