"""A Kneser-Ney n-gram model, estimated from ids in seconds, drafts with its exact q."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multispec.drafters.references import reference_ids, require_at_least
from multispec.drafters.retracting import Steady
from multispec.drafters.starts import own_key
from multispec.drafters.stopping import Stopping
from multispec.drafters.structured import grown, refuse_chains
from multispec.drafters.window import each_stream
from multispec.errors import IncompatibleModelsError, UsageError
from multispec.processing import Places
from multispec.protocols import Context, DraftSession, Request
from multispec.sampling import Law, Purpose
from multispec.stream import Draft, Observation, StreamSpec
from multispec.structures import Structure, structure_of

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order: ``keys`` (number of the first k - 1 symbols, last symbol), sorted."""

    keys: _Ints
    counts: _Ints
    discount: float


class NgramCounts:
    """An interpolated Kneser-Ney model of some texts.

    Kneser and Ney (1995), in the interpolated form of Chen and Goodman (1999), equations 2 to 4: with c the
    counts of the highest order and, of lower ones, the number of distinct symbols seen before the k-gram,

        p(x | w) = max(c(w x) - D, 0) / c(w .) + D N(w .) / c(w .) p(x | w without its first symbol)

    and D = n1 / (n1 + 2 n2) for each order. Order 1 is mixed with the uniform law, so no symbol has mass 0.

    Raises:
        UsageError: an order below 1, no texts, or ids outside the vocabulary.

    >>> model = NgramCounts([[0, 1, 0, 1, 0]], vocab_size=3, order=2)
    >>> int(model.probs([0]).argmax())
    1
    """

    def __init__(self, texts: Iterable[Sequence[int]], *, vocab_size: int, order: int = 4) -> None:
        if order < 1 or vocab_size < 1:
            raise UsageError(
                f"An n-gram model needs order >= 1 and vocab_size >= 1: got {order}, {vocab_size}."
            )
        known = reference_ids("ngram_model", texts)
        highest = max((max(text) for text in known), default=-1)
        if not 0 <= highest < vocab_size:
            raise UsageError(
                f"An n-gram model needs texts of ids below vocab_size={vocab_size}: got {len(known)} texts, "
                f"largest id {highest}. Pass the texts as lists of ids of the model's own tokenizer."
            )
        self.vocab_size, self.order = vocab_size, order
        # Every text ends with a symbol of its own, which is counted as a context and never as a successor.
        self._ids = np.array([x for text in known for x in (*text, vocab_size)], dtype=np.int64)
        self._orders = self._estimate()
        self._unigram = self._first()

    def _estimate(self) -> list[_Order]:
        numbers, keys, counts = self._count()
        found: list[_Order] = []
        for k in range(self.order):
            c = counts[k] if k + 1 == len(keys) else self._preceded(numbers, keys, k)
            c = np.where(keys[k] % (self.vocab_size + 1) == self.vocab_size, 0, c)
            n1, n2 = int((c == 1).sum()), int((c == 2).sum())
            found.append(_Order(keys[k], c, n1 / (n1 + 2 * n2) if n1 and n2 else 0.5))
        return found

    def _count(self) -> tuple[list[_Ints], list[_Ints], list[_Ints]]:
        """For each order the number of the k-gram that starts at each place, the keys, and their counts."""
        ids, base = self._ids, self.vocab_size + 1
        numbers, keys, counts = list[_Ints](), list[_Ints](), list[_Ints]()
        before = np.zeros(len(ids), dtype=np.int64)
        for k in range(self.order):
            key = before[: len(ids) - k] * base + ids[k:]
            unique, before, count = np.unique(key, return_inverse=True, return_counts=True)
            numbers.append(before)
            keys.append(unique)
            counts.append(count)
        return numbers, keys, counts

    @staticmethod
    def _preceded(numbers: list[_Ints], keys: list[_Ints], k: int) -> _Ints:
        """How many different symbols stand before each k-gram, at the start of all texts one more."""
        longer, shorter = numbers[k + 1], numbers[k]
        _, first = np.unique(longer, return_index=True)
        c = np.bincount(shorter[first + 1], minlength=len(keys[k]))
        c[shorter[:1]] += 1
        return c

    def _first(self) -> NDArray[np.float64]:
        one = self._orders[0]
        c = np.zeros(self.vocab_size + 1)
        c[one.keys] = one.counts
        c = c[: self.vocab_size]
        left = one.discount * (c > 0).sum() / c.sum()
        found: NDArray[np.float64] = np.maximum(c - one.discount, 0) / c.sum() + left / self.vocab_size
        return found

    def probs(self, context: Sequence[int]) -> NDArray[np.float64]:
        """p ``[V]`` behind the last symbols of ``context``."""
        p = self._unigram.copy()
        for k in range(2, self.order + 1):
            w = context[len(context) - k + 1 :]
            number = self._number(w) if len(w) == k - 1 else None
            if number is None:
                break
            one, base = self._orders[k - 1], self.vocab_size + 1
            first, last = np.searchsorted(one.keys, (number * base, number * base + self.vocab_size))
            c, total = one.counts[first:last], one.counts[first:last].sum()
            if not total:
                break
            p *= one.discount * (c > 0).sum() / total
            p[one.keys[first:last] % base] += np.maximum(c - one.discount, 0) / total
        return p

    def _number(self, w: Sequence[int]) -> int | None:
        number = 0
        for k, x in enumerate(w):
            keys, key = self._orders[k].keys, number * (self.vocab_size + 1) + x
            number = int(np.searchsorted(keys, key))
            if not 0 <= x < self.vocab_size or number == len(keys) or keys[number] != key:
                return None
        return number


