"""One row at a time in a model's own cache: for models that take neither our masks nor our cache.

Caches that can be cropped are cropped. Recurrent and convolutional states cannot: they are
snapshot before a draft is scored, and after a rejection what was accepted is replayed, inside the
next pass where it is short.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from multispec.errors import UnsupportedError
from multispec.protocols import Scores, walk
from multispec.stream import Draft, Prompt

# Longer leftovers are replayed at once, so that passes do not grow with a run of rejections.
_REPLAY_LIMIT = 8
_HOLDERS = (Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin)


@runtime_checkable
class Runner(Protocol):
    """How one row of a model is run."""

    def start(self, prompt: Prompt) -> tuple[Tensor, Any]:
        """Run a prompt: logits ``[1, V]`` after it, and the cache."""
        ...

    def step(self, ids: Sequence[int], cache: Any, keep: int) -> Tensor:
        """Run ``ids`` behind the cache: logits ``[keep, V]`` after the last ``keep`` of them."""
        ...


@dataclass
class _Row:
    prompt: Prompt
    cache: Any = None
    snapshot: Any = None
    pending: list[int] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    drafted: int = 0
    length: int = 0
    mark: Any = None
    marked: int = 0
    calls: int = 0

    def counted(self) -> int:
        """The passes since this was last asked."""
        found, self.calls = self.calls, 0
        return found


def snapshot(cache: Cache) -> Cache:
    """A copy that later passes cannot change: states are cloned, keys and values only
    re-referenced.

    Attention layers of a dynamic cache make new tensors when they grow, so their old ones stay as
    they are.
    """
    twin = copy.copy(cache)
    twin.layers = [_copy_layer(layer) for layer in cache.layers]
    return twin


def _copy_layer(layer: Any) -> Any:
    twin = copy.copy(layer)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(
                    twin,
                    name,
                    {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()},
                )
    return twin


def croppable(cache: Any) -> bool:
    """True when the cache can be put back as it was by cropping."""
    return bool(cache.is_croppable)


class RowwiseSession:
    """Each row on its own; drafts are chains."""

    def __init__(self, runner: Runner, prompts: Sequence[Prompt], parallel: bool = True) -> None:
        self.runner = runner
        self.parallel = parallel
        self._rows = {number: _Row(prompt) for number, prompt in enumerate(prompts)}

    def prefill(self) -> Scores:
        """Run each prompt."""
        return Scores(logits=[self._start(row) for row in self._rows.values()])

    def _start(self, row: _Row) -> Tensor:
        logits, row.cache = self.runner.start(row.prompt)
        row.length = len(row.prompt.ids)
        return logits

    def join(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /) -> Scores:
        """Run each new prompt."""
        new = {number: _Row(prompt) for number, prompt in zip(rows, prompts, strict=True)}
        self._rows |= new
        return Scores(logits=[self._start(row) for row in new.values()])

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run each row's leftovers, its root and its draft."""
        triples = zip(rows, roots, drafts, strict=True)
        logits = [self._score(self._rows[row], root, draft) for row, root, draft in triples]
        return Scores(logits=logits, calls=[self._rows[row].counted() for row in rows])

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        """Run and commit one symbol per row."""
        scores = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return list(scores.logits)

    def _score(self, row: _Row, root: int, draft: Draft) -> Tensor:
        if not draft.is_chain:
            raise UnsupportedError(
                "A tree of drafts needs attention that takes a mask of ancestors; this model runs in its own "
                "cache, one row at a time. Use a drafter that drafts chains."
            )
        row.fed = [*row.pending, root, *draft.ids]
        row.drafted = len(draft)
        row.snapshot = None if croppable(row.cache) else snapshot(row.cache)
        if row.snapshot is None:
            row.cache.activate_past_recording()
        return self._run(row, row.fed, len(draft) + 1)

    def _run(self, row: _Row, ids: Sequence[int], keep: int) -> Tensor:
        row.calls += 1 if self.parallel else len(ids)
        if self.parallel:
            return self.runner.step(ids, row.cache, keep)
        return torch.cat([self.runner.step([token], row.cache, 1) for token in ids])[-keep:]

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Crop what was rejected, or go back to the snapshot and remember what to replay."""
        for number, path in zip(rows, paths, strict=True):
            row = self._rows[number]
            row.length += 1 + len(path)
            self._roll_back(row, row.drafted - len(path))

    def _roll_back(self, row: _Row, rejected: int) -> None:
        if row.snapshot is None:
            row.cache.crop(-rejected)
            return
        row.pending = []
        if rejected:
            row.cache, row.pending = row.snapshot, row.fed[: len(row.fed) - rejected]
        if len(row.pending) > _REPLAY_LIMIT:
            self._run(row, row.pending, 1)
            row.pending = []

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit symbol after symbol."""
        return walk(self, row, tokens, choose)

    def checkpoint(self, number: int) -> None:
        """Remember the state of a row, for caches that cannot be cropped."""
        row = self._rows[number]
        if not croppable(row.cache):
            row.mark, row.marked = (snapshot(row.cache), list(row.pending)), row.length

    def rewind(self, number: int, length: int) -> int:
        """Go back to ``length`` symbols, or to the checkpoint before that; says where it stands now."""
        row = self._rows[number]
        if length < row.length:
            if croppable(row.cache):
                row.cache.crop(length - row.length)
                row.length = length
            else:
                (cache, pending), row.length = row.mark, row.marked
                row.cache, row.pending = snapshot(cache), list(pending)
        return row.length

    def length(self, number: int) -> int:
        """Symbols of a row that are behind it."""
        return self._rows[number].length

    def drop(self, rows: Sequence[int]) -> None:
        """Free the caches of rows that are done."""
        for row in rows:
            self._rows.pop(row, None)


class StateBytes(NamedTuple):
    """Bytes of one row's state: ``fixed``, and for each ``symbol``."""

    fixed: int
    symbol: int

    def of(self, symbols: int) -> int:
        """Those of a row that has grown to so many symbols."""
        return self.fixed + self.symbol * symbols


def state_bytes(runner: Runner, prompt: Prompt) -> StateBytes:
    """What a row takes, found by running the beginning of a prompt and one symbol behind it.

    A state that cannot be cropped is held three times: as it is, before the draft, and at a checkpoint.
    """
    with torch.inference_mode():
        _, cache = runner.start(replace(prompt, ids=prompt.ids[:1]))
        one = held_bytes(vars(cache))
        runner.step([0], cache, 1)
        symbol = held_bytes(vars(cache)) - one
    copies = 1 if croppable(cache) else 3
    return StateBytes(copies * (one - symbol), copies * symbol)


def held_bytes(state: object) -> int:
    """Bytes of all tensors that a cache holds, in its layers or beside them."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(held_bytes, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(held_bytes, state))
    return sum(map(held_bytes, vars(state).values())) if isinstance(state, _HOLDERS) else 0
