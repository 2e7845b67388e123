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
from multispec.protocols import MAX_NODES, Capabilities, Scores, TargetSession
from multispec.stream import Draft, Prompt, StreamSpec
from multispec.targets.rowwise import held_bytes


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

    def joined(self, other: Across) -> tuple[Across, int]:
        """With other rows behind these, padded to the longest; and how long that is."""
        size = max(self.states.shape[1], other.states.shape[1])
        pad, hidden = torch.nn.functional.pad, torch.finfo(self.mask.dtype).min
        states = [pad(one.states, (0, 0, 0, size - one.states.shape[1])) for one in (self, other)]
        masks = [pad(one.mask, (0, size - one.mask.shape[-1]), value=hidden) for one in (self, other)]
        return Across(torch.cat(states), torch.cat(masks)), size


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


class _Sizes(NamedTuple):
    """Of one row: ``symbols`` and entries of its prompt, entries when it has ``grown``."""

    symbols: int
    prompt: int
    grown: int


@dataclass
class _Batch:
    """Rows of a pass: their cache, what an encoder gave, and a pair with the keys and values made of that."""

    cache: RaggedCache
    pair: EncoderDecoderCache | None
    across: Across | None

    def keep(self, rows: Sequence[int]) -> None:
        """Let the encoder's part follow the rows, in this order."""
        if self.across is None or self.pair is None or not rows:
            return
        index = torch.tensor(rows, device=self.across.states.device)
        self.across = self.across.keep(index)
        self.pair.cross_attention_cache.batch_select_indices(index)

    def joined(self, other: _Batch) -> _Batch:
        """With the rows of another batch behind these, in the cache of these."""
        if self.across is None or other.across is None or self.pair is None or other.pair is None:
            return self
        if len(self.cache.ledger.lengths) == len(other.cache.ledger.lengths):  # nobody else is left
            pair = EncoderDecoderCache(self.cache, other.pair.cross_attention_cache)
            return _Batch(self.cache, pair, other.across)
        both, size = self.across.joined(other.across)
        cross = DynamicCache()
        layers: list[list[Any]] = [pair.cross_attention_cache.layers for pair in (self.pair, other.pair)]
        for number, (mine, theirs) in enumerate(zip(*layers, strict=True)):
            keys = torch.cat([_padded(mine.keys, size), _padded(theirs.keys, size)])
            values = torch.cat([_padded(mine.values, size), _padded(theirs.values, size)])
            cross.update(keys, values, number)
        return _Batch(self.cache, EncoderDecoderCache(self.cache, cross), both)