@dataclass(frozen=True)
class NgramModel:
    """Draft from an n-gram model of texts of ids, one symbol after the other.

    The drafter that costs nothing: Leviathan et al. (2023), section 4.1, measure an n-gram model too; the
    model here is interpolated Kneser-Ney of ``order`` symbols (``NgramCounts``), estimated from
    ``references`` when the drafter is made. q goes through the processors and settings of the row, and is
    drawn from with the target's noise under a ``coupled`` verifier, else with noise of its own and on record
    as q. With ``sample=False`` the best symbol of q is drafted, as a point mass.

    With a ``structure``, a name such as "eagle2" or an object of ``multispec.structures``, it drafts trees.

    ``vocab_size`` is that of the target. Parallel slots get the best symbols of each slot.

    Raises:
        UsageError: nothing to draft, no texts, ids outside the vocabulary, an order below 1.

    >>> NgramModel(references=[[0, 1, 0, 1]], vocab_size=2).order
    4
    """

    name: ClassVar[str] = "ngram_model"
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192; Kneser and Ney 1995"
    trained: ClassVar[bool] = False
    references: Sequence[Sequence[int]]
    vocab_size: int
    order: int = 4
    num_draft_tokens: int = 5
    sample: bool = True
    structure: str | Structure | None = None
    _counts: NgramCounts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1)
        counts = NgramCounts(self.references, vocab_size=self.vocab_size, order=self.order)
        object.__setattr__(self, "_counts", counts)
        if self.structure is not None:
            object.__setattr__(self, "structure", structure_of(self.structure))

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep but the counts.

        Raises:
            IncompatibleModelsError: a target of another vocabulary.
            UnsupportedError: a structure where only chains are scored.
        """
        if self.vocab_size != context.vocab_size:
            raise IncompatibleModelsError(
                f"This n-gram model is of {self.vocab_size} symbols, and the target has "
                f"{context.vocab_size}: estimate it with vocab_size= that of the target."
            )
        if self.structure is not None:
            refuse_chains(self.name, context)
            structure, counts = structure_of(self.structure), self._counts
            return Steady(each_stream(context, lambda _: _Tree(structure, counts, context.device)))
        walk = each_stream(context, lambda spec: _Walk(spec, self._counts, self.sample, context.device))
        return Steady(walk)


@dataclass(frozen=True)
class _Tree:
    structure: Structure
    counts: NgramCounts
    device: torch.device

    def propose(self, request: Request) -> Draft:
        """A tree from the laws behind its paths."""
        history, reach = request.history, self.counts.order - 1
        tail = history.ids[max(history.first, len(history) - reach) :]

        def logits(paths: Sequence[tuple[int, ...]]) -> Tensor:
            rows = [torch.from_numpy(self.counts.probs([*tail, *path])) for path in paths]
            return torch.stack(rows).log().to(self.device)

        return grown(self.structure, request, logits)

    def observe(self, observation: Observation) -> None:
        """The counts are those of the references."""


@dataclass(frozen=True)
class _Walk:
    spec: StreamSpec
    counts: NgramCounts
    sample: bool
    device: torch.device

    def propose(self, request: Request) -> Draft:
        """Symbol by symbol, up to the first that is unsure."""
        history, reach = request.history, self.counts.order - 1
        tail = history.ids[max(history.first, len(history) - reach) :]
        drafted, rows, ended = list[int](), list[Tensor](), request.budget.nodes < 1
        stopping = Stopping(request.budget)
        while not ended:
            scores = torch.from_numpy(self.counts.probs([*tail, *drafted])).log().to(self.device)[None]
            law = self._law(request, scores, drafted)
            if law.invalid_places():
                break
            drafted.append(self._draw(request, law, len(drafted)))
            rows.append(law.probs)
            ended = stopping.behind(law, drafted[-1])
        sampled = self._samples(request) and bool(rows)
        return Draft.chain(drafted, torch.cat(rows) if sampled else None)

    def _samples(self, request: Request) -> bool:
        return self.sample and self.spec.step == 1 and not request.coupled and not request.pipeline.greedy

    def _law(self, request: Request, scores: Tensor, drafted: list[int]) -> Law:
        """q, by the rules of the row; of parallel slots, whose rules see whole steps, within the slot."""
        if self.spec.step == 1:
            return request.pipeline.law(scores, Places(request.history, (tuple(drafted),)))
        slot = self.spec.slots[len(drafted) % self.spec.step]
        inside = torch.full_like(scores, -torch.inf)
        span = slice(slot.offset, slot.offset + slot.size)
        inside[:, span] = scores[:, span]
        return Law(inside, greedy=True)

    def _draw(self, request: Request, law: Law, depth: int) -> int:
        position = [request.round_start + depth]
        if self._samples(request):
            return int(request.noise.choose(law.probs, position, Purpose.DRAFT, own_key(request)))
        if self.sample and request.coupled:
            return int(request.noise.symbols(law, position))
        return int(law.mode)

    def observe(self, observation: Observation) -> None:
        """The counts are those of the references."""
