"""Speculative sampling: accept with min(1, p / q), else draw from what the draft left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.joint import JointStep
from multispec.verifiers.narrow import Narrow, narrowed, without


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Speculative sampling: the target's law, by the token ratio test over chains and trees.

    Chains: Leviathan et al. (2023), algorithm 1; Chen et al. (2023), algorithm 2. Siblings:
    recursive rejection, without replacement as in Jeon et al. (2024, RSD) and Chen et al. (2024,
    Sequoia), algorithm 2; with independent siblings as in Miao et al. (2024, SpecInfer), algorithm
    2. Point masses have q = 1: accept x with p(x), else remove it from p.

    K parallel slots of a step (``frames="joint"``) are judged as the one symbol that they are to the model:
    all of x is kept with min(1, prod p_k(x_k) / q_k(x_k)), else the step is drawn from
    norm((prod p_k - prod q_k)+) (``joint``). That keeps a step with 1 - TV of the joint laws, the most that
    any rule does, and a step that is not kept in all slots ends the round: so it is what saves calls, and
    the default. It takes the slots of a step as drawn apart from each other given the steps before, which
    is what q says of them and what all drafters here do. ``"slots"`` judges each slot by itself, keeps
    steps with prod (1 - TV_k) only, and holds also where a drafter lets the slots of a step see each other.
    For point masses a step is kept with the same chance by both.

    Raises:
        UsageError: frames that are neither.
    """

    name: ClassVar[str] = "rejection"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192"
    frames: Literal["joint", "slots"] = "joint"

    def __post_init__(self) -> None:
        if self.frames not in ("joint", "slots"):
            raise UsageError(
                f"rejection judges the parallel slots of a frame 'joint' or as 'slots': got {self.frames!r}. "
                "Leave it out for 'joint'."
            )

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        narrow, start = narrowed(draft, p), standing.start
        way = _chain if draft.is_chain else _tree
        path, left = way(draft, narrow, noise, start)
        x = noise.choose(left, [start + len(path)], Purpose.RESIDUAL, start)
        return Verdict(path=path, tokens=(*(draft.ids[node] for node in path), narrow.first + int(x)))

    def verify_step(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """The K slots of one step together: all that was drafted, or K other symbols; ``p`` has K rows."""
        narrow, nodes = narrowed(draft, p), range(len(draft))
        q = narrow.drawn(draft, nodes) if nodes else narrow.probs
        step = JointStep(narrow.probs, q, standing.start)
        if nodes and step.passes(narrow.columns(draft, nodes), noise):
            return Verdict(path=tuple(nodes), tokens=tuple(draft.ids))
        y = step.instead(noise) if nodes else step.drawn(step.p, noise, 0)
        return Verdict(path=(), tokens=tuple(narrow.first + column for column in y))


def _chain(draft: Draft, p: Narrow, noise: Noise, start: int) -> tuple[tuple[int, ...], Tensor]:
    """The nodes accepted, and the law left behind them: all tests at once, up to the first failure."""
    nodes = range(len(draft))
    if not nodes:
        return (), p.probs
    x, q = p.columns(draft, nodes)[:, None], p.drawn(draft, nodes)
    p_x, q_x = p.probs[:-1].gather(-1, x)[:, 0], q.gather(-1, x)[:, 0]
    kept = noise.accepts(p_x, q_x, [start + node for node in nodes], start * 4096).tolist()
    if False not in kept:
        return tuple(nodes), p.probs[-1:]
    n = kept.index(False)
    return tuple(range(n)), residual(p.probs[n : n + 1], q[n : n + 1])


def _tree(draft: Draft, p: Narrow, noise: Noise, start: int) -> tuple[tuple[int, ...], Tensor]:
    below, path, node = children(draft.parents), list[int](), -1
    while True:
        siblings, left = below.get(node, ()), p.at(node + 1)
        accepted, left = _among(draft, p, siblings, left, noise, start + len(path), start)
        if accepted is None:
            return tuple(path), left
        path.append(accepted)
        node = accepted


def _among(
    draft: Draft,
    narrow: Narrow,
    siblings: tuple[int, ...],
    p: Tensor,
    noise: Noise,
    position: int,
    start: int,
) -> tuple[int | None, Tensor]:
    """The child that is accepted, if any, and the law p' that is left when none is."""
    if draft.kind == "point":
        return _given(draft, narrow, siblings, p, noise, position, start)
    q = narrow.drawn(draft, siblings[:1])
    for order, child in enumerate(siblings):
        x = draft.ids[child] - narrow.first
        # A test of its own per sibling: the key tells them apart at one position.
        key = start * 4096 + order
        if bool(noise.accepts(p[0, x : x + 1], q[0, x : x + 1], [position], key)):
            return child, p
        p = residual(p, q)
        if draft.kind == "without_replacement":
            q = without(q, narrow.columns(draft, (child,)))
    return None, p


def _given(
    draft: Draft,
    narrow: Narrow,
    siblings: tuple[int, ...],
    p: Tensor,
    noise: Noise,
    position: int,
    start: int,
) -> tuple[int | None, Tensor]:
    """The same for point masses: x passes with p(x), else it is taken out of p."""
    one = torch.ones(1, dtype=p.dtype, device=p.device)
    for order, child in enumerate(siblings):
        x = draft.ids[child] - narrow.first
        if bool(noise.accepts(p[0, x : x + 1], one, [position], start * 4096 + order)):
            return child, p
        p = _taken_out(p, x)
    return None, p


def _taken_out(p: Float[Tensor, "1 V"], x: int) -> Float[Tensor, "1 V"]:
    """The ``residual`` of a point mass at x."""
    rest = p.clone()
    rest[0, x] = 0.0
    total = rest.sum(-1, keepdim=True)
    return rest.div_(total) if float(total) > 0 else p


def residual(p: Float[Tensor, "n V"], q: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """norm((p - q)+); p itself where rounding leaves nothing (p = q, and a test failed by a last bit)."""
    rest = (p - q).clamp_(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)
