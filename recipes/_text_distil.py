"""Distillation of the text draft: the target's hidden states, its samples, and the loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LlamaForCausalLM

from recipes._text_data import KINDS, Windows
from recipes._text_trainer import autocast

SAMPLED = "sampled"
Scored = tuple[Tensor, Tensor]  # token rows [B, S] and the target's hidden states [B, S, D]


@dataclass(frozen=True)
class Plan:
    """How many lessons to prepare, and the most minutes for each kind."""

    windows: int  # of each corpus kind
    window: int
    batches: int  # of sampled rows
    rows: int
    length: int
    minutes: float
    seed: int


@dataclass(frozen=True)
class Lessons:
    """Tokens with the target's last hidden states, from which its logits follow cheaply."""

    tokens: Tensor  # [N]
    hidden: Tensor  # [N, D] float16
    ends: Tensor  # [3]: where books, code and sampled text end

    def save(self, path: Path) -> None:
        """Write the lessons to one file."""
        save_file(vars(self), path)

    @staticmethod
    def load(path: Path) -> Lessons:
        """Read the lessons from a file."""
        return Lessons(**load_file(path))

    def windows(self, seed: int) -> dict[str, Windows]:
        """Windows over the positions of each kind; the batches index tokens and hidden."""
        cuts = [0, *self.ends.tolist()]
        spans = zip((*KINDS, SAMPLED), cuts[:-1], cuts[1:], strict=True)
        return {kind: Windows(np.arange(a, b), seed, jitter=False) for kind, a, b in spans}


def hidden_states(model: LlamaForCausalLM, rows: Tensor, cache: DynamicCache | None = None) -> Tensor:
    """Hidden states `[B, S, D]` of token rows `[B, S]`, after the last norm."""
    with autocast(str(model.device)):
        out = model.model(input_ids=rows, past_key_values=cache, use_cache=cache is not None)
    return cast(Tensor, out.last_hidden_state)


@torch.inference_mode()
def score(model: LlamaForCausalLM, rows: Tensor) -> Scored:
    """Return token rows with the target's hidden states for them, on the CPU."""
    return rows, hidden_states(model, rows.to(model.device)).half().cpu()


@torch.inference_mode()
def sample(model: LlamaForCausalLM, prompts: Tensor, length: int, seed: int) -> Scored:
    """Continue prompts up to `length`, each row at a temperature of its own from 0.4 to 1."""
    rng = torch.Generator(model.device).manual_seed(seed)
    temperature = torch.linspace(0.4, 1.0, len(prompts), device=model.device)[:, None]
    cache, step = DynamicCache(config=model.config), prompts.to(model.device)
    rows, hidden = [step], [hidden_states(model, step, cache)]
    for _ in range(length - prompts.shape[1]):
        logits = model.lm_head(hidden[-1][:, -1].to(model.dtype)).float() / temperature
        step = torch.multinomial(logits.softmax(-1), 1, generator=rng)
        rows.append(step)
        hidden.append(hidden_states(model, step, cache))
    return torch.cat(rows, 1).cpu(), torch.cat(hidden, 1).half().cpu()


def collect(job: Callable[[int], Scored], jobs: int, minutes: float, pool: ThreadPoolExecutor) -> Scored:
    """Run numbered jobs, two at a time, until all are done or the time is over; flatten rows."""
    end, parts = time.monotonic() + 60 * minutes, list[Scored]()
    while len(parts) < jobs and (time.monotonic() < end or not parts):
        parts += pool.map(job, range(len(parts), len(parts) + 2))
    tokens = torch.cat([part[0].flatten() for part in parts])
    return tokens, torch.cat([part[1].flatten(0, 1) for part in parts])


def prepare(
    target: LlamaForCausalLM, corpus: Mapping[str, Windows], plan: Plan, pool: ThreadPoolExecutor
) -> Lessons:
    """Return lessons from the corpus and from the target's own continuations of it."""
    rows = {k: list(islice(corpus[k].stream(plan.window, 0), plan.windows)) for k in KINDS}

    def scored(kind: str, i: int) -> Scored:
        return score(target, rows[kind][i % plan.windows][None])

    def continued(i: int) -> Scored:
        return sample(target, prompts(corpus, plan.rows, plan.seed + i), plan.length, plan.seed + i)

    jobs = [(partial(scored, kind), plan.windows) for kind in KINDS]
    jobs += [(partial(continued), plan.batches)]
    parts = [collect(job, count, plan.minutes, pool) for job, count in jobs]
    ends = torch.tensor([len(tokens) for tokens, _ in parts]).cumsum(0)
    return Lessons(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), ends)


def prompts(corpus: Mapping[str, Windows], rows: int, seed: int, length: int = 32) -> Tensor:
    """Short windows `[B, length]` of both kinds, in random order of temperature."""
    rng = np.random.default_rng(seed)
    picked = [corpus[KINDS[int(rng.random() < 0.4)]].random(length, rng) for _ in range(rows)]
    return torch.stack(picked)


def low_rank_head(head: Tensor, hidden: Tensor, rank: int) -> Tensor:
    """Tied embeddings `[V, rank]` whose logits come closest to those of head `[V, D]`.

    With hidden states `[N, D]` whitened to Z = H L^-T, the logits are Z (E L)^T; the best factor
    of that rank is E L on its leading right singular vectors, for hidden states of variance one,
    such as the last norm of the draft returns.
    """
    ridge = 1e-4 * torch.eye(hidden.shape[1], device=hidden.device)
    factor: Tensor = head @ torch.linalg.cholesky(hidden.T @ hidden / len(hidden) + ridge)
    basis: Tensor = torch.linalg.svd(factor, full_matrices=False)[2][:rank]
    return factor @ basis.T


def distillation_loss(p: Tensor, logits: Tensor, done: float) -> Tensor:
    """Forward KL to the target's probabilities `[..., V]`, giving way to total variation.

    One minus the total variation is the chance that speculative sampling accepts a draft token;
    from a fresh draft its gradient is too weak to start with.
    """
    likelihood = F.cross_entropy(logits.flatten(0, -2), p.flatten(0, -2))
    weight = min(max((done - 0.3) / 0.4, 0.0), 0.9)
    if weight == 0:
        return likelihood
    variation = (logits.softmax(-1) - p).abs().sum(-1).mean() / 2
    return (1 - weight) * likelihood + weight * variation


def acceptance(p_logits: Tensor, q_logits: Tensor, temperature: float) -> Tensor:
    """Expected acceptance sum_x min(p, q) of one drafted token, at every position."""
    p, q = ((x / temperature).softmax(-1) for x in (p_logits, q_logits))
    return torch.minimum(p, q).sum(-1)
