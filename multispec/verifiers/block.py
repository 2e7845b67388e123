"""Block verification: a chain is judged as a whole, and keeps its longest part that passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.verifiers.narrow import Narrow, narrowed
from multispec.verifiers.rejection import residual


@dataclass(frozen=True, kw_only=True)
class BlockVerification:
    """The target's law from chains, with more symbols per round than ``rejection`` on every pair of laws.

    Sun et al. (2024), "Block Verification Accelerates Speculative Decoding". With b_0 = 1,
    b_i = min(1, b_{i-1} p_i(x_i) / q_i(x_i)) and R_i = sum (b_i p_{i+1} - q_{i+1})+, the first i symbols
    pass with h_i = R_i / (R_i + 1 - b_i), all g of them with h_g = b_g; the longest part that passes is
    kept, and what follows it is drawn from norm((b_i p_{i+1} - q_{i+1})+).

    Given symbols (point masses) have q = 1: sound, with the acceptance of ``rejection``.

    Raises:
        UnsupportedError: at ``verify``, a tree.
    """

    name: ClassVar[str] = "block"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2403.10444"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Test every beginning of the chain; keep the longest that passes."""
        if not draft.is_chain:
            raise UnsupportedError(
                f"Block verification judges chains: got a tree with parents {draft.parents}. Use the "
                "verifier traversal, which is the same rule on trees, or a drafter of chains."
            )
        narrow, start, nodes = narrowed(draft, p), standing.start, range(len(draft))
        tau, left = _kept(draft, narrow, noise, start) if nodes else (0, narrow.probs)
        y = noise.choose(left, [start + tau], Purpose.RESIDUAL, start)
        return Verdict(path=tuple(nodes[:tau]), tokens=(*draft.ids[:tau], narrow.first + int(y)))


def _kept(draft: Draft, narrow: Narrow, noise: Noise, start: int) -> tuple[int, Tensor]:
    """The length of the part that is kept, and the law of the symbol behind it."""
    nodes, P = range(len(draft)), narrow.probs
    q, x = narrow.drawn(draft, nodes), narrow.columns(draft, nodes)[:, None]
    b = _weights(P[:-1].gather(-1, x)[:, 0], q.gather(-1, x)[:, 0])
    tau = _longest(b, P, q, noise, start)
    if tau == len(draft):
        return tau, P[tau:]
    return tau, residual(b[tau] * P[tau : tau + 1], q[tau : tau + 1])


def _weights(p_x: Float[Tensor, " g"], q_x: Float[Tensor, " g"]) -> Float[Tensor, " g1"]:
    """b_0 .. b_g."""
    b = [1.0]
    for ratio in (p_x / q_x).tolist():
        b.append(min(1.0, b[-1] * ratio))
    return p_x.new_tensor(b)


def _longest(
    b: Float[Tensor, " g1"],
    P: Float[Tensor, "g1 V"],
    q: Float[Tensor, "g V"],
    noise: Noise,
    start: int,
) -> int:
    """The length of the longest part that passes its test."""
    g = len(q)
    R = (b[1:-1, None] * P[1:-1] - q[1:]).clamp_(min=0).sum(-1)
    missing = 1 - b[1:-1]
    # 0 / 0 is 1: where p = q and all before was kept, nothing speaks against the symbol.
    R = torch.where((R <= 0) & (missing <= 0), torch.ones_like(R), R)
    passed = noise.accepts(
        torch.cat([R, b[-1:]]),
        torch.cat([R + missing, torch.ones_like(b[-1:])]),
        range(start, start + g),
        start * 4096,
    ).tolist()
    return max((i + 1 for i, one in enumerate(passed) if one), default=0)
