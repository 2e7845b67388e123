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


# Passes are run without their padding where so much of them is left, in steps of so many symbols.
_WORTH, _SIZES = 0.75, 8

# The forward of these prompts, for models that read more of a prompt than its ids.
Bind = Callable[[Sequence[Prompt]], Forward]


class RaggedSession:
    """Rows of one batch; the cache is allocated once, and rows that join take the places of those that left.

    ``bind`` makes the forward of a batch whose prompts hold more than ids: ``rows`` of a ``Pass`` are places
    in the list that it was given. Prompts are run in pieces of ``chunk`` symbols, or whole where it is None:
    masks, and what is between layers, then take memory in proportion to a piece.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Prompt],
        capacity: Sequence[int],
        nodes: int,
        bind: Bind | None = None,
        chunk: int | None = None,
    ) -> None:
        self.forward, self._chunk = forward, chunk
        self.prompts = dict(enumerate(prompts))
        self.rows = list(self.prompts)
        self._bind, self._nodes = bind, nodes
        self._bound = {row: row for row in self.rows}
        self._room = dict(enumerate(capacity))
        # Short rows are padded to the longest draft, so every row needs room for a whole pass.
        self._one = torch.zeros((1, 1), dtype=torch.long, device=forward.like.device)
        self._last = torch.zeros(1, dtype=torch.long, device=forward.like.device)
        self._windowed = set(forward.attention.kinds) != {"full_attention"}
        self._no_masks = dict.fromkeys(forward.attention.kinds)
        self.cache = RaggedCache(forward.layers, len(prompts), self._capacity())
        # A drafter that ran a part of the next pass already says here how to run the rest.
        self.next_pass: Forward | None = None

    def _capacity(self) -> int:
        return entries(max(self._room.values()), self._nodes)

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
        step = again(length, width, forward.attention, forward.like, self._bound[row])
        logits = forward(torch.tensor([list(ids)], device=forward.like.device), step, cache, None)
        return logits[0]

    def _scoring(self) -> Forward:
        forward, self.next_pass = self.next_pass or self.forward, None
        return forward

    def prefill(self) -> Scores:
        """Run all prompts together; logits after the last symbol of each."""
        return self._prefill(self.rows, self.cache)

    def _prefill(self, rows: Sequence[int], cache: RaggedCache) -> Scores:
        prompts = [self.prompts[row] for row in rows]
        sizes = [len(prompt.ids) for prompt in prompts]
        ids = torch.zeros((len(sizes), max(sizes)), dtype=torch.long)
        for place, prompt in enumerate(prompts):
            ids[place, : sizes[place]] = prompt.ids
        found: dict[int, Tensor] = {}
        for start in range(0, max(sizes), self._chunk or max(sizes)):
            # Rows that have ended run on in step with the others: what that writes is written over.
            cache.ledger.lengths = [start] * len(sizes)
            piece = ids[:, start : start + (self._chunk or max(sizes))]
            found |= self._piece(rows, cache, piece, [size - 1 - start for size in sizes])
        cache.ledger.lengths = list(sizes)
        return Scores(logits=[found[place] for place in range(len(sizes))])

    def _piece(
        self, rows: Sequence[int], cache: RaggedCache, ids: Tensor, last: Sequence[int]
    ) -> dict[int, Tensor]:
        """Run a piece of the prompts: logits ``[1, V]`` of those whose ``last`` symbol is a column of it."""
        width, device = ids.shape[1], self.forward.like.device
        step = self._plan(rows, cache, [chain_parents(width - 1)] * len(rows), width, prefill=True)
        ended = {place: column for place, column in enumerate(last) if 0 <= column < width}
        columns = sorted(set(ended.values())) or [width - 1]
        keep = torch.tensor(columns, device=device)
        logits = self.forward(ids.to(device), step, cache, keep)
        return {place: logits[place, columns.index(column)][None] for place, column in ended.items()}

    def join(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /
    ) -> Scores | None:
        """Run the prompts of new rows alone, in places behind the others."""
        if self._bind is None and any(prompt.conditioning for prompt in prompts):
            return None
        self.prompts |= dict(zip(rows, prompts, strict=True))
        self._room |= dict(zip(rows, capacity, strict=True))
        place, self.rows = len(self.rows), [*self.rows, *rows]
        self._bound |= {row: row for row in rows}
        if self._bind is not None:
            self._bound = {row: number for number, row in enumerate(self.rows)}
            self.forward = self._bind([self.prompts[row] for row in self.rows])
        added = self.cache.add(len(rows), self._capacity())
        found = self._prefill(rows, added)
        self.cache.ledger.lengths[place:] = added.ledger.lengths
        return found

    def _plan(
        self,
        rows: Sequence[int],
        cache: RaggedCache,
        parents: Sequence[tuple[int, ...]],
        width: int,
        prefill: bool = False,
    ) -> Pass:
        ledger, forward, bound = cache.ledger, self.forward, [self._bound[row] for row in rows]
        ledger.open(width, forward.like.device)
        if len(rows) == 1 and not self._windowed and is_chain(parents[0]):
            start = ledger.lengths[0]
            mask = chain_mask(start, width, forward.like)
            return Pass({"full_attention": mask}, start, start + width, None, bound, prefill)
        return plan(ledger.lengths, parents, width, forward.attention, forward.like, bound, prefill)

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
        real = self._real(places, drafts, width)
        step = self._plan(self.rows, self.cache, parents, width)._replace(real=real)
        logits = self._scoring()(ids, step, self.cache, None)
        pairs = zip(places, drafts, strict=True)
        return Scores(logits=[logits[place, : len(draft) + 1] for place, draft in pairs])

    def _real(self, places: Sequence[int], drafts: Sequence[Draft], width: int) -> Tensor | None:
        """What of a pass is no padding, where leaving out the rest pays: on a processor."""
        device, whole = self.forward.like.device, len(self.rows) * width
        pairs = zip(places, drafts, strict=True)
        found = [place * width + column for place, draft in pairs for column in range(len(draft) + 1)]
        # Kernels are made for each new size, so let there be few: the last one is run several times.
        found += found[-1:] * (-len(found) % _SIZES)
        return torch.tensor(found) if device.type == "cpu" and len(found) <= _WORTH * whole else None

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
            step = self._plan(self.rows, self.cache, [()], 1)
        else:
            # One symbol sees all, so there is no mask to make.
            ledger.end, ledger.slots = start + 1, None
            step = Pass(self._no_masks, start, start + 1, None, [self._bound[self.rows[0]]])
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
        step = self._plan(self.rows, self.cache, [chain_parents(len(tokens) - 1)], len(tokens))
        logits = self.forward(ids, step, self.cache, self._last.fill_(len(tokens) - 1))[0]
        self.cache.ledger.lengths[0] += len(tokens)
        return logits

    def _score_one(self, root: int, draft: Draft) -> Scores:
        ids = torch.tensor([[root, *draft.ids]], device=self.forward.like.device)
        step = self._plan(self.rows, self.cache, [draft.parents], ids.shape[1])
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
        order = self.cache.drop([self.rows.index(row) for row in rows])
        self.rows = [self.rows[place] for place in order]
        for row in rows:
            del self.prompts[row], self._room[row], self._bound[row]


def entries(capacity: int, nodes: int) -> int:
    """Entries of a cache for rows of up to ``capacity`` symbols, with room for a pass over any draft."""
    return capacity + nodes + 2


def entry_bytes(forward: Forward, prompt: Prompt) -> int:
    """What one symbol of one row takes in a cache, found by running a prompt."""
    session = RaggedSession(forward, [prompt], [len(prompt.ids)], 0)
    with torch.inference_mode():
        session.prefill()
    return session.cache.entry_bytes
