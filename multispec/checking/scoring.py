"""Logits against logits: drafts scored at once and rolled back, against fresh runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multispec.branches import begin
from multispec.checking.drafters import fresh_logits
from multispec.checking.equality import noise_of
from multispec.checking.prompts import refuse_steps, usable_ids
from multispec.checking.results import Finding
from multispec.errors import UnsupportedError
from multispec.protocols import Target
from multispec.stream import Draft, Prompt
from multispec.tree import path_to

Shape = Callable[[random.Random], tuple[int, ...]]
_NODES = 4
_ROUNDS = 3


def chains(target: Target, prompts: Sequence[Prompt]) -> Finding:
    """Chains scored at once, partly kept, partly rolled back."""
    return _scored(target, prompts, lambda _: tuple(range(-1, _NODES - 1)))


def trees(target: Target, prompts: Sequence[Prompt]) -> Finding:
    """Trees scored at once, of which one path is kept.

    Raises:
        UnsupportedError: the model scores chains only.
    """
    if not target.capabilities.supports_tree:
        raise UnsupportedError(f"this model scores chains only: {target.capabilities.why}")
    return _scored(target, prompts, lambda rng: tuple(rng.randrange(-1, node) for node in range(_NODES)))


@torch.inference_mode()
def _scored(target: Target, prompts: Sequence[Prompt], shape: Shape) -> Finding:
    """Several rounds over all prompts as one batch; every node is run again from the beginning."""
    refuse_steps(target, prompts)
    rng, found = random.Random(1), Finding()
    limits, rounds = [noise_of(target, prompt) for prompt in prompts], _rounds(target, prompts)
    ids = usable_ids(target)
    generated: list[list[int]] = [[] for _ in prompts]
    capacity = [len(prompt.ids) + rounds * (_NODES + 1) for prompt in prompts]
    session = begin(target, prompts, capacity, _NODES)
    session.prefill()
    rows, worst = range(len(prompts)), (0.0, 1.0)
    for _ in range(rounds):
        roots = [rng.choice(ids) for _ in rows]
        drafts = [_draft(rng, ids, shape) for _ in rows]
        logits = session.score(rows, roots, drafts).logits
        for row in rows:
            generated[row].append(roots[row])
            one = _difference(target, prompts[row], generated[row], drafts[row], logits[row])
            worst = max(worst, (one, limits[row]), key=lambda pair: pair[0] / pair[1])
            found.cases += len(drafts[row]) + 1
        paths = [path_to(draft.parents, rng.randrange(-1, _NODES)) for draft in drafts]
        session.commit(rows, paths)
        for row in rows:
            generated[row] += drafts[row].tokens[list(paths[row])].tolist()
    said = f"largest difference {worst[0]:.1g} of the logits' spread"
    right = worst[0] <= worst[1]
    found.notes.append(said) if right else found.wrong.append(f"{said}, limit {worst[1]:.1g}")
    return found


def _rounds(target: Target, prompts: Sequence[Prompt]) -> int:
    """As many as fit into the shortest stream."""
    lengths = [(prompt.spec or target.spec).fixed_length for prompt in prompts]
    shortest = min([length for length in lengths if length is not None], default=_ROUNDS * (_NODES + 1))
    return max(min(_ROUNDS, shortest // (_NODES + 1)), 1)


def _draft(rng: random.Random, ids: Sequence[int], shape: Shape) -> Draft:
    tokens = torch.tensor([rng.choice(ids) for _ in range(_NODES)])
    return Draft(tokens=tokens, parents=shape(rng))


def _difference(
    target: Target, prompt: Prompt, generated: Sequence[int], draft: Draft, logits: Tensor
) -> float:
    """The largest difference from fresh runs over all nodes, in standard deviations."""
    tokens, worst = draft.tokens.tolist(), 0.0
    for node in range(-1, len(draft)):
        path = [tokens[step] for step in path_to(draft.parents, node)]
        fresh = fresh_logits(target, [*generated, *path], prompt).float()
        found = logits[node + 1].float()
        # What both rule out is equal; NaN in either is no agreement.
        apart = torch.where(found == fresh, 0.0, (found - fresh).abs()).nan_to_num(torch.inf, torch.inf)
        spread = fresh[fresh.isfinite()].std() + 1e-12
        worst = max(worst, float(apart.max() / spread))
    return worst
