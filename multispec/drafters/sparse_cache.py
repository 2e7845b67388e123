"""The target drafts on a small part of its own key/value cache, for long contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.cache import RaggedCache, RaggedLayer
from multispec.drafters.draft_model import DraftModelSession
from multispec.drafters.self_draft import Itself
from multispec.drafters.skip_layers import check_length
from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from multispec.protocols import MAX_NODES, Context, DraftSession, Request, Scores
from multispec.stream import Draft, Observation, Prompt
from multispec.targets.masks import Attention, Pass
from multispec.targets.ragged import Forward, RaggedSession
from multispec.targets.views import Watch

SELECTIONS = ("streaming", "snapkv", "retrieval")
# SnapKV's observation window and pooling; TriForce's chunks.
_OBSERVED, _POOL, _CHUNK = 32, 7, 8


@dataclass(frozen=True)
class SparseCache:
    """Draft with the target itself on ``budget`` entries of its cache; verify on all of them.

    Chen et al. (2024), MagicDec, section 4: same weights, a draft cache of fixed size, so that a drafted
    symbol costs no more the longer the context is. ``selection`` says which entries of the prompt and of what
    was generated are kept: ``streaming`` the first ``sinks`` and the latest (Xiao et al. 2023, StreamingLLM);
    ``snapkv`` those that the last 32 queries look at most, by head, pooled over 7 neighbours, and the latest
    32 (Li et al. 2024); ``retrieval`` whole chunks of 8 whose mean key the last query likes best, and the
    latest 32 (Sun et al. 2024, TriForce, section 4.1). Entries are copies of the target's own, also of what
    is committed later; every ``refresh`` symbols they are chosen anew. Up to ``budget`` symbols a context is
    kept whole, and drafts are the target's own.

    Raises:
        UsageError: a budget that has no room for sinks and latest, a refresh of nothing.

    >>> SparseCache(budget=256, selection="snapkv").budget
    256
    """

    name: ClassVar[str] = "sparse_cache"
    paper: ClassVar[str] = "Chen et al. 2024 (MagicDec), arXiv 2408.11049"
    trained: ClassVar[bool] = False
    selection: str = "streaming"
    budget: int = 512
    sinks: int = 4
    refresh: int = 128
    num_draft_tokens: int = 5

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)
        if self.selection not in SELECTIONS:
            raise UnknownNameError("selection", self.selection, SELECTIONS)
        least = self.sinks + 1 if self.selection == "streaming" else _OBSERVED + _CHUNK
        if self.budget < least or self.sinks < 0 or self.refresh < 1:
            raise UsageError(
                f"sparse_cache with {self.selection!r} keeps {least} entries at least and chooses anew every "
                f"refresh >= 1 symbols: got budget={self.budget}, sinks={self.sinks}, refresh={self.refresh}."
            )

    def begin(self, context: Context) -> DraftSession:
        """Make room for the entries that will be kept.

        Raises:
            UnsupportedError: layers that look back a window or a chunk only.
        """
        return SparseSession(self, self.itself(context, self.name))

    def itself(self, context: Context, name: str) -> Itself:
        """The target of a context, for a drafter of that name.

        Raises:
            UnsupportedError: a target without such a cache, or layers that look back a part of it only.
        """
        itself = Itself(context, name)
        kinds = set(itself.forward.attention.kinds)
        if kinds != {"full_attention"}:
            raise UnsupportedError(
                f"{name} chooses among all entries of a cache, and layers of this target look at a "
                f"part of them already: {sorted(kinds - {'full_attention'})}. Use skip_layers or early_exit."
            )
        return itself

    def chosen(self, itself: Itself, row: int, ids: Sequence[int]) -> Callable[[RaggedLayer], Tensor]:
        """Which committed entries of a row to keep: for a layer, indices ``[heads, n]`` or ``[1, n]``.

        ``ids`` are the row's symbols. ``snapkv`` and ``retrieval`` look at the queries of the last of them,
        in one watched pass.
        """
        length = itself.session.length(row)
        if length <= self.budget:
            return lambda layer: torch.arange(length)[None]
        if self.selection == "streaming":
            latest = torch.arange(length - self.budget + self.sinks, length)
            kept = torch.cat([torch.arange(self.sinks), latest])[None]
            return lambda layer: kept
        watch, place = Watch(), itself.session.rows.index(row)
        observed = _OBSERVED if self.selection == "snapkv" else 1
        itself.session.rerun(row, ids[length - observed : length], itself.forward.observing(watch))
        rule = _most_seen if self.selection == "snapkv" else _nearest_chunks
        return lambda layer: rule(watch.queries[layer.index][0], layer.keys[place, :, :length], self.budget)


def _most_seen(queries: Tensor, keys: Tensor, budget: int) -> Tensor:
    """SnapKV: ``queries [heads, Q, C]`` vote by their attention on ``keys [kv, S, C]``; the latest Q stay."""
    kv, length, size = keys.shape
    observed = queries.shape[1]
    grouped = queries.unflatten(0, (kv, -1)).flatten(1, 2)
    weights = (grouped @ keys[:, : length - observed].transpose(1, 2) / size**0.5).softmax(-1)
    votes = F.avg_pool1d(weights.sum(1)[:, None], _POOL, 1, _POOL // 2, count_include_pad=False)[:, 0]
    best = votes.topk(budget - observed, dim=-1).indices.sort(-1).values
    return _with_latest(best, length, observed)


def _nearest_chunks(queries: Tensor, keys: Tensor, budget: int) -> Tensor:
    """TriForce: chunks of keys by the product of their mean with the last query, summed over a group."""
    kv, length, size = keys.shape
    latest = _OBSERVED + (length - _OBSERVED) % _CHUNK
    means = keys[:, : length - latest].unflatten(1, (-1, _CHUNK)).mean(2)
    last = queries[:, -1].unflatten(0, (kv, -1)).sum(1)
    count = max(1, (budget - latest) // _CHUNK)
    best = (means @ last[:, :, None])[:, :, 0].topk(count, dim=-1).indices.sort(-1).values
    inside = torch.arange(_CHUNK, device=keys.device)
    return _with_latest((best[:, :, None] * _CHUNK + inside).flatten(1), length, latest)


def _with_latest(best: Tensor, length: int, latest: int) -> Tensor:
    rest = torch.arange(length - latest, length, device=best.device)
    return torch.cat([best, rest.expand(len(best), -1)], 1)


class _Shifted:
    """The target over a cache of fewer entries, at the positions that its symbols really have.

    ``offsets`` says for every row how many entries were left out.
    """

    def __init__(self, full: Forward, offsets: dict[int, int]) -> None:
        self.layers: int = full.layers
        self.attention: Attention = full.attention
        self.like: Tensor = full.like
        self._full, self._offsets = full, offsets

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        by = [self._offsets[row] for row in step.rows]
        if step.table is None:
            moved = step._replace(start=step.start + by[0], end=step.end + by[0])
        else:
            moved = step._replace(table=step.table + torch.tensor(by, device=step.table.device)[:, None])
        return self._full(ids, moved, cache, keep)


class FewEntries:
    """A ``TargetSession`` over copies of chosen entries of rows of the target's cache.

    Who drafts with it does so inside ``current``, and names rows by their place among ``itself.rows()``.
    """

    def __init__(self, asked: SparseCache, itself: Itself, nodes: int = MAX_NODES) -> None:
        self._asked, self._base, self._itself = asked, itself.session, itself
        rows = self._sources = itself.rows()
        self._places = {row: place for place, row in enumerate(rows)}
        base = itself.session.cache.ledger
        self._offsets = dict.fromkeys(range(len(rows)), 0)
        # How many symbols of a row were there when its entries were chosen; -1: they were not yet.
        self._since = dict.fromkeys(self._offsets, -1)
        forward = _Shifted(itself.forward.reaching(base.capacity), self._offsets)
        room = asked.budget + asked.refresh + _CHUNK
        empty = [Prompt(ids=torch.zeros(0, dtype=torch.long))] * len(rows)
        self._few = RaggedSession(forward, empty, [min(room, base.capacity)] * len(rows), nodes)
        self.extra = 0

    def prefill(self) -> Scores:
        """Nothing to run: the target ran the prompts."""
        return Scores(logits=[self._few.forward.like.new_zeros(1, 1)] * len(self._sources))

    @contextmanager
    def current(self, requests: Sequence[Request]) -> Iterator[None]:
        """Follow what the target has committed; at the end forget what was drafted inside."""
        for request in requests:
            if request.budget.nodes > 0:
                for branch in self._itself.branches(request.row):
                    self.follow(self._places[branch], partial(self._itself.ids, request, branch))
        lengths = {place: self.length(place) for place in self._of([request.row for request in requests])}
        try:
            yield
        finally:
            for place, length in lengths.items():
                self.rewind(place, length)

    def _of(self, rows: Sequence[int]) -> list[int]:
        return [self._places[branch] for row in rows for branch in self._itself.branches(row)]

    def follow(self, place: int, ids: Callable[[], list[int]]) -> None:
        """Hold what the target has committed since, or entries chosen anew."""
        length = self._base.length(self._sources[place])
        since = self._since[place]
        if since < 0 or length - since > self._asked.refresh:
            self._choose(place, ids)
            return
        held = self.length(place)
        if held < length:
            index = torch.arange(held, length)[None]
            self._copy(place, lambda layer: index, self._few.length(place))

    def _choose(self, place: int, ids: Callable[[], list[int]]) -> None:
        row = self._sources[place]
        length = self._base.length(row)
        self.extra += length > self._asked.budget and self._asked.selection != "streaming"
        self._copy(place, self._asked.chosen(self._itself, row, ids()), 0)
        self._since[place] = length
        self._offsets[place] = length - self._few.length(place)

    def _copy(self, place: int, chosen: Callable[[RaggedLayer], Tensor], start: int) -> None:
        """Put the chosen entries of every layer behind the first ``start`` that are held."""
        source = self._base.rows.index(self._sources[place])
        target = self._few.rows.index(place)
        end = start
        for theirs, own in zip(self._base.cache.ragged, self._few.cache.ragged, strict=True):
            if not own.is_initialized:
                own.lazy_initialization(theirs.keys, theirs.values)
            index = chosen(theirs).to(theirs.keys.device)
            end = start + index.shape[1]
            for to, of in ((own.keys, theirs.keys), (own.values, theirs.values)):
                picked = index[:, :, None].expand(of.shape[1], -1, of.shape[-1])
                to[target, :, start:end] = of[source].gather(1, picked)
        self._few.cache.ledger.lengths[target] = end

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run roots and drafts behind the entries."""
        return self._few.score(rows, roots, drafts)

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep them for this draft."""
        self._few.commit(rows, paths)

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run one symbol per row and keep it for this draft."""
        return self._few.extend(rows, tokens)

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run symbol after symbol and keep them for this draft."""
        return self._few.walk(row, tokens, choose)

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: this cache can go back anywhere."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the first ``length`` symbols of a row."""
        return self._few.rewind(row, length - self._offsets[row]) + self._offsets[row]

    def length(self, row: int) -> int:
        """Symbols of a row up to where its entries end."""
        return self._few.length(row) + self._offsets[row]

    def drop(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._few.drop(rows)

    def leave(self, rows: Sequence[int]) -> None:
        """Free what is held for these rows of the target, which are done."""
        self.drop(self._of(rows))


class SparseSession:
    """The walk of a draft model over few entries, which follow the target's own cache."""

    def __init__(self, asked: SparseCache, itself: Itself) -> None:
        self._few = FewEntries(asked, itself)
        self._walks: DraftModelSession = itself.drafting(lambda base, rows: self._few, asked.num_draft_tokens)

    @property
    def calls(self) -> int:
        """Passes over few entries, and those that were made to choose them."""
        return self._walks.calls + self._few.extra

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Follow what was committed, draft, and forget what was drafted."""
        with self._few.current(requests):
            return self._walks.propose(requests)

    def observe(self, row: int, observation: Observation) -> None:
        """Nothing to roll back: the exact entries are copied before the next draft."""

    def retract(self, row: int, length: int) -> None:
        """Nothing to forget: drafts are gone when they are handed over."""

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._few.leave(rows)
