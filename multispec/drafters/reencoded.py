"""A draft model with another tokenizer: its text is encoded for the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from multispec.drafters.references import require_at_least
from multispec.drafters.translation import LOOK_BACK, Translated, ids_of, require_tokenizers, text_of
from multispec.protocols import Context, DraftSession, Request, Target
from multispec.stream import Draft, Observation
from multispec.targets import target_for
from multispec.targets.loading import load_model


@dataclass(frozen=True)
class Reencoded:
    """Draft text with a model of any tokenizer, and encode it with the target's.

    SLEM of Timor et al. (2025), "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for
    Heterogeneous Vocabularies", algorithm 2, which transformers has as universal assisted decoding: the text
    so far is encoded with ``draft_tokenizer``, the model goes on with its ``num_draft_tokens`` best symbols,
    and their text is encoded with ``tokenizer``, behind the last symbols of the target so that what belongs
    to one symbol of the target becomes one. Only exact matches count, so the draft is a point mass.

    ``model`` is a transformers model, a folder or a hub id. For texts.

    Raises:
        UsageError: nothing to draft, or what is no tokenizer.
        ModelLoadError: the model cannot be read.
    """

    name: ClassVar[str] = "reencoded"
    paper: ClassVar[str] = "Timor et al. 2025, arXiv 2502.05202"
    trained: ClassVar[bool] = True
    model: Any
    tokenizer: Any
    draft_tokenizer: Any
    num_draft_tokens: int = 6
    _target: Target = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1)
        require_tokenizers(self.name, tokenizer=self.tokenizer, draft_tokenizer=self.draft_tokenizer)
        owned = isinstance(self.model, (str, Path))
        model = load_model(self.model) if owned else self.model
        object.__setattr__(self, "_target", target_for(model, owned=owned))

    def begin(self, context: Context) -> DraftSession:
        """Run the prompts, as the draft model reads them.

        Raises:
            UnsupportedError: a stream that holds no text.
        """
        rows = Translated(self.name, self._target, context, self.tokenizer, self.draft_tokenizer)
        return _Session(self, rows, self._target, context.vocab_size)


@dataclass
class _Walk:
    """One row while it is being drafted for: the draft's ids, and how many of them are the text so far."""

    request: Request
    ids: list[int]
    start: int

    @property
    def done(self) -> bool:
        return len(self.ids) - self.start >= self.request.budget.nodes


class _Session:
    def __init__(self, asked: Reencoded, rows: Translated, target: Target, vocab_size: int) -> None:
        self._asked, self._rows, self._vocab_size = asked, rows, vocab_size
        self._ends = {*target.spec.end_ids}

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._rows.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Go on in the draft's own ids, all rows together; then encode what came of it."""
        walks: dict[int, _Walk] = {}
        for request in requests:
            ids = self._rows.read(request.row, request.history.ids) if request.budget.nodes > 0 else None
            if ids is not None:
                walks[request.row] = _Walk(request, ids, len(ids))
        live = dict(walks)
        while live := {row: walk for row, walk in live.items() if not walk.done}:
            for row, logits in self._rows.logits({row: walk.ids for row, walk in live.items()}).items():
                x = int(logits[0].argmax())
                if x in self._ends:
                    live.pop(row)
                else:
                    live[row].ids.append(x)
        return [self._encoded(walks[r.row]) if r.row in walks else Draft.empty() for r in requests]

    def _encoded(self, walk: _Walk) -> Draft:
        """The target's ids of the drafted text, as far as they go on behind its last ones."""
        asked, history = self._asked, walk.request.history.ids
        text = text_of(asked.draft_tokenizer, walk.ids, walk.start)
        first = max(len(history) - LOOK_BACK, 0)
        before = text_of(asked.tokenizer, history, first)
        known, whole = ids_of(asked.tokenizer, before), ids_of(asked.tokenizer, before + text)
        if whole[: len(known)] == known:
            found = whole[len(known) :]
        else:
            # The last symbol and the text would be one symbol by now: it stays as it is.
            found = ids_of(asked.tokenizer, text)
        found = found[: walk.request.budget.nodes]
        end = next((i for i, x in enumerate(found) if x >= self._vocab_size), len(found))
        return Draft.chain(found[:end])

    def observe(self, row: int, observation: Observation) -> None:
        """The text is read from the history."""

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._rows.end(rows)
