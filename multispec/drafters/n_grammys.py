"""N-Grammys: some continuations side by side, out of the context and out of the model's own bigrams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from multispec.drafters.ranked import Ranked
from multispec.drafters.references import require_at_least
from multispec.drafters.window import each_stream
from multispec.errors import IncompatibleModelsError, UnsupportedError
from multispec.protocols import Context, DraftSession, Request, Target
from multispec.stream import Draft, Observation, Prompt
from multispec.structures import PrefixTree

# Of more places where the last symbols occurred, the latest are read.
_LATEST = 64


def model_bigrams(target: Target, top: int = 8, batch: int = 256) -> Int[Tensor, "V k"]:
    """The ``top`` best successors of every symbol, with that symbol alone as the prompt of ``target``.

    The model-derived bigram of Stewart et al. (2024), section 4.1: made once per model, V short passes.

    Raises:
        UnsupportedError: a target whose prompts are other symbols than its stream, or whose slots are
        parallel.
    """
    spec = target.spec
    if spec.prompt_size is not None or spec.step > 1:
        raise UnsupportedError(
            "model_bigrams prompts the target with one symbol of its stream: got a stream whose prompts "
            "are other "
            "symbols, or whose slots move together. Use NGrammys without bigrams: those of the context."
        )
    found: list[Tensor] = []
    for first in range(0, spec.vocab_size, batch):
        symbols = range(first, min(first + batch, spec.vocab_size))
        prompts = [Prompt(ids=torch.tensor([x])) for x in symbols]
        with torch.inference_mode():
            session = target.begin(prompts, [2] * len(prompts), 1)
            logits = torch.cat(list(session.prefill().logits))
            session.drop(range(len(prompts)))
        found.append(logits.topk(min(top, logits.shape[-1])).indices.cpu())
    return torch.cat(found)


@dataclass(frozen=True)
class NGrammys:
    """Draft ``rows`` continuations at once: those the context has, filled up with the model's bigrams.

    Stewart et al. (2024), "The N-Grammys: Accelerating Autoregressive Inference with Learning-Free Batched
    Speculation", section 4: k rows of w symbols (w = num_draft_tokens / rows). First the continuations of the
    last ``query`` symbols in the context, the most frequent first, of equals the latest; the rest begin with
    the best successors of the last symbol by ``bigrams [V, k]`` and go on with the best successor of each
    symbol. ``model_bigrams`` makes that table; without it, the bigrams are counted in the context. The rows
    are packed into a prefix tree, so that equal beginnings are scored once.

    ``rows=1`` is a chain, for models that score chains only; parallel slots always get that.

    Raises:
        UsageError: nothing to draft, no rows, or an empty query.

    >>> NGrammys(rows=4, num_draft_tokens=32).query
    1
    """

    name: ClassVar[str] = "n_grammys"
    paper: ClassVar[str] = "Stewart et al. 2024, arXiv 2411.03786"
    trained: ClassVar[bool] = False
    num_draft_tokens: int = 30
    rows: int = 5
    query: int = 1
    bigrams: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, rows=1, query=1, num_draft_tokens=self.rows)

    def begin(self, context: Context) -> DraftSession:
        """An index per row.

        Raises:
            IncompatibleModelsError: bigrams of another vocabulary.
        """
        table: list[list[int]] | None = None
        if self.bigrams is not None:
            if len(self.bigrams) != context.vocab_size:
                raise IncompatibleModelsError(
                    f"These bigrams are of {len(self.bigrams)} symbols, and the target has "
                    f"{context.vocab_size}. Make them with model_bigrams(target)."
                )
            table = self.bigrams.tolist()
        return each_stream(
            context, lambda spec: _Mixed(self, context.vocab_size, self.rows if spec.step == 1 else 1, table)
        )


@dataclass
class _Mixed:
    asked: NGrammys
    vocab_size: int
    rows: int
    table: list[list[int]] | None
    # where each n-gram of the context was followed by something
    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    counted: dict[int, Ranked] = field(default_factory=dict)
    done: int = 0

    def propose(self, request: Request) -> Draft:
        """Rows out of the context, then rows out of bigrams, packed."""
        ids, first = request.history.ids, request.history.first
        self._extend(ids, first)
        width = max(request.budget.nodes // self.rows, 1)
        tree, begun = PrefixTree(request.budget.nodes), set[tuple[int, ...]]()
        for row in self._mixed(ids, first, width):
            if row and row not in begun:
                begun.add(row)
                tree.insert(row)
            if len(begun) == self.rows or len(tree) == tree.room:
                break
        return tree.draft()

    def _extend(self, ids: list[int], first: int) -> None:
        query = self.asked.query
        for end in range(max(self.done, first + 1), len(ids)):
            if end - query >= first:
                self.places.setdefault(tuple(ids[end - query : end]), []).append(end)
            if self.table is None:
                known = self.counted.get(ids[end - 1])
                if known is None:
                    known = self.counted[ids[end - 1]] = Ranked(self.rows)
                known.add(ids[end])
        self.done = len(ids)

    def _mixed(self, ids: list[int], first: int, width: int) -> Iterator[tuple[int, ...]]:
        if len(ids) - first >= self.asked.query:
            places = self.places.get(tuple(ids[len(ids) - self.asked.query :]), [])[-_LATEST:]
            # The latest first: the sort by counts is stable.
            counts = Counter([tuple(ids[place : place + width]) for place in reversed(places)])
            yield from (self._drawable(row) for row in sorted(counts, key=counts.__getitem__, reverse=True))
        for x in self._successors(ids[-1], self.rows) if len(ids) > first else ():
            row = [x]
            while len(row) < width and (following := self._successors(row[-1], 1)):
                row += following
            yield self._drawable(row)

    def _successors(self, x: int, count: int) -> list[int]:
        if self.table is not None:
            return self.table[x][:count] if x < len(self.table) else []
        known = self.counted.get(x)
        return [] if known is None else known.best[:count]

    def _drawable(self, row: Sequence[int]) -> tuple[int, ...]:
        """The symbols before the first that the target does not have."""
        if max(row, default=0) < self.vocab_size:
            return tuple(row)
        end = next((i for i, x in enumerate(row) if x >= self.vocab_size), len(row))
        return tuple(row[:end])

    def observe(self, observation: Observation) -> None:
        """The context is read from the committed symbols themselves."""
