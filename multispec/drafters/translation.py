"""Drafting with a model of another tokenizer: its own ids of the text so far, kept up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.drafters.model_rows import ModelRows
from multispec.drafters.retracting import agreeing
from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import MAX_NODES, Context, Target
from multispec.stream import Draft, Prompt

# Target ids whose text is encoded anew in each round: the last ones may be tokenized otherwise by now.
LOOK_BACK = 10
# Ids before a piece of text, so that a leading space is kept or dropped as in the whole text.
_CONTEXT = 4
_BROKEN = "\ufffd"


def text_of(tokenizer: Any, ids: Sequence[int], first: int = 0) -> str:
    """The text that the ids from ``first`` on add to those before them."""
    start = max(first - _CONTEXT, 0)
    known, whole = (_decoded(tokenizer, ids[start:end]) for end in (first, len(ids)))
    return whole[len(known) :]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def ids_of(tokenizer: Any, text: str, *, begins: bool = False) -> list[int]:
    """The ids of a text; where it ``begins`` a prompt, with what the tokenizer puts before one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = getattr(tokenizer, "bos_token_id", None)
    return [first, *ids] if begins and first is not None else ids


def require_tokenizers(name: str, **tokenizers: Any) -> None:
    """Hold tokenizers to being able to go from ids to text and back.

    Raises:
        UsageError: an object that is none.
    """
    for role, tokenizer in tokenizers.items():
        if not callable(tokenizer) or not callable(getattr(tokenizer, "decode", None)):
            raise UsageError(
                f"{name} goes from ids to text and back: {role} is {type(tokenizer).__name__}, which is no "
                "tokenizer. Pass AutoTokenizer.from_pretrained(...)."
            )


def refuse_media(name: str, context: Context) -> None:
    """Hold a stream to being one of words.

    Raises:
        UnsupportedError: frames, pictures, or prompts in other symbols.
    """
    for row, prompt in context.prompts.items():
        spec = context.specs.get(row, prompt.spec)
        if spec is None:
            continue
        frames = len(spec.slots) > 1 or spec.row_length is not None or spec.fixed_length is not None
        if frames or spec.prompt_size is not None:
            raise UnsupportedError(
                f"{name} goes from ids to text and back, and this stream holds codes of a picture or a "
                "sound: another tokenizer has no ids for them. Use draft_model of the same family, or jacobi."
            )


@dataclass
class Reader:
    """The draft model's ids of one row's text."""

    tokenizer: Any
    draft_tokenizer: Any
    ids: list[int] = field(default_factory=list)
    # (target ids, draft ids) that stand for the same text.
    anchors: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def read(self, history: Sequence[int]) -> list[int]:
        """The ids of the whole text; only its end is encoded anew."""
        while len(self.anchors) > 1 and self.anchors[-1][0] > len(history) - LOOK_BACK:
            self.anchors.pop()
        known, own = self.anchors[-1]
        text = text_of(self.tokenizer, history, known)
        self.ids[own:] = ids_of(self.draft_tokenizer, text, begins=not known)
        if not self.ids:
            self.ids = [self._first()]
        if not text.endswith(_BROKEN):
            self.anchors.append((len(history), len(self.ids)))
        return self.ids

    def _first(self) -> int:
        """An id for a text without any."""
        named = (getattr(self.draft_tokenizer, f"{one}_token_id", None) for one in ("bos", "eos", "pad"))
        return next((one for one in named if one is not None), 0)


class Translated:
    """A draft model of another tokenizer, over the rows of a batch, asked in its own ids."""

    def __init__(
        self, name: str, target: Target, context: Context, tokenizer: Any, draft_tokenizer: Any
    ) -> None:
        refuse_media(name, context)
        self._readers = {row: Reader(tokenizer, draft_tokenizer) for row in context.prompts}
        start = {
            row: list(self._readers[row].read(prompt.ids.tolist())) for row, prompt in context.prompts.items()
        }
        # A symbol of the target may be several of the draft's.
        self._room = {
            row: len(start[row]) + 4 * (most - len(context.prompts[row].ids)) + MAX_NODES
            for row, most in context.capacity.items()
            if row in start
        }
        own = replace(
            context,
            prompts={row: Prompt(ids=torch.tensor(ids, dtype=torch.long)) for row, ids in start.items()},
            capacity=self._room,
            vocab_size=target.spec.vocab_size,
            specs={},
        )
        self._rows = ModelRows(name, target, own, guidance=False)
        self._run: dict[int, list[int]] = start

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        return self._rows.calls

    def read(self, row: int, history: Sequence[int]) -> list[int] | None:
        """The draft's ids of a row's text, its caches put back to what they share; None for lack of room."""
        ids = list(self._readers[row].read(history))
        if len(ids) >= self._room[row]:
            return None
        self._rows.keep(row, min(agreeing(self._run[row], ids), len(ids) - 1))
        return ids

    def logits(self, asked: Mapping[int, list[int]]) -> dict[int, Float[Tensor, "1 V"]]:
        """The draft model's logits behind these ids of each row."""
        found = self._rows.score({row: (ids, Draft.empty()) for row, ids in asked.items()})
        self._rows.commit(dict.fromkeys(asked, ()))
        self._run |= {row: list(ids) for row, ids in asked.items()}
        return found

    def end(self, rows: Sequence[int]) -> None:
        """Free these rows."""
        self._rows.drop(rows)
