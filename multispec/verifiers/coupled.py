"""Shared Gumbel noise: a draft symbol is accepted when it is what the target itself emits there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.tree import children, depths


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """Shared Gumbel noise: the very symbols that plain sampling with this seed emits.

    x_t = argmax(log p_t + G_t), with noise G keyed by seed and position: the Gumbel-max coupling of
    Daliri, Musco and Suresh (2024), "Coupling without communication and drafter-invariant speculative
    decoding", section 3; the noise of ancestral sampling fixed beforehand is due to Wiggers and Hoogeboom
    (2020). A draft is only a guess of x_t, so any drafter, tree or chain, leaves the output as it is; a
    drafter that samples with the same G guesses right with probability at least (1 - TV) / (1 + TV).
    """

    name: ClassVar[str] = "coupled"
    exactness: ClassVar[Exactness] = "seed"
    coupled: ClassVar[bool] = True
    paper: ClassVar[str] = "Daliri et al. 2024, arXiv 2408.07978"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree along the target's own symbols."""
        depth = (0, *depths(draft.parents))
        x = noise.symbols(p, [standing.start + d for d in depth]).tolist()
        if not len(draft):
            return Verdict(path=(), tokens=(x[0],))
        drafted, below = draft.ids, children(draft.parents)
        path: list[int] = []
        node = -1
        while True:
            matching = (c for c in below.get(node, ()) if drafted[c] == x[node + 1])
            step = next(matching, None)
            if step is None:
                break
            path.append(step)
            node = step
        return Verdict(path=tuple(path), tokens=(*(drafted[n] for n in path), x[node + 1]))
