"""Symbols to words as they come: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

_BROKEN = "\ufffd"
# A character has at most four bytes; what stays broken for longer than this is broken for good.
_PATIENCE = 8


class Detokenizer:
    """Text of a growing sequence of ids; what a half character needs is held back.

    ``context`` are ids before the first one, so that a leading space is kept or dropped as it
    would be in the whole text.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._start, self._read = 0, len(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def push(self, token: int) -> str:
        """What this id adds, "" while a character is incomplete."""
        self._ids.append(token)
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if text.endswith(_BROKEN) and len(self._ids) - self._read <= _PATIENCE:
            return ""
        return self._advance(text[len(known) :])

    @property
    def complete(self) -> str:
        """The whole characters of what is held back."""
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :].rstrip(_BROKEN)

    def finish(self) -> str:
        """What was held back, broken as it is."""
        known = self._decode(self._ids[self._start : self._read])
        return self._advance(self._decode(self._ids[self._start :])[len(known) :])

    def _advance(self, text: str) -> str:
        # Two steps behind: the text of the last piece depends on the piece before it.
        self._start, self._read = self._read, len(self._ids)
        return text


def first_stop(text: str, strings: Sequence[str]) -> int:
    """Where the first stop string begins, or -1."""
    found = [at for at in (text.find(one) for one in strings) if at >= 0]
    return min(found, default=-1)


class StopStrings:
    """A stop rule: True once the generated text holds a stop string, also across or inside symbols."""

    def __init__(self, tokenizer: Any, strings: Sequence[str], context: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, context)
        self._strings = tuple(strings)
        self._keep = max(map(len, self._strings)) - 1
        self._tail = ""

    def __call__(self, ids: Sequence[int], scores: Tensor, /) -> bool:
        """Called after every symbol, in order."""
        pushed = self._detokenizer.push(ids[-1])
        text = self._tail + pushed
        self._tail = text[-self._keep :] if self._keep else ""
        # A symbol may hold the end of one character and the beginning of the next.
        return first_stop(text if pushed else text + self._detokenizer.complete, self._strings) >= 0


class TextStream:
    """Deltas of one row; text that may turn out to begin a stop string is held back."""

    def __init__(self, tokenizer: Any, strings: Sequence[str], context: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, context)
        self._strings = tuple(strings)
        self._held = ""
        self._stopped = False

    def push(self, token: int) -> str:
        """What this id adds to the text."""
        return self._release(self._detokenizer.push(token), last=False)

    def finish(self) -> str:
        """What was held back."""
        return self._release(self._detokenizer.finish(), last=True)

    def _release(self, text: str, last: bool) -> str:
        if self._stopped:
            return ""
        self._held += text
        stop = first_stop(self._held, self._strings)
        if stop >= 0:
            self._stopped = True
            return self._held[:stop]
        keep = 0 if last else self._overlap()
        split = len(self._held) - keep
        out, self._held = self._held[:split], self._held[split:]
        return out

    def _overlap(self) -> int:
        """How many trailing characters could begin a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(one.startswith(self._held[-size:]) for one in self._strings):
                return size
        return 0
