"""Trainer of the recipes: Muon and AdamW on a wall-clock schedule, with checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipes._text_data import Windows


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and in what batches a model is trained."""

    minutes: float
    length: int
    long_length: int
    long_share: float  # last share of the time, on windows of `long_length`
    micro_tokens: int
    muon_rate: float
    adam_rate: float
    warmup_share: float
    decay_share: float
    save_seconds: float

    def rate(self, done: float) -> float:
        """Share of the peak learning rate: warm-up, plateau, linear decay to zero."""
        warm = 0.02 + done / self.warmup_share
        return max(0.0, min(1.0, warm, (1 - done) / self.decay_share))

    def window(self, done: float) -> int:
        """Window length: short for most of the time, long at the end."""
        return self.long_length if done >= 1 - self.long_share else self.length


@dataclass
class Progress:
    """How far a stage has come, as its checkpoint keeps it."""

    step: int = 0
    seconds: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)  # tokens of each kind


Loss = Callable[[Tensor, float], Tensor]
Batch = dict[str, Tensor]


def autocast(device: str) -> AbstractContextManager[Any]:
    """Mixed precision on CUDA; plain float32 elsewhere."""
    if device.startswith("cuda"):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Workers of one thread each: on busy cores they lose less than threads inside operators."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T for matrix = U S V^T, by a quintic Newton-Schulz iteration."""
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon:
    """Steps along orthogonalised momentum, in the dtype of the weights; a kernel is a matrix, row by row.

    torch.optim.Muon iterates in bfloat16, which is far too slow on a CPU without it.
    """

    def __init__(self, weights: Sequence[Tensor], momentum: float = 0.95) -> None:
        self.weights = weights
        self.momentum = momentum
        self.buffers = [torch.zeros_like(w) for w in weights]

    def step(self, rate: float, pool: ThreadPoolExecutor) -> None:
        """Update every weight from its gradient."""
        list(pool.map(lambda i: self._update(i, rate), range(len(self.weights))))

    @torch.no_grad()
    def _update(self, i: int, rate: float) -> None:
        weight, buffer = self.weights[i], self.buffers[i]
        gradient = cast(Tensor, weight.grad)
        buffer.lerp_(gradient, 1 - self.momentum)
        update = orthogonal(gradient.lerp(buffer, self.momentum).flatten(1))
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        weight.add_(update.view_as(weight), alpha=-rate * scale)


def batches(
    windows: Mapping[str, Windows], shares: Mapping[str, float], seen: Mapping[str, int],
    rows: int, length: int,
) -> Iterator[Batch]:  # fmt: skip
    """Yield about `rows` windows at a time, shared among the kinds, after the tokens seen."""
    rows = max(2, rows + rows % 2)  # even, to keep two workers equally busy
    counts = {kind: max(1, round(rows * share)) for kind, share in shares.items()}
    streams = {kind: windows[kind].stream(length, seen.get(kind, 0)) for kind in counts}
    while True:
        yield {k: torch.stack([next(streams[k]) for _ in range(n)]) for k, n in counts.items()}


class Trainer:
    """Trains one model within a wall-clock budget and keeps checkpoints named after `path`."""

    def __init__(
        self, model: nn.Module, path: Path, schedule: Schedule, loss: Loss,
        pool: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.model, self.path, self.schedule = model, path, schedule
        self.loss, self.pool = loss, pool
        named = {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
        self.weights = list(named.values())
        self.device = str(self.weights[0].device)
        hidden = [n for n, weight in named.items() if weight.ndim >= 2 and "embed" not in n]
        self.muon = Muon([named[n] for n in hidden])
        others = [weight for n, weight in named.items() if n not in hidden]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        self.progress = Progress()
        self.started = time.monotonic()

    @property
    def done(self) -> float:
        """Share of the budget spent."""
        return self.progress.seconds / (60 * self.schedule.minutes)

    def run(self, batches_from: Callable[[dict[str, int], int], Iterator[Batch]]) -> None:
        """Train until the budget is spent; `batches_from(tokens seen, window length)` feeds it."""
        self.resume()
        length, stream = 0, cast(Iterator[Batch], iter(()))
        saved = logged = time.monotonic()
        while self.done < 1:
            if length != (wanted := self.schedule.window(self.done)):
                length, stream = wanted, batches_from(self.progress.seen, wanted)
            loss, now = self.timed_step(stream)
            if now - logged > min(30.0, self.schedule.save_seconds):
                logged = now
                self.log(loss)
            if now - saved > self.schedule.save_seconds:
                saved = now
                self.save()
        self.save()

    def timed_step(self, stream: Iterator[Batch]) -> tuple[float, float]:
        """Make a step and charge the budget with it; return the loss and the time after it."""
        started = time.monotonic()
        loss = self.step(next(stream))
        now = time.monotonic()
        self.progress.seconds += now - started
        return loss, now

    def step(self, batch: Batch) -> float:
        """Make one optimiser step and return the mean loss before it."""
        rows = torch.cat(list(batch.values()))
        parts = torch.split(rows, max(1, self.schedule.micro_tokens // rows.shape[1]))
        results = list(self.pool.map(self.gradients, parts))
        for weight, *grads in zip(self.weights, *(r[1] for r in results), strict=True):
            weight.grad = torch.stack(grads).sum(0) / len(rows)
        self.apply()
        self.progress.step += 1
        for kind, some in batch.items():
            self.progress.seen[kind] = self.progress.seen.get(kind, 0) + some.numel()
        return sum(r[0] for r in results) / len(rows)

    def gradients(self, rows: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """Loss and gradients of some rows, both as sums over rows."""
        with autocast(self.device):
            loss = self.loss(rows.to(self.device), self.done) * len(rows)
        return float(loss.detach()), torch.autograd.grad(loss, self.weights)

    def apply(self) -> None:
        """Step both optimisers at the scheduled rate."""
        rate = self.schedule.rate(self.done)
        for group in self.adam.param_groups:
            group["lr"] = rate * self.schedule.adam_rate
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.adam.step()
        self.muon.step(rate * self.schedule.muon_rate, self.pool)

    def log(self, loss: float) -> None:
        """Print one line of progress."""
        values = {"loss": round(loss, 4), **asdict(self.progress)}
        print(self.path.name, json.dumps(values), flush=True)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.path.with_suffix(".pt")
        if not path.exists():
            return
        saved = torch.load(path, map_location=self.device, weights_only=True)
        load_weights(self.model, self.path)
        self.adam.load_state_dict(saved["adam"])
        self.muon.buffers = saved["muon"]
        self.progress = Progress(**saved["progress"])

    def save(self) -> None:
        """Write weights and optimiser state, each by an atomic rename."""
        state = {"adam": self.adam.state_dict(), "muon": self.muon.buffers}
        state["progress"] = asdict(self.progress)
        partial, weights = self.path.with_suffix(".partial"), self.model.state_dict()
        weights.pop("lm_head.weight", None)  # tied to the embeddings
        save_file(weights, partial)
        os.replace(partial, self.path.with_suffix(".safetensors"))
        torch.save(state, partial)
        os.replace(partial, self.path.with_suffix(".pt"))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the newest checkpoint at `path` into a model, whose embeddings may be tied."""
    weights = load_file(path.with_suffix(".safetensors"), device=str(next(model.parameters()).device))
    missing = set(model.load_state_dict(weights, strict=False).missing_keys)
    if missing - {"lm_head.weight"}:
        raise ValueError(f"the checkpoint {path} lacks {sorted(missing)}")
