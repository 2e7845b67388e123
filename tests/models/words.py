"""Tiny tokenizers, made in place."""

from __future__ import annotations

import string
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>", "<s>")
CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "speculation is cheap, verification is cheaper: the same words, only sooner",
    "naïve café, 日本語の文字, 🙂🙃 and 👩‍👩‍👧 are more than a byte each",
    "def add(a, b):\n    return a + b\n\n",
)


def _wrapped(tokenizer: Tokenizer) -> Any:
    pad, end, start = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=end, bos_token=start)


@cache
def letters() -> Any:
    """64 symbols: the special ones, a space, letters and digits; one character each."""
    known = [*SPECIAL, "Ġ", *string.ascii_letters, *string.digits][:64]
    tokenizer = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(known)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


@cache
def byte_level() -> Any:
    """All bytes and a few dozen merges, some of which cut characters in two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrapped(tokenizer)


@cache
def sentence_pieces() -> Any:
    """Words with a leading mark for the space before them, which the first word of a text loses."""
    words = "the quick brown fox jumps over a lazy dog stop here and go on now".split()
    known = [*SPECIAL, "<unk>", *(f"▁{word}" for word in words), *"abcdefghijklmnopqrstuvwxyz.,▁"]
    pieces = [(piece, -float(n)) for n, piece in enumerate(dict.fromkeys(known))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _wrapped(tokenizer)
