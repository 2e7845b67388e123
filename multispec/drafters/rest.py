"""REST: what followed the last symbols in a corpus, as a tree of the most frequent continuations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from multispec.drafters.datastore import Datastore
from multispec.drafters.references import require_at_least
from multispec.drafters.window import each_stream
from multispec.errors import IncompatibleModelsError, UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.structures import PrefixTree

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rest:
    """Draft the most frequent continuations of the longest match in a datastore.

    He et al. (2023), "REST: Retrieval-Based Speculative Decoding", section 3: the longest suffix of the text,
    of ``max_match`` symbols down to ``min_match``, that occurs in the corpus; up to ``most`` of its
    continuations of ``length`` symbols go into a trie (the authors read 5,000; of more matches, evenly spaced
    ones tell the shares nearly as well); the ``num_draft_tokens`` prefixes with the most occurrences are the
    tree. A suffix array finds the match, and since its rows are sorted, each prefix of the trie is a run of
    neighbours.

    ``datastore`` is the path of a file from ``build_datastore``, or one that is open. ``tokenizer`` is the
    ``fingerprint`` of the tokenizer that the target's ids come from, to be held against the datastore's. With
    ``tree=False`` only the likeliest path is drafted, as it is for parallel slots.

    Raises:
        ModelLoadError: a datastore that is missing, foreign, truncated or empty.
        IncompatibleModelsError: a datastore of another tokenizer.
        UsageError: settings out of range.

    >>> Rest("corpus.datastore")                                                # doctest: +SKIP
    """

    name: ClassVar[str] = "rest"
    paper: ClassVar[str] = "He et al. 2023, arXiv 2311.08252"
    trained: ClassVar[bool] = False
    datastore: str | Path | Datastore
    num_draft_tokens: int = 32
    max_match: int = 16
    min_match: int = 2
    length: int = 10
    most: int = 512
    tokenizer: str = ""
    tree: bool = True
    _store: Datastore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, min_match=1, length=1, most=1)
        if not self.min_match <= self.max_match <= 16 or self.length > 16:
            raise UsageError(
                "rest needs min_match <= max_match <= 16 and length <= 16, the order in which datastores are "
                f"sorted: got {self.min_match}, {self.max_match} and {self.length}."
            )
        given = self.datastore
        store = given if isinstance(given, Datastore) else Datastore(Path(given))
        if self.tokenizer and store.tokenizer and self.tokenizer != store.tokenizer:
            raise IncompatibleModelsError(
                f"The datastore {store.path} was built with another tokenizer (fingerprint "
                f"{store.tokenizer}; that of the target is {self.tokenizer}). {store.todo}"
            )
        object.__setattr__(self, "_store", store)

    def begin(self, context: Context) -> DraftSession:
        """Nothing to keep but the file.

        Raises:
            IncompatibleModelsError: a datastore of a larger vocabulary.
        """
        if self._store.vocab_size > context.vocab_size:
            raise IncompatibleModelsError(
                f"The datastore {self._store.path} is for {self._store.vocab_size} symbols, and the target "
                f"has {context.vocab_size}. {self._store.todo}"
            )
        return each_stream(context, lambda spec: _Lookup(self, self._store, self.tree and spec.step == 1))


@dataclass(frozen=True)
class _Lookup:
    asked: Rest
    store: Datastore
    tree: bool

    def propose(self, request: Request) -> Draft:
        """The longest match, its continuations, the best of their prefixes."""
        ids, first, asked = request.history.ids, request.history.first, self.asked
        tail = ids[max(first, len(ids) - asked.max_match) :]
        n, low, high = self.store.longest_suffix(tail, asked.min_match)
        if not n:
            return Draft.empty()
        found = self.store.behind(n, low, high, asked.length, asked.most)
        depth, row, count = prefixes(found, self.store.vocab_size)
        if not self.tree:
            return Draft.chain(_likeliest(found, depth, row, count)[: request.budget.nodes])
        # Of equals the shallower, then the first: a prefix never comes before the one that it goes on from.
        best = np.lexsort((row, depth, -count))[: request.budget.nodes]
        tree = PrefixTree(request.budget.nodes)
        for line, end in zip(found[row[best]].tolist(), depth[best].tolist(), strict=True):
            tree.insert(line[:end])
        return tree.draft()

    def observe(self, observation: Observation) -> None:
        """The corpus does not change."""


def prefixes(found: _Ints, end: int) -> tuple[_Ints, _Ints, _Ints]:
    """Depth, first row and number of rows of each prefix in rows ``[N, length]``; ``end`` cuts one short."""
    columns = np.ascontiguousarray(found.T)
    differs, alive = np.zeros(len(found), dtype=bool), np.ones(len(found), dtype=bool)
    differs[:1] = True
    parts: list[tuple[_Ints, _Ints, _Ints]] = []
    for depth, column in enumerate(columns, 1):
        differs[1:] |= column[1:] != column[:-1]
        alive &= column != end
        starts = np.flatnonzero(differs)
        counts = np.diff(np.append(starts, len(found)))
        kept = alive[starts]
        if not kept.any():
            break
        parts.append((np.full(int(kept.sum()), depth), starts[kept], counts[kept]))
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    depths, rows, runs = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return depths, rows, runs


def _likeliest(found: _Ints, depth: _Ints, row: _Ints, count: _Ints) -> list[int]:
    """Down the trie, each time to the prefix that most rows share."""
    path: list[int] = []
    first, last = 0, len(found)
    for d in range(1, found.shape[1] + 1):
        inside = np.flatnonzero((depth == d) & (row >= first) & (row < last))
        if not len(inside):
            break
        best = inside[count[inside].argmax()]
        first, last = int(row[best]), int(row[best] + count[best])
        path.append(int(found[first, d - 1]))
    return path
