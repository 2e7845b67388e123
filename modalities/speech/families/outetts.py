"""OuteTTS 1.0 (OuteAI, 2025): a Llama or Qwen that writes every word, what it is like, and its codes of DAC.

::

    <|word_start|> hello <|features|> <|t_0.42|> ... <|code|> <|c1_5|> <|c2_9|> <|c1_7|> ... <|word_end|>

Codes come in pairs of two codebooks, 75 pairs a second, words and numbers between them: where the next code
stands is known from the symbol before it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.modalities.speech.families._flat import (
    FlatSpeech,
    read_codec,
    read_model,
    recognised,
    require_codec,
    segment,
    symbol,
    words,
)
from multispec.modalities.speech.family import SpeechCodec
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced, Slot, StreamSpec

CODEC = "ibm-research/DAC.speech.v1.0"
_FIRST, _SECOND = "<|c1_{}|>", "<|c2_{}|>"


def fits(config: Any) -> bool:
    """True for a model with the symbols of two codebooks between words."""
    return recognised(config, "outetts", _FIRST.format(0), _SECOND.format(0), "<|word_start|>", "<|code|>")


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> FlatSpeech:
    """The model of a folder or hub id, with its codec: the published DAC as a transformers folder.

    Raises:
        ModelLoadError: a part that is missing, or parts that do not belong together.
    """
    target, tokenizer, config = read_model(name_or_path, device, dtype, trust_remote_code)
    return from_parts(target, tokenizer, read_codec(name_or_path, config, CODEC, target.device))


def from_parts(target: Target, tokenizer: Any, codec: SpeechCodec) -> FlatSpeech:
    """Around a target, its tokenizer and a DAC of two codebooks.

    Sampled as its authors do, but for a repetition penalty of 1.1 over the last 64 symbols: give
    ``logits_processor=[RecentPenalty(1.1, 64)]``. A penalty over everything spoils the sound.

    Raises:
        ModelLoadError: symbols that are missing, or another codec.
    """
    size = codec.cardinality
    require_codec("OuteTTS", codec, 2, size)
    marks = [
        symbol(tokenizer, f"<|{name}|>") for name in ("im_start", "text_start", "text_end", "audio_start")
    ]
    line: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]

    def writes(text: str, voice: str | None) -> list[int]:
        said = words(tokenizer, text)
        return [marks[0], *line, marks[1], *said, marks[2], *line, marks[3], *line]

    layout = Pairs(
        codes_per_book=size,
        offsets=(segment(tokenizer, _FIRST, size), segment(tokenizer, _SECOND, size)),
        code=symbol(tokenizer, "<|code|>"),
        word_end=symbol(tokenizer, "<|word_end|>"),
        end=symbol(tokenizer, "<|audio_end|>"),
        vocab_size=target.spec.vocab_size,
    )
    return FlatSpeech(
        name="OuteTTS",
        target=target,
        codec=codec,
        layout=layout,
        writes=writes,
        sampling=Sampling(temperature=0.4, top_k=40, top_p=0.9, min_p=0.05),
    )


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of codes between other symbols: behind ``code`` a first, a second, and so on to ``word_end``.

    Elsewhere every symbol but a code may stand. The end is ``end``.

    >>> layout = Pairs(codes_per_book=2, offsets=(10, 12), code=1, word_end=2, end=3, vocab_size=14)
    >>> layout.codes([5, 1, 10, 13, 11, 12, 2, 5, 3]).tolist()
    [[0, 1], [1, 0]]
    """

    codes_per_book: int
    offsets: tuple[int, int]
    code: int
    word_end: int
    end: int
    vocab_size: int

    @property
    def num_codebooks(self) -> int:
        """Codes of a pair."""
        return 2

    @property
    def spec(self) -> StreamSpec:
        """One slot, until the end."""
        return StreamSpec(slots=(Slot(size=self.vocab_size),), end_ids=(self.end,), grammar=self.grammar)

    def _book(self, level: int) -> range:
        return range(self.offsets[level], self.offsets[level] + self.codes_per_book)

    @cached_property
    def _between(self) -> Allowed:
        books = (self._book(0), self._book(1))
        return Allowed(tuple(one for one in range(self.vocab_size) if not any(one in book for book in books)))

    @cached_property
    def _first(self) -> Allowed:
        return Allowed(self._book(0))

    @cached_property
    def _second(self) -> Allowed:
        return Allowed(self._book(1))

    @cached_property
    def _behind(self) -> Allowed:
        return Allowed((*self._book(0), self.word_end))

    def grammar(self, generated: Sequence[int], /) -> Forced | Allowed | None:
        """A second code behind a first; a first or the word's end behind a second; no codes elsewhere."""
        last = generated[-1] if len(generated) else None
        if last is not None and last in self._book(0):
            return self._second
        if last == self.code:
            return self._first
        if last is not None and last in self._book(1):
            return self._behind
        return self._between

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """None: which symbols are codes hangs on the words before them, not on the position."""
        return None

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all pairs that are complete.

        Raises:
            UsageError: a code without its pair.
        """
        both = [one for one in tokens if one in self._book(0) or one in self._book(1)]
        whole = both[: len(both) // 2 * 2]
        wrong = next((n for n, one in enumerate(whole) if one not in self._book(n % 2)), None)
        if wrong is not None:
            book = self._book(wrong % 2)
            raise UsageError(
                f"Codes come in pairs of both codebooks: code number {wrong} is {whole[wrong]}, expected "
                f"one of [{book.start}, {book.stop}). Is this the model's layout?"
            )
        pairs = rearrange(torch.tensor(whole, dtype=torch.long), "(t two) -> t two", two=2)
        return pairs - torch.tensor(self.offsets)

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The codes as one word without a text; ``codes`` undoes it."""
        flat = rearrange(codes + torch.tensor(self.offsets), "t two -> (t two)")
        return torch.cat([torch.tensor([self.code]), flat, torch.tensor([self.word_end])])
