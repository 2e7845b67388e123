"""Batches of ragged rows in one preallocated cache, with trees: for attention that takes our own mask."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.protocols import Scores, walk
from multispec.stream import Draft, Prompt
from multispec.targets.masks import Attention, Pass, again, chain_mask, plan
from multispec.targets.views import MakeLinear, Modules, Sublayers, Watch
from multispec.tree import chain_parents, is_chain


@runtime_checkable
class Forward(Protocol):
    """One pass of a model over ``ids [B, Q]``; logits ``[B, Q, V]``, or only at ``keep`` (columns)."""

    @property
    def layers(self) -> int:
        """How many caches a pass needs."""
        ...

    @property
    def attention(self) -> Attention:
        """The kinds of its layers."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that masks and caches need."""
        ...

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run, writing keys and values into ``cache``."""
        ...


@runtime_checkable
class Layered(Forward, Protocol):
    """A forward of which a draft can be made: the same weights, with less to compute."""

    @property
    def model(self) -> Any:
        """The model whose weights it reads."""
        ...

    def without(self, skipped: Sublayers) -> Forward:
        """The same weights with some sublayers left out; caches keep their numbers."""
        ...

    def with_linear(self, make: MakeLinear) -> Forward:
        """The same formulas with other linear maps, made of the same weights: once for every ``make``."""
        ...

    def observing(self, watch: Watch) -> Forward:
        """The same, with its queries and hidden states shown to ``watch``."""
        ...

    def reaching(self, positions: int) -> Forward:
        """The same, for passes that name up to ``positions`` positions."""
        ...


class ModuleForward:
    """A transformers decoder-only model as it is, given our positions, masks and cache."""

    def __init__(self, model: Any, attention: Attention, layers: int) -> None:
        self.model = model
        self.attention = attention
        self.layers = layers
        self.like = next(p for p in model.parameters() if p.is_floating_point())
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._made: dict[MakeLinear, Forward] = {}

    def without(self, skipped: Sublayers) -> Forward:
        """The same modules with some sublayers left out; caches keep their numbers."""
        return self._of(Modules(self.model, self.layers).without(skipped))

    def with_linear(self, make: MakeLinear) -> Forward:
        """The same modules with other linear maps, made of the same weights: once for every ``make``."""
        if make not in self._made:
            self._made[make] = self._of(Modules(self.model, self.layers).with_linear(make))
        return self._made[make]

    def observing(self, watch: Watch) -> Forward:
        """The same modules, watched."""
        return self._of(Modules(self.model, self.layers).observing(watch))

    def reaching(self, positions: int) -> Forward:
        """Itself: a module takes any position that it can take at all."""
        return self

    def _of(self, model: Any) -> ModuleForward:
        twin = copy.copy(self)
        twin.model, twin._made = model, {}
        return twin

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run the model's own forward."""
        masks = dict(step.masks)
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        if mask is None or (isinstance(mask, dict) and None in mask.values()):
            mask = None
        extra = {"logits_to_keep": keep} if keep is not None and self._keeps else {}
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=step.positions(self.like.device),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        logits: Tensor = out.logits
        return logits if keep is None or self._keeps else logits[:, keep]


