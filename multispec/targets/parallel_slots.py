"""Models with K parallel slots as targets: ragged batches of whole steps in one preallocated cache.

A step is one entry of the cache: K embeddings summed, K heads behind it. One pass scores all slots of several
steps. Encoder states are attended to by a cache of their own, which never rolls back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from multispec.cache import RaggedCache
from multispec.errors import UnsupportedError
from multispec.protocols import Capabilities, Scores, TargetSession
from multispec.stream import Draft, Prompt, StreamSpec


class Start(NamedTuple):
    """What a prompt is to the model: embeddings ``[S, C]`` that come first, steps ``[T, K]`` behind them.

    ``encoded [S, C]`` are the states of an encoder for cross-attention.
    """

    prefix: Tensor | None
    steps: Tensor
    encoded: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Across:
    """Encoder states of a batch ``[B, S, C]`` and their additive mask ``[B, 1, 1, S]``."""

    states: Tensor
    mask: Tensor

    def keep(self, rows: Tensor) -> Across:
        """Only these rows."""
        return Across(self.states[rows], self.mask[rows])


@runtime_checkable
class SlotModel(Protocol):
    """A decoder with K summed embeddings and K heads."""

    @property
    def layers(self) -> int:
        """How many caches a pass needs."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that masks and caches need."""
        ...

    def start(self, prompt: Prompt, /) -> Start:
        """Encode what conditions the model."""
        ...

    def embed(self, steps: Tensor, /) -> Tensor:
        """The embeddings ``[B, Q, C]`` of steps ``[B, Q, K]``."""
        ...

    def run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: Any, across: Across | None, /) -> Tensor:
        """All layers over embeddings ``[B, Q, C]`` at ``positions [B, Q]``; the last hidden states."""
        ...

    def heads(self, hidden: Tensor, /) -> Tensor:
        """Logits ``[..., K, V]`` of hidden states ``[..., C]``."""
        ...


class ParallelSlotsSession:
    """Rows of one batch; positions and lengths are in entries inside, in symbols outside."""

    def __init__(
        self,
        model: SlotModel,
        spec: StreamSpec,
        prompts: Sequence[Prompt],
        capacity: Sequence[int],
        nodes: int,
    ) -> None:
        self._model, self._step = model, spec.step
        self._starts = [model.start(prompt) for prompt in prompts]
        self._symbols = [len(prompt.ids) for prompt in prompts]
        self._sizes = [_entries(start) for start in self._starts]
        self.rows = list(range(len(prompts)))
        grown = [
            size + (room - symbols) // self._step
            for size, room, symbols in zip(self._sizes, capacity, self._symbols, strict=True)
        ]
        self.cache = RaggedCache(model.layers, len(prompts), max(grown) + nodes // self._step + 2)
        self._across = across(self._starts, model.like)
        self._pair: Any = self.cache
        if self._across is not None:
            self._pair = EncoderDecoderCache(self.cache, DynamicCache())

    def prefill(self) -> Scores:
        """Run all prompts in one pass: the logits ``[K, V]`` of each row's first step."""
        parts = [self._embedded(start) for start in self._starts]
        x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        hidden = self._pass(x)
        self.cache.ledger.lengths = list(self._sizes)
        last = torch.stack([hidden[row, size - 1] for row, size in enumerate(self._sizes)])
        return Scores(logits=list(self._model.heads(last)))

    def _embedded(self, start: Start) -> Tensor:
        steps = self._model.embed(start.steps.to(self._model.like.device)[None])[0]
        return steps if start.prefix is None else torch.cat([start.prefix.to(steps), steps])

    def _pass(self, x: Tensor) -> Tensor:
        ledger, like = self.cache.ledger, self._model.like
        width = x.shape[1]
        ledger.open(width, like.device)
        starts = torch.tensor(ledger.lengths, device=like.device)
        positions = starts[:, None] + torch.arange(width, device=like.device)
        return self._model.run(x, positions, causal(positions, ledger.end, like), self._pair, self._across)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run the last step and the drafted steps of these rows in one pass; rows left out idle along."""
        size = self._step
        steps = [[*roots[n * size : (n + 1) * size], *draft.ids] for n, draft in enumerate(drafts)]
        ids = torch.zeros((len(self.rows), max(map(len, steps))), dtype=torch.long)
        places = [self.rows.index(row) for row in rows]
        for place, symbols in zip(places, steps, strict=True):
            ids[place, : len(symbols)] = torch.tensor(symbols)
        embedded = self._model.embed(ids.view(len(ids), -1, size).to(self._model.like.device))
        logits = self._model.heads(self._pass(embedded)).flatten(1, 2)
        pairs = zip(places, steps, strict=True)
        return Scores(logits=[logits[place, : len(symbols)] for place, symbols in pairs])

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run and commit one step per row."""
        found = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return found.logits

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Not for steps.

        Raises:
            UnsupportedError: always; a walk goes symbol by symbol.
        """
        raise UnsupportedError(
            f"A model with {self._step} parallel slots cannot be walked symbol by symbol: its slots move "
            "together. Use score and commit."
        )

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the last step and the drafted steps on each path."""
        for row, path in zip(rows, paths, strict=True):
            self.cache.commit(self.rows.index(row), range(len(path) // self._step))

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: this cache can go back anywhere."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the whole steps of the first ``length`` symbols."""
        steps = max(length - self._symbols[row], 0) // self._step
        self.cache.rewind(self.rows.index(row), self._sizes[row] + steps)
        return self.length(row)

    def length(self, row: int) -> int:
        """Symbols of a row that are in the cache."""
        steps = self.cache.ledger.lengths[self.rows.index(row)] - self._sizes[row]
        return self._symbols[row] + steps * self._step

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch."""
        gone = set(rows)
        kept = [place for place, row in enumerate(self.rows) if row not in gone]
        if kept and len(kept) < len(self.rows):
            self.cache.keep(kept)
            if self._across is not None:
                index = torch.tensor(kept, device=self._model.like.device)
                self._across = self._across.keep(index)
                self._pair.cross_attention_cache.batch_select_indices(index)
        self.rows = [self.rows[place] for place in kept]


def _entries(start: Start) -> int:
    return len(start.steps) + (0 if start.prefix is None else len(start.prefix))


def causal(positions: Tensor, end: int, like: Tensor) -> Tensor:
    """Additive ``[B, 1, Q, end]``: every entry sees those at its own position and before."""
    hidden = torch.arange(end, device=like.device) > positions[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min)[:, None]


def across(starts: Sequence[Start], like: Tensor) -> Across | None:
    """The encoder states of all rows, padded; None for a model without cross-attention."""
    states = [start.encoded.to(like) for start in starts if start.encoded is not None]
    if not states:
        return None
    mask = torch.full((len(states), max(map(len, states))), torch.finfo(like.dtype).min).to(like)
    for row, own in enumerate(states):
        mask[row, : len(own)] = 0
    return Across(torch.nn.utils.rnn.pad_sequence(states, batch_first=True), mask[:, None, None])


class ParallelSlotsTarget:
    """A model with K parallel slots; prompts hold the steps before the first one, K symbols for each.

    ``context_length`` is in symbols. Chains only: a step has one successor.
    """

    def __init__(self, model: SlotModel, spec: StreamSpec, context_length: int | None = None) -> None:
        self.model = model
        self.spec = spec
        self.context_length = context_length
        self.device: torch.device = model.like.device
        why = "its slots move together, step by step"
        self.capabilities = Capabilities(supports_tree=False, way="parallel_slots", why=why)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return ParallelSlotsSession(self.model, self.spec, prompts, capacity, nodes)
