"""Logits against logits: drafts scored at once and rolled back, against fresh runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multispec.checking.drafters import fresh_logits
from multispec.checking.equality import noise_of
from multispec.checking.prompts import usable_ids
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
    rng, found, limit = random.Random(1), Finding(), noise_of(target)
    ids = usable_ids(target)
    prefixes = [prompt.ids.tolist() for prompt in prompts]
    capacity = [len(prefix) + _ROUNDS * (_NODES + 1) for prefix in prefixes]
    session = target.begin(prompts, capacity, _NODES)
    session.prefill()
    rows, worst = range(len(prompts)), 0.0
    for _ in range(_ROUNDS):
        roots = [rng.choice(ids) for _ in rows]
        drafts = [_draft(rng, ids, shape) for _ in rows]
        logits = session.score(rows, roots, drafts).logits
        for row in rows:
            prefixes[row].append(roots[row])
            one = _difference(target, prompts[row], prefixes[row], drafts[row], logits[row])
            worst = max(worst, one)
            found.cases += len(drafts[row]) + 1
        paths = [path_to(draft.parents, rng.randrange(-1, _NODES)) for draft in drafts]
        session.commit(rows, paths)
        for row in rows:
            prefixes[row] += drafts[row].tokens[list(paths[row])].tolist()
    said = f"largest difference {worst:.1g} of the logits' spread"
    found.notes.append(said) if worst <= limit else found.wrong.append(f"{said}, limit {limit:.1g}")
    return found


def _draft(rng: random.Random, ids: Sequence[int], shape: Shape) -> Draft:
    tokens = torch.tensor([rng.choice(ids) for _ in range(_NODES)])
    return Draft(tokens=tokens, parents=shape(rng))


def _difference(target: Target, prompt: Prompt, prefix: Sequence[int], draft: Draft, logits: Tensor) -> float:
    """The largest difference from fresh runs over all nodes, in standard deviations."""
    tokens, worst = draft.tokens.tolist(), 0.0
    for node in range(-1, len(draft)):
        path = [tokens[step] for step in path_to(draft.parents, node)]
        fresh = fresh_logits(target, [*prefix, *path], prompt).float()
        apart = (logits[node + 1].float() - fresh).abs().max() / (fresh.std() + 1e-12)
        worst = max(worst, float(apart))
    return worst
