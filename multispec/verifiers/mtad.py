"""MTAD: the beginning of a draft is judged by the likelihood of all its symbols together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.narrow import Narrow, narrowed
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials


@dataclass(frozen=True, kw_only=True)
class MTAD:
    """Keep x_i while min(1, P(x_1 .. x_i) / Q(x_1 .. x_i)) > ``tau``, P and Q the joint laws of the draft.

    Qin et al. (2024), "Optimized Multi-Token Joint Decoding with Auxiliary Model". An unlikely symbol passes
    behind likely ones. Here the first beginning that fails ends the draft; the paper goes on to the longest
    one that passes, which makes the law of a symbol depend on symbols drafted behind it, and such a law
    cannot be metered. What replaces a refused symbol is drawn from p, as published. There is no exact
    variant: ``block`` is the exact rule on joint ratios.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``). For given symbols (q = 1) the ratio is P itself.

    Raises:
        UsageError: tau outside [0, 1).
    """

    name: ClassVar[str] = "mtad"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Qin et al. 2024, arXiv 2407.09722"
    tau: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.tau < 1:
            raise UsageError(f"mtad needs tau in [0, 1): got {self.tau}.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        narrow = narrowed(draft, p)
        ratios = _ratios(draft, narrow)

        def rule(at: Candidates) -> Trials:
            rows = slice(at.place, at.place + len(at.p))
            # P(x) > tau Q(x), without a division; never where p = 0.
            A = ratios[rows, None] * narrow.probs[rows] > self.tau * at.q
            return Trials.of(at.q, at.q * A, at.p)

        return Relaxed(rule=rule).walk(draft, p, noise, standing)


def _ratios(draft: Draft, p: Narrow) -> Tensor:
    """P / Q of the symbols down to each node, 1 for the root."""
    nodes = range(len(draft))
    found = [1.0]
    if nodes:
        x, before = p.columns(draft, nodes), torch.tensor(draft.parents) + 1
        p_x = p.probs[before.to(x.device), x].tolist()
        q_x = p.drawn(draft, nodes).gather(-1, x[:, None])[:, 0].tolist()
        for parent, p_one, q_one in zip(draft.parents, p_x, q_x, strict=True):
            found.append(min(found[parent + 1] * p_one / q_one, 1e300))
    return p.probs.new_tensor(found)
