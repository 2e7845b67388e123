"""A draft model with another tokenizer: it drafts the symbols that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.drafters.references import require_at_least
from multispec.drafters.stopping import Stopping
from multispec.drafters.translation import Translated, require_tokenizers
from multispec.errors import IncompatibleModelsError
from multispec.processing import Places
from multispec.protocols import Context, DraftSession, Request, Target
from multispec.sampling import Purpose
from multispec.stream import Draft, Observation
from multispec.targets import target_for
from multispec.targets.loading import load_model

# How byte-level and sentencepiece vocabularies write a space before a word.
_SPACES = ("\u0120", "\u2581")


@dataclass(frozen=True)
class SharedVocabulary:
    """Draft with a model of another tokenizer, from its law over the symbols that the target has too.

    TLI of Timor et al. (2025), "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for
    Heterogeneous Vocabularies", algorithm 4: q'(x) = q(x) / sum over the intersection of both vocabularies,
    and 0 elsewhere. Symbols are the same where they are written the same. q' goes through the processors and
    settings of the row and is on record as q, so that ``rejection`` is exact with it; under ``coupled`` it is
    drawn from with the target's noise. What the target emits outside the intersection is encoded anew from
    its text.

    ``model`` is a transformers model, a folder or a hub id. For texts.

    Raises:
        UsageError: nothing to draft, or what is no tokenizer.
        IncompatibleModelsError: vocabularies without a common symbol.
        ModelLoadError: the model cannot be read.
    """

    name: ClassVar[str] = "shared_vocabulary"
    paper: ClassVar[str] = "Timor et al. 2025, arXiv 2502.05202"
    trained: ClassVar[bool] = True
    model: Any
    tokenizer: Any
    draft_tokenizer: Any
    num_draft_tokens: int = 5
    _target: Target = field(init=False, repr=False, compare=False)
    _both: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_at_least(self.name, self, num_draft_tokens=1)
        require_tokenizers(self.name, tokenizer=self.tokenizer, draft_tokenizer=self.draft_tokenizer)
        both = intersection(self.tokenizer.get_vocab(), self.draft_tokenizer.get_vocab())
        if not both:
            raise IncompatibleModelsError(
                f"The vocabularies of target and draft, {len(self.tokenizer.get_vocab())} and "
                f"{len(self.draft_tokenizer.get_vocab())} symbols, have none in common. Use reencoded, which "
                "goes by the text alone."
            )
        owned = isinstance(self.model, (str, Path))
        model = load_model(self.model) if owned else self.model
        object.__setattr__(self, "_target", target_for(model, owned=owned))
        object.__setattr__(self, "_both", both)

    def begin(self, context: Context) -> DraftSession:
        """Run the prompts, as the draft model reads them.

        Raises:
            UnsupportedError: a stream that holds no text.
        """
        rows = Translated(self.name, self._target, context, self.tokenizer, self.draft_tokenizer)
        most = self._target.spec.vocab_size
        both = {x: y for x, y in self._both.items() if x < context.vocab_size and y < most}
        return _Session(rows, both, context.vocab_size, context.device)


def intersection(vocabulary: Mapping[str, int], other: Mapping[str, int]) -> dict[int, int]:
    """The ids of both vocabularies for what is written the same, however they write a space.

    >>> intersection({"a": 0, "\u0120b": 1, "c": 2}, {"\u2581b": 5, "a": 7})
    {0: 7, 1: 5}
    """
    known = {_written(word): y for word, y in other.items()}
    pairs = ((x, known.get(_written(word))) for word, x in vocabulary.items())
    return {x: y for x, y in pairs if y is not None}


def _written(word: str) -> str:
    return " " + word[1:] if word.startswith(_SPACES) else word


@dataclass
class _Walk:
    """One row while it is being drafted for: the draft's ids, and what was drafted in the target's."""

    request: Request
    ids: list[int]
    tokens: list[int] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        self.stopping = Stopping(self.request.budget)

    def draft(self) -> Draft:
        return Draft.chain(self.tokens, torch.cat(self.q) if self.q else None)


class _Session:
    def __init__(
        self, rows: Translated, both: Mapping[int, int], vocab_size: int, device: torch.device
    ) -> None:
        self._rows, self._both, self._vocab_size, self._device = rows, both, vocab_size, device
        self._columns = torch.tensor([*both], device=device)
        self._drafts = torch.tensor([*both.values()], device=device)

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._rows.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Symbol by symbol, all rows together."""
        walks: dict[int, _Walk] = {}
        for request in requests:
            ids = self._rows.read(request.row, request.history.ids) if request.budget.nodes > 0 else None
            if ids is not None:
                walks[request.row] = _Walk(request, ids)
        while live := {row: walk for row, walk in walks.items() if not walk.done}:
            found = self._rows.logits({row: walk.ids for row, walk in live.items()})
            for row, walk in live.items():
                self._draw(walk, self._shared(found[row]))
        return [walks[r.row].draft() if r.row in walks else Draft.empty() for r in requests]

    def _shared(self, logits: Float[Tensor, "1 U"]) -> Float[Tensor, "1 V"]:
        """The logits of the draft's U symbols at the target's ids; none where one lacks the symbol."""
        scores = torch.full((1, self._vocab_size), -torch.inf, dtype=logits.dtype, device=self._device)
        scores[:, self._columns] = logits[:, self._drafts]
        return scores

    def _draw(self, walk: _Walk, scores: Tensor) -> None:
        request = walk.request
        law = request.pipeline.law(scores, Places(request.history, (tuple(walk.tokens),)))
        if law.invalid_places():
            walk.done = True  # the rules of the row leave no symbol that both have
            return
        position = [request.round_start + len(walk.tokens)]
        if request.coupled:
            x = int(request.noise.symbols(law, position))
        else:
            x = int(request.noise.choose(law.probs, position, Purpose.DRAFT, request.round_start))
            walk.q.append(law.probs)
        walk.tokens.append(x)
        walk.ids.append(self._both[x])
        walk.done = walk.stopping.behind(law, x)

    def observe(self, row: int, observation: Observation) -> None:
        """The text is read from the history."""

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._rows.end(rows)
