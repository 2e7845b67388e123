"""Shared Gumbel noise: a draft symbol is accepted when it is what the target itself emits there."""

from __future__ import annotations

from collections.abc import Callable
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
        emitted = _emitted(draft, p, noise, standing.start)
        x, path, node = emitted(-1, 0), list[int](), -1
        if not len(draft):
            return Verdict(path=(), tokens=(x,))
        drafted, below = draft.ids, children(draft.parents)
        while True:
            matching = (c for c in below.get(node, ()) if drafted[c] == x)
            step = next(matching, None)
            if step is None:
                break
            path.append(step)
            node, x = step, emitted(step, len(path))
        return Verdict(path=tuple(path), tokens=(*(drafted[n] for n in path), x))


def _emitted(draft: Draft, p: Law, noise: Noise, start: int) -> Callable[[int, int], int]:
    """What the target emits behind a node of a depth.

    The walk down a tree comes by few of its nodes, so there it is asked node by node. A chain is worked out
    at once, and so is all on an accelerator, where each answer has to be waited for.
    """
    if p.scores.device.type == "cpu" and not draft.is_chain:
        return lambda node, depth: int(noise.symbols(p.at(node + 1), [start + depth]))
    x = noise.symbols(p, [start + depth for depth in (0, *depths(draft.parents))]).tolist()
    return lambda node, depth: int(x[node + 1])