def _padded(states: Any, size: int) -> Tensor:
    found: Tensor = torch.nn.functional.pad(states, (0, 0, 0, size - states.shape[2]))
    return found


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
        self._model, self._step, self._nodes = model, spec.step, nodes
        self.rows: list[int] = []
        self._sizes: dict[int, _Sizes] = {}
        self._starts = self._opened(range(len(prompts)), prompts, capacity)
        self.cache = RaggedCache(model.layers, len(prompts), self._room())
        self._batch = self._paired(self.cache, self._starts)

    def _opened(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int]) -> list[Start]:
        starts = [self._model.start(prompt) for prompt in prompts]
        for row, prompt, room, start in zip(rows, prompts, capacity, starts, strict=True):
            symbols, size = len(prompt.ids), _entries(start)
            self._sizes[row] = _Sizes(symbols, size, size + (room - symbols) // self._step)
        self.rows = [*self.rows, *rows]
        return starts

    @property
    def encoded_bytes(self) -> int:
        """What one state of an encoder takes in a row, with the keys and values made of it."""
        batch = self._batch
        if batch.across is None or batch.pair is None:
            return 0
        held = batch.across.states.nbytes + held_bytes(batch.pair.cross_attention_cache)
        return held // (len(batch.across.states) * batch.across.states.shape[1])

    def _room(self) -> int:
        return max(one.grown for one in self._sizes.values()) + self._nodes // self._step + 2

    def _paired(self, cache: RaggedCache, starts: Sequence[Start]) -> _Batch:
        beside = across(starts, self._model.like)
        return _Batch(cache, None if beside is None else EncoderDecoderCache(cache, DynamicCache()), beside)

    def prefill(self) -> Scores:
        """Run all prompts in one pass: the logits ``[K, V]`` of each row's first step."""
        starts, self._starts = self._starts, []
        return self._prefill(self.rows, starts, self._batch)

    def join(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /
    ) -> Scores | None:
        """Run the prompts of new rows alone, in places behind the others."""
        place = len(self.rows)
        starts = self._opened(rows, prompts, capacity)
        added = self._paired(self.cache.add(len(rows), self._room()), starts)
        found = self._prefill(rows, starts, added)
        self.cache.ledger.lengths[place:] = added.cache.ledger.lengths
        self._batch = self._batch.joined(added)
        return found

    def _prefill(self, rows: Sequence[int], starts: Sequence[Start], batch: _Batch) -> Scores:
        parts = [self._embedded(start) for start in starts]
        x = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        hidden = self._pass(x, batch)
        sizes = [self._sizes[row].prompt for row in rows]
        batch.cache.ledger.lengths = sizes
        last = torch.stack([hidden[place, size - 1] for place, size in enumerate(sizes)])
        return Scores(logits=list(self._model.heads(last)))

    def _embedded(self, start: Start) -> Tensor:
        steps = self._model.embed(start.steps.to(self._model.like.device)[None])[0]
        return steps if start.prefix is None else torch.cat([start.prefix.to(steps), steps])

    def _pass(self, x: Tensor, batch: _Batch) -> Tensor:
        ledger, like = batch.cache.ledger, self._model.like
        width = x.shape[1]
        ledger.open(width, like.device)
        starts = torch.tensor(ledger.lengths, device=like.device)
        positions = starts[:, None] + torch.arange(width, device=like.device)
        caches: Any = batch.cache if batch.pair is None else batch.pair
        return self._model.run(x, positions, causal(positions, ledger.end, like), caches, batch.across)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run the last step and the drafted steps of these rows in one pass; rows left out idle along."""
        size = self._step
        steps = [[*roots[n * size : (n + 1) * size], *draft.ids] for n, draft in enumerate(drafts)]
        ids = torch.zeros((len(self.rows), max(map(len, steps))), dtype=torch.long)
        places = [self.rows.index(row) for row in rows]
        for place, symbols in zip(places, steps, strict=True):
            ids[place, : len(symbols)] = torch.tensor(symbols)
        embedded = self._model.embed(ids.view(len(ids), -1, size).to(self._model.like.device))
        logits = self._model.heads(self._pass(embedded, self._batch)).flatten(1, 2)
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
        own = self._sizes[row]
        steps = max(length - own.symbols, 0) // self._step
        self.cache.rewind(self.rows.index(row), own.prompt + steps)
        return self.length(row)

    def length(self, row: int) -> int:
        """Symbols of a row that are in the cache."""
        own = self._sizes[row]
        steps = self.cache.ledger.lengths[self.rows.index(row)] - own.prompt
        return own.symbols + steps * self._step

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch."""
        order = self.cache.drop([self.rows.index(row) for row in rows])
        self._batch.keep(order)
        self.rows = [self.rows[place] for place in order]
        for row in rows:
            del self._sizes[row]


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
        self._measured: dict[bool, tuple[int, int]] = {}
        why = "its slots move together, step by step"
        self.capabilities = Capabilities(supports_tree=False, way="parallel_slots", why=why)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return ParallelSlotsSession(self.model, self.spec, prompts, capacity, nodes)

    @torch.inference_mode()
    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found by encoding its prompt."""
        step, start = self.spec.step, self.model.start(prompt)
        # Prompts with something encoded, and prompts without, take different amounts.
        kind = start.encoded is not None
        if kind not in self._measured:
            session = ParallelSlotsSession(self.model, self.spec, [prompt], [len(prompt.ids) + step], 0)
            session.prefill()
            self._measured[kind] = session.cache.entry_bytes, session.encoded_bytes
        entry, state = self._measured[kind]
        grown = _entries(start) + (capacity - len(prompt.ids)) // step
        encoded = 0 if start.encoded is None else len(start.encoded)
        return entry * (grown + MAX_NODES // step + 2) + state * encoded