class Metered:
    """Another forward with something around each pass: a clock, a counter."""

    def __init__(
        self, forward: Forward, around: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
    ) -> None:
        self.layers, self.attention, self.like = forward.layers, forward.attention, forward.like
        self.inner = forward
        self._run = around(forward.__call__)

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run the other."""
        return self._run(ids, step, cache, keep)


class RaggedSession:
    """Rows of one batch; the cache is allocated once, rows that are done are taken out of it."""

    def __init__(
        self, forward: Forward, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int
    ) -> None:
        self.forward = forward
        self.prompts = prompts
        self.rows = list(range(len(prompts)))
        # Short rows are padded to the longest draft, so every row needs room for a whole pass.
        self._one = torch.zeros((1, 1), dtype=torch.long, device=forward.like.device)
        self._last = torch.zeros(1, dtype=torch.long, device=forward.like.device)
        self._windowed = set(forward.attention.kinds) != {"full_attention"}
        self._no_masks = dict.fromkeys(forward.attention.kinds)
        self.cache = RaggedCache(forward.layers, len(prompts), max(capacity) + nodes + 2)
        # A drafter that ran a part of the next pass already says here how to run the rest.
        self.next_pass: Forward | None = None

    def through(self, forward: Forward) -> RaggedSession:
        """The same rows in the same cache, run by ``forward``: to be rewound before this session goes on."""
        twin = copy.copy(self)
        twin.forward, twin.next_pass = forward, None
        return twin

    def rerun(self, row: int, ids: Sequence[int], forward: Forward) -> Tensor:
        """Logits ``[Q, V]`` of ``forward`` over the last committed symbols ``ids`` of a row; keeps nothing.

        What is committed stays as it is: the symbols are run anew behind it.
        """
        cache = self.cache.alone(self.rows.index(row))
        length, width = cache.ledger.lengths[0], len(ids)
        cache.ledger.open(width, forward.like.device)
        step = again(length, width, forward.attention, forward.like, row)
        logits = forward(torch.tensor([list(ids)], device=forward.like.device), step, cache, None)
        return logits[0]

    def _scoring(self) -> Forward:
        forward, self.next_pass = self.next_pass or self.forward, None
        return forward

    def prefill(self) -> Scores:
        """Run all prompts in one pass; logits after the last symbol of each."""
        device = self.forward.like.device
        sizes = [len(prompt.ids) for prompt in self.prompts]
        ids = torch.zeros((len(sizes), max(sizes)), dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            ids[row, : sizes[row]] = prompt.ids
        last = sorted({size - 1 for size in sizes})
        step = self._plan([tuple(range(-1, max(sizes) - 2))] * len(sizes), max(sizes), prefill=True)
        keep = torch.tensor(last, device=device)
        logits = self.forward(ids.to(device), step, self.cache, keep)
        self.cache.ledger.lengths = list(sizes)
        picked = [logits[row, last.index(size - 1)][None] for row, size in enumerate(sizes)]
        return Scores(logits=picked)

    def _plan(self, parents: Sequence[tuple[int, ...]], width: int, prefill: bool = False) -> Pass:
        ledger, forward = self.cache.ledger, self.forward
        ledger.open(width, forward.like.device)
        if len(self.rows) == 1 and not self._windowed and is_chain(parents[0]):
            start = ledger.lengths[0]
            mask = chain_mask(start, width, forward.like)
            return Pass({"full_attention": mask}, start, start + width, None, self.rows, prefill)
        return plan(ledger.lengths, parents, width, forward.attention, forward.like, self.rows, prefill)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run the root and the draft of these rows in one pass; rows left out idle along."""
        if len(self.rows) == 1:
            return self._score_one(roots[0], drafts[0])
        width = 1 + max(map(len, drafts))
        places = [self.rows.index(row) for row in rows]
        parents: list[tuple[int, ...]] = [()] * len(self.rows)
        for place, draft in zip(places, drafts, strict=True):
            parents[place] = draft.parents
        ids = self._ids(places, roots, drafts, width)
        logits = self._scoring()(ids, self._plan(parents, width), self.cache, None)
        pairs = zip(places, drafts, strict=True)
        return Scores(logits=[logits[place, : len(draft) + 1] for place, draft in pairs])

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        """Run and commit one symbol per row."""
        if len(self.rows) == 1:
            return [self._extend_one(tokens[0])]
        scores = self.score(rows, tokens, [Draft.empty()] * len(rows))
        self.commit(rows, [()] * len(rows))
        return list(scores.logits)

    def _extend_one(self, token: int) -> Tensor:
        ledger = self.cache.ledger
        start = ledger.lengths[0]
        if self._windowed:
            step = self._plan([()], 1)
        else:
            # One symbol sees all, so there is no mask to make.
            ledger.end, ledger.slots = start + 1, None
            step = Pass(self._no_masks, start, start + 1, None, self.rows)
        logits = self.forward(self._one.fill_(token), step, self.cache, None)[0]
        ledger.lengths[0] = start + 1
        return logits

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit tokens, then symbol after symbol: the inner loop of drafting."""
        if len(self.rows) > 1:
            return walk(self, row, tokens, choose)
        logits = self._append(tokens) if len(tokens) > 1 else self._extend_one(tokens[0])
        calls = 1
        while (following := choose(logits)) is not None:
            logits = self._extend_one(following)
            calls += 1
        return calls

    def _append(self, tokens: Sequence[int]) -> Tensor:
        """Run and commit tokens of the only row; logits after the last."""
        ids = torch.tensor([tokens], device=self.forward.like.device)
        step = self._plan([chain_parents(len(tokens) - 1)], len(tokens))
        logits = self.forward(ids, step, self.cache, self._last.fill_(len(tokens) - 1))[0]
        self.cache.ledger.lengths[0] += len(tokens)
        return logits

    def _score_one(self, root: int, draft: Draft) -> Scores:
        ids = torch.tensor([[root, *draft.ids]], device=self.forward.like.device)
        step = self._plan([draft.parents], ids.shape[1])
        return Scores(logits=[self._scoring()(ids, step, self.cache, None)[0]])

    def _ids(
        self, places: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft], width: int
    ) -> Tensor:
        device = self.forward.like.device
        ids = torch.zeros((len(self.rows), width), dtype=torch.long, device=device)
        for place, root, draft in zip(places, roots, drafts, strict=True):
            ids[place, 0] = root
            ids[place, 1 : len(draft) + 1] = draft.tokens
        return ids

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the root and the path of each row."""
        for row, path in zip(rows, paths, strict=True):
            self.cache.commit(self.rows.index(row), path)

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: this cache can go back anywhere."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the first ``length`` symbols of a row."""
        self.cache.rewind(self.rows.index(row), length)
        return self.length(row)

    def length(self, row: int) -> int:
        """Symbols of a row that are in the cache."""
        return self.cache.ledger.lengths[self.rows.index(row)]

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch."""
        gone = set(rows)
        kept = [place for place, row in enumerate(self.rows) if row not in gone]
        if kept and len(kept) < len(self.rows):
            self.cache.keep(kept)
        self.rows = [self.rows[place] for place in kept]
