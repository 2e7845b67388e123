"""Rules that aim at a law pi other than the target's: exact with respect to pi, metered against p."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.rejection import Rejection
from multispec.verifiers.relaxing import variation

Make = Callable[[Float[Tensor, "n V"], Float[Tensor, "n V"]], Float[Tensor, "n V"]]


@dataclass(frozen=True, kw_only=True)
class Toward:
    """``rejection`` towards pi = ``make(p, q)`` wherever something was drafted, towards p behind the draft.

    pi is a function of the symbols before, so what is reported for a symbol is exactly the total variation
    of its law from p, on chains and on trees of every kind.
    """

    make: Make

    def walk(self, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Verdict:
        """Down the tree; ``spent`` has one number per emitted symbol."""
        if not len(draft):
            return Rejection().verify(draft, law, noise, standing)._replace(spent=(0.0,))
        p, below = law.probs, children(draft.parents)
        places, first = [parent + 1 for parent in below], [nodes[0] for nodes in below.values()]
        pi = p.clone()
        pi[places] = self.make(p[places], _drawn(draft, first, p))
        verdict = Rejection().verify(draft, Law(pi.log(), greedy=False), noise, standing)
        emitted = [0, *(node + 1 for node in verdict.path)]
        return verdict._replace(spent=tuple(variation(pi[emitted], p[emitted])))


def _drawn(draft: Draft, nodes: list[int], p: Tensor) -> Tensor:
    """The law that each node was drawn from; a point mass is q = 1."""
    if draft.q is None or draft.kind == "point":
        x = torch.tensor([draft.ids[node] for node in nodes], device=p.device)
        return p.new_zeros(len(nodes), p.shape[-1]).scatter_(-1, x[:, None], 1.0)
    q = draft.q[nodes].to(p)
    return q / q.sum(-1, keepdim=True)


def asks_for_q(draft: Draft, name: str) -> None:
    """Refuse drafts of given symbols.

    Raises:
        UnsupportedError: the draft tells of no law.
    """
    if len(draft) and draft.kind == "point":
        raise UnsupportedError(
            f"{name} compares the target's law with the drafter's: got symbols without one (q = 1). "
            "Use a drafter that draws from a law (draft_model), or a rule that needs none (typical, nucleus, "
            "top_k)."
        )
