"""TriForce: a small model drafts for the target on few entries of its cache, which drafts for the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from multispec.drafters.cascade import CascadeSession
from multispec.drafters.draft_model import DraftModel
from multispec.drafters.model_rows import ModelRows
from multispec.drafters.references import require_at_least
from multispec.drafters.self_draft import Borrowed, Itself
from multispec.drafters.sparse_cache import FewEntries, SparseCache
from multispec.protocols import Context, DraftSession, Request
from multispec.stream import Draft, Observation


@dataclass(frozen=True)
class TriForce:
    """Draft with the target on few entries of its cache, in fewer passes since ``model`` drafts for it.

    Sun et al. (2024), "TriForce: Lossless Acceleration of Long Sequence Generation with Hierarchical
    Speculative Decoding", section 4.2 and algorithm 1: a small model drafts ``inner_tokens`` (gamma_1)
    symbols, the target on ``budget`` entries of its key/value cache verifies them, and again, until it has
    ``num_draft_tokens`` (gamma_2) of its own; the whole target verifies these. ``selection`` says which
    entries: ``retrieval`` as published (section 4.1: the chunks of 8 whose mean key the last query likes
    best), else as in ``SparseCache``; they are chosen anew every ``refresh`` symbols.

    Both stages are those of ``Cascade``: each symbol that is handed over has the law q of the target on its
    few entries. The small model keeps its own cache whole, where the authors keep a streaming window of it.

    Raises:
        UsageError: settings out of range.
        ModelLoadError: the model cannot be read.

    >>> TriForce("FOLDER").budget                                               # doctest: +SKIP
    4096
    """

    name: ClassVar[str] = "triforce"
    paper: ClassVar[str] = "Sun et al. 2024, arXiv 2404.11912"
    trained: ClassVar[bool] = True
    model: Any
    selection: str = "retrieval"
    budget: int = 4096
    sinks: int = 4
    refresh: int = 128
    num_draft_tokens: int = 6
    inner_tokens: int = 2
    _sparse: SparseCache = field(init=False, repr=False, compare=False)
    _small: DraftModel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1, inner_tokens=1)
        sparse = SparseCache(self.selection, self.budget, self.sinks, self.refresh, self.num_draft_tokens)
        object.__setattr__(self, "_sparse", sparse)
        object.__setattr__(self, "_small", DraftModel(self.model, self.inner_tokens))

    def begin(self, context: Context) -> DraftSession:
        """Make room for the entries, and run the prompts through the small model.

        Raises:
            IncompatibleModelsError: the vocabularies do not match.
            UnsupportedError: a target without such a cache, or slots that are parallel.
        """
        itself = self._sparse.itself(context, self.name)
        room = {row: most + self.num_draft_tokens for row, most in context.capacity.items()}
        small = self._small.begin(replace(context, capacity=room, trees=False))
        return _Session(self, FewEntries(self._sparse, itself), itself, small)


class _Session:
    """A cascade whose upper model is the target on few entries, which follow its own cache."""

    def __init__(self, asked: TriForce, few: FewEntries, itself: Itself, small: DraftSession) -> None:
        self._few = few
        model = ModelRows(asked.name, Borrowed(itself, lambda base, rows: few), itself.context)
        model.calls = 0  # its prompts were run by the target
        self._cascade = CascadeSession(model, small, asked.inner_tokens)

    @property
    def calls(self) -> int:
        """Passes of both stages, and those that were made to choose entries."""
        return self._cascade.calls + self._few.extra

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Follow what was committed, draft in both stages, and forget what was drafted over few entries."""
        with self._few.current(requests):
            return self._cascade.propose(requests)

    def observe(self, row: int, observation: Observation) -> None:
        """The small model takes back what was not emitted."""
        self._cascade.observe(row, observation)

    def retract(self, row: int, length: int) -> None:
        """Forget what was drafted behind the first ``length`` symbols of a row."""
        self._cascade.retract(row, length)

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._cascade.end(rows)
